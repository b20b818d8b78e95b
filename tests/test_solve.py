"""The method solve: several solutions, a verifier, and the fraction that is correct."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import instructgen
from instructgen.engines import Completion
from instructgen.errors import ConfigError, InputError
from instructgen.generation.methods.solve import Solve
from instructgen.schema.sample import Label, Sample, Score
from instructgen.store import read_samples, write_dataset
from instructgen.verifiers.math import Math
from tests.conftest import needs_sandbox
from tests.scripted import Played, play

PROBLEM = Sample("Ann has 17 apples and buys 25. How many are there?", output="42", language="en")
RIGHT = ("She adds 17 and 25, which gives 42.\nAnswer: 42", "17 + 25 = 42.\nAnswer: 42")
WRONG = ("She multiplies.\nAnswer: 425", "There is no result.")


def solved(texts: Sequence[str | Completion], seed: Sample = PROBLEM, **options: object) -> Played:
    """Run the method with these solutions; the verifier is real."""
    method = Solve(attempts=len(texts), **options)  # type: ignore[arg-type]
    left = list(texts)
    return play(method, [seed], lambda r: left.pop(0))


def test_the_shortest_correct_solution_is_kept_with_its_reasoning_and_pass_rate() -> None:
    done = solved([WRONG[0], *RIGHT, WRONG[1]])
    (row,) = done.rows
    assert (row.output, row.reasoning_content) == ("42", "17 + 25 = 42.")
    assert row.score("pass_rate").value == 0.5  # type: ignore[union-attr]
    assert [(x.name, x.value) for x in row.labels] == [("verified_by", "answer")]
    # Its completion was the third one.
    assert row.origin.request == 2
    assert [r.role for r in done.requests] == ["writer"] * 4 + ["executor"]


def test_reasoning_can_stay_in_the_answer_and_thoughts_never_do() -> None:
    (row,) = solved(RIGHT, reasoning="in_answer").rows
    assert (row.output, row.reasoning_content) == (RIGHT[1], "")
    thinking = Completion("The sum is 42.", "stop", reasoning="17 and 25 ...")
    (row,) = solved([thinking]).rows
    assert (row.output, row.reasoning_content) == ("The sum is 42.", "17 and 25 ...")


@pytest.mark.parametrize("reasoning", ["separate", "in_answer"])
@pytest.mark.parametrize(
    "text",
    [
        "#### Step 2: double it\n\nAnswer: 42",
        "First \\boxed{41} then one more.\n\nAnswer: 42",
        "Steps.\n**Final Answer:** $\\frac{84}{2}$",
        "Steps.\n\nAnswer: 42\n\n#### Check\n40 + 2",
    ],
)
@pytest.mark.parametrize("thoughts", ["", "I think about 7."])
def test_who_reads_the_row_finds_the_result_that_was_verified(
    text: str, reasoning: str, thoughts: str
) -> None:
    done = solved([Completion(text, "stop", reasoning=thoughts)], reasoning=reasoning)
    for row in done.rows:
        assert Math().check(row, "Answer: 42") == 1.0
    assert done.rows or "Check" in text


@pytest.mark.parametrize(
    ("texts", "options", "reason"),
    [
        (WRONG, {}, "no_correct_answer"),
        (RIGHT, {"pass_rate": (0.0, 0.9)}, "too_easy"),
        ([RIGHT[0], *WRONG], {"pass_rate": (0.5, 1.0)}, "too_hard"),
        ([Completion("cut", "length"), Completion.failed("lost")], {}, "unfinished"),
    ],
)
def test_unsolved_and_too_easy_problems_are_rejected(
    texts: Sequence[str | Completion], options: dict[str, object], reason: str
) -> None:
    assert solved(texts, **options).reasons() == [reason]


def test_without_an_answer_the_majority_decides_and_the_row_says_so() -> None:
    open_problem = Sample(PROBLEM.instruction, language="en")
    (row,) = solved([WRONG[0], *RIGHT], open_problem).rows
    assert row.output == "42"
    assert [(x.name, x.value) for x in row.labels] == [("verified_by", "majority")]
    assert row.score("pass_rate").value == pytest.approx(2 / 3, abs=1e-4)  # type: ignore[union-attr]
    assert solved([WRONG[0], RIGHT[0], "Answer: 7"], open_problem).reasons() == ["no_majority"]
    assert solved(["No idea.", "Nothing."], open_problem).reasons() == ["no_correct_answer"]


def test_a_result_need_not_be_a_number() -> None:
    """Without an answer, fractions with the same denominator are still different results."""
    half, third = "Steps with 7.\nAnswer: \\frac{1}{2}", "Steps.\nAnswer: $\\frac{3}{2}$"
    seed = Sample("How much is left?", output="\\frac{1}{2}")
    (row,) = solved([third, half, "Steps.\nAnswer: 2", "Steps.\nAnswer: 0.5"], seed).rows
    assert row.score("pass_rate").value == 0.5  # type: ignore[union-attr]
    open_problem = Sample("How much is left?", language="en")
    assert solved([third, half, "Steps.\nAnswer: 2"], open_problem).reasons() == ["no_majority"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(40, 44), min_size=1, max_size=12))
def test_the_pass_rate_is_the_fraction_of_correct_solutions(results: list[int]) -> None:
    done = solved([f"Some steps.\nAnswer: {n}" for n in results])
    share = results.count(42) / len(results)
    if share:
        assert done.rows[0].score("pass_rate").value == round(share, 4)  # type: ignore[union-attr]
    else:
        assert done.reasons() == ["no_correct_answer"]


def test_a_seed_that_the_verifier_cannot_check_does_not_fit() -> None:
    assert Solve().fits(PROBLEM)
    assert Solve().fits(Sample("How many?"))
    assert not Solve().fits(Sample("Who?", output="Nobody."))
    assert not Solve(verifier="code").fits(PROBLEM)
    # Without tests, programs cannot be compared; a constraint that is drawn is not in the request.
    assert not Solve(verifier="code").fits(Sample("Write double(x)."))
    assert not Solve(verifier="ifeval").fits(Sample("Name a fruit."))


@needs_sandbox
def test_code_solutions_are_checked_by_their_tests() -> None:
    seed = Sample("Write double(x).", output="x", labels=(Label("test", "assert double(2) == 4"),))
    texts = [f"```python\ndef double(x):\n    return {body}\n```" for body in ("x", "2 * x")]
    done = solved(texts, seed, verifier="code", steps=False)
    (row,) = done.rows
    assert row.output == texts[1]
    assert row.score("pass_rate").value == 0.5  # type: ignore[union-attr]
    assert done.requests[0].prompt_text() == "[user]\nWrite double(x)."


# -- --pass-rate --------------------------------------------------------------------------------


@pytest.fixture
def rated(tmp_path: Path) -> Path:
    """A dataset of 10 rows with the pass rates 0.0 to 0.8, and a row without one."""
    rows = [
        Sample(
            f"How much is {i} times {i + 3}?",
            output=f"It is {i * (i + 3)}.",
            language="en",
            license="MIT",
            scores=(Score("pass_rate", i / 10),) if i < 9 else (),
        )
        for i in range(10)
    ]
    write_dataset(tmp_path / "rated", rows, [], lambda _: "")
    return tmp_path / "rated"


def test_curate_keeps_rows_in_the_range(rated: Path, tmp_path: Path) -> None:
    (tmp_path / "none.toml").write_text("")
    options = {"recipe": str(tmp_path / "none.toml"), "pass_rate": "0.2:0.5"}
    done = instructgen.curate(rated, tmp_path / "out", **options)
    kept = [s.score("pass_rate") for s in read_samples(done.out)]
    assert [score.value for score in kept if score is not None] == [0.2, 0.3, 0.4, 0.5]
    assert {r.reason: r.count for r in done.rejections} == {
        "too_low": 2,
        "too_high": 3,
        "no_score": 1,
    }


@pytest.mark.parametrize("value", ["0.9", "0.9:0.1", "a:b", "-1:0.5", "0:2", ""])
def test_a_range_that_is_not_valid(rated: Path, tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError):
        instructgen.curate(rated, tmp_path / "out", pass_rate=value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_training_uses_rows_in_the_range(rated: Path, tmp_path: Path, tiny: Path) -> None:
    short = {"steps": 1, "held_out_rows": 0, "evaluate": False, "max_length": 64}
    facts = instructgen.train(
        "sft", rated, tmp_path / "m", model=str(tiny), pass_rate="0.1:0.4", **short
    ).facts
    assert facts is not None
    assert facts.rows.train == 4
    for name, limits in (("none", "0.95:1.0"), ("unrated", "0.1:0.9")):
        data = rated
        if name == "unrated":
            data = tmp_path / "rows"
            plain = [replace(s, scores=()) for s in read_samples(rated)]
            write_dataset(data, plain, [], lambda _: "")
        with pytest.raises(InputError):
            instructgen.train(
                "sft", data, tmp_path / name, model=str(tiny), pass_rate=limits, **short
            )
