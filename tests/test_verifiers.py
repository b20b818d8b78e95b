"""Tests of the verifiers: what they accept, and that answers cannot trick or hang them."""

from __future__ import annotations

import json
import random
import time
from itertools import pairwise

import pytest

from instructgen.plugins import find
from instructgen.schema.sample import Label, Sample
from instructgen.training.rewards import VerifierReward, rewards_of, tasks_of
from instructgen.verifiers.code import Code
from instructgen.verifiers.constraints import LABEL, Constraint
from instructgen.verifiers.exact import Exact
from instructgen.verifiers.ifeval import IfEval
from instructgen.verifiers.math import Math, final_result
from instructgen.verifiers.regex import Regex
from tests.conftest import real

RNG = random.Random(0)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("9 + 9 = 18\n#### 18", "18"),
        ("The answer is 1,234.50.", "1,234.50"),
        (r"so \boxed{3/4} of it", "3/4"),
        (r"so \boxed{\frac{1}{2}} and \boxed{\sqrt{\frac{a}{b}}}.", r"\sqrt{\frac{a}{b}}"),
        ("First 3, then 7 apples", "7"),
        ("#### -5 and not 6", "-5 and not 6"),
        ("no number here", None),
        # The last line with a mark counts, and a heading is none.
        ("#### Step 1: Add 40\n\nAnswer: 42", "42"),
        ("Answer: 42\n\n##### Check with 5", "42"),
        ("#### Sum\nThe answer is 42.", "42"),
        ("First \\boxed{5} then one more.\n\nAnswer: 6", "6"),
        ("#### 5\n\nSo the box is \\boxed{6}, 7 times.", "6"),
        ("Answer: \\boxed{6}", "6"),
        ("### Final Answer: \\frac{84}{2}", r"\frac{84}{2}"),
        ("#### Tuesday", "Tuesday"),
        ("First 3.\nAnswer: \\frac{1}{2}", r"\frac{1}{2}"),
        ("**Answer:** $\\frac{1}{2}$.", r"\frac{1}{2}"),
        ("Answer: 2\\sqrt{3}", r"2\sqrt{3}"),
        ("Answer: (1, 2)", "(1, 2)"),
        ("Answer: 1,234 of 2,000 apples", "1,234"),
        ("Answer: 18%", "18"),
        ("Answer: 5\\text{ cm}", "5"),
        ("Answer: no number", None),
        ("It is 42.", "42"),
        ("1,234,567", "1,234,567"),
        ("1,23,456", "1,23,456"),
        ("1,2", "1,2"),
        ("2xy", "2xy"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        (r"\(x^2 + 1\)", "x^2 + 1"),
        ("$18", "18"),
        ("answer: " + "x + 1 " * 200, "1"),
    ],
)
def test_final_result(text: str, result: str | None) -> None:
    found = final_result(text)
    assert (None if found is None else found.text) == result


# A pair of results, and whether they are the same.
PAIRS = [
    (r"\frac{1}{2}", "0.5", True),
    (r"\frac{1}{2}", r"\frac{2}{4}", True),
    (r"\frac{1}{2}", r"\frac{3}{2}", False),
    (r"\frac12", "1/2", True),
    (r"-\frac{1}{2}", r"\frac{-1}{2}", True),
    (r"\frac{1}{3}", "0.33", False),
    (r"\dfrac{7}{8}", r"\tfrac{7}{8}", True),
    (r"2\frac{1}{2}", r"\frac{5}{2}", True),
    ("3/4", "0.75", True),
    ("3/4", "4/3", False),
    (r"3\sqrt{2}", r"\sqrt{18}", True),
    (r"3\sqrt{2}", r"2\sqrt{3}", False),
    (r"3\sqrt{2}", "3", False),
    (r"\sqrt{2}", "1.41421356237", True),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}", True),
    (r"\sqrt[3]{27}", "3", True),
    (r"2\pi", r"\pi \cdot 2", True),
    (r"2\pi", r"2\pi^2", False),
    ("(1, 2)", "(1,2)", True),
    ("(1, 2)", "(2, 1)", False),
    ("(1, 2)", "2", False),
    ("(1, 2, 3)", "(1, 2)", False),
    (r"(\frac{1}{2}, 3)", "(0.5, 3)", True),
    (r"\{1, 2\}", r"\{2, 1\}", True),
    (r"\{1, 2\}", r"\{1, 3\}", False),
    ("[0, 1)", "[0,1)", True),
    ("[0, 1)", "[0, 1]", False),
    (r"(-\infty, 3]", r"(-\infty, 3)", False),
    (r"(-\infty, 3] \cup [5, \infty)", r"(-\infty,3]\cup[5,\infty)", True),
    ("5 cm", "5", True),
    (r"5\text{ cm}", "5", True),
    (r"5\text{ cm}", r"6\text{ cm}", False),
    ("18 dollars", r"\$18", True),
    ("1,234", "1234", True),
    ("1,234", "1,235", False),
    (r"50\%", "0.5", True),
    (r"50\%", "50%", True),
    (r"50\%", "5%", False),
    ("x^2 + 2x + 1", "(x+1)^2", True),
    ("x^2 + 1", "x^2 - 1", False),
    ("3x", "3", False),
    ("x = 3", "3", True),
    ("3 + 4i", "4i + 3", True),
    (r"10^{10}", "10000000000", True),
    ("1,2", "12", False),
    ("3,5", "35", False),
    ("1,23,456", "123456", True),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "given", "same"), PAIRS)
def test_results_are_compared_by_their_value(expected: str, given: str, same: bool) -> None:
    task = Sample("How many?", output=rf"So \boxed{{{expected}}}.")
    assert (Math().check(task, rf"It is \boxed{{{given}}}") == 1.0) is same


@pytest.mark.parametrize(
    "given",
    ["9^{9^{9^9}}", "1e999999999", "9**9**9", "(" * 250, r"\frac{1}{0}", "1/0", "9" * 10_000,
     r"\int_0^\infty e^{-x^{99}} dx", r"\sum_{k=1}^{10^{99}} k^{99}", "\\" * 200, "{" * 99,
     "2!!!!!!!!!!!!", r"\binom{10^9}{10^8}", "__import__('os').system('true')", "\0"],
)  # fmt: skip
def test_an_unusual_result_is_wrong_and_ends_in_time(given: str) -> None:
    start = time.monotonic()
    task = Sample("How many?", output="#### 42")
    assert Math(seconds=1).check(task, f"#### {given}") < 1.0
    assert time.monotonic() - start < 30
    assert Math().check(task, r"\boxed{\frac{84}{2}}") == 1.0


def test_math_agrees_with_the_labels_of_gsm8k() -> None:
    path = real("gsm8k/example_model_solutions.jsonl")
    compared = agreed = 0
    for row in map(json.loads, path.read_text().splitlines()):
        task = Sample(row["question"], output=row["ground_truth"])
        for solution in row.values():
            if isinstance(solution, dict):
                compared += 1
                right = Math().check(task, solution["solution"]) == 1.0
                agreed += right == solution["is_correct"]
    assert agreed == compared == 5_276


def test_math_gives_a_wrong_marked_number_partial_credit() -> None:
    task = Sample("How many?", output="2 + 2 = 4\n#### 4")
    verifier = Math()
    assert verifier.task(task, RNG) is task
    assert verifier.check(task, "I think so. #### 4") == 1.0
    assert verifier.check(task, "#### 5") == pytest.approx(0.1)
    assert verifier.check(task, "It is 5") == 0.0
    assert verifier.check(task, "None.") == 0.0
    assert verifier.task(Sample("Why?", output="Because."), RNG) is None


def test_math_accepts_the_reference_answers_of_gsm8k() -> None:
    lines = real("gsm8k/test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    verifier = Math()
    accepted = accepted_other = 0
    for row, other in pairwise(rows):
        task = Sample(row["question"], output=row["answer"])
        assert verifier.task(task, RNG) is task
        accepted += verifier.check(task, row["answer"]) == 1.0
        accepted_other += verifier.check(task, other["answer"]) == 1.0
    assert accepted == len(rows) - 1
    # Neighboring questions sometimes have the same answer.
    assert accepted_other < 0.05 * len(rows)


def test_exact_ignores_only_case_spaces_and_the_last_period() -> None:
    task = Sample("Capital of France?", output="Paris.")
    assert Exact().check(task, " paris ") == 1.0
    assert Exact().check(task, "Paris, France") == 0.0


def test_regex_stops_a_slow_pattern() -> None:
    task = Sample("x", output="", labels=(Label("pattern", r"(a+)+$"),))
    verifier = Regex(seconds=0.2)
    assert verifier.task(task, RNG) is task
    start = time.monotonic()
    assert verifier.check(task, "a" * 40 + "!") == 0.0
    assert time.monotonic() - start < 20
    assert verifier.check(task, "aaa") == 1.0
    assert verifier.task(Sample("x", labels=(Label("pattern", "("),)), RNG) is None


def test_ifeval_adds_a_constraint_once() -> None:
    verifier = IfEval()
    task = verifier.task(Sample("Describe the sea.", output="Deep."), random.Random(3))
    constraint = Constraint.loads(next(v.value for v in task.labels if v.name == LABEL))
    assert task.instruction == f"Describe the sea.\n\n{constraint.words}"
    assert verifier.task(task, RNG) is task
    assert verifier.task(Sample("x", labels=(Label(LABEL, "{}"),)), RNG) is None


def test_rewards_are_found_by_name() -> None:
    names = [r.name for r in rewards_of(["verifiers:ifeval,math"])]
    assert names == ["ifeval", "math"]
    assert find("verifiers", "code") is Code


@pytest.mark.parametrize("spec", ["verifiers:", "verifiers:mathh", "verifiers:math,math"])
def test_an_invalid_reward_has_a_one_line_message(spec: str) -> None:
    with pytest.raises(ValueError) as caught:
        rewards_of([spec])
    assert "\n" not in str(caught.value)


def test_tasks_of_separates_rows_that_no_verifier_can_check() -> None:
    rows = [Sample("How many?", output="#### 4"), Sample("Why?", output="Because.")]
    tasks, others = tasks_of(rewards_of(["verifiers:math"]), rows, 0)
    assert (tasks, others) == ([rows[0]], [rows[1]])
    tasks, others = tasks_of(rewards_of(["verifiers:math,ifeval"]), rows, 0)
    assert len(tasks) == 2
    assert not others
    # A reward model scores every row. The constraint that a verifier adds varies between rows.
    samples = [Sample(f"Describe day {i}.", output="It rained.") for i in range(12)]
    tasks, others = tasks_of(rewards_of(["verifiers:ifeval"]), samples, 0, models=True)
    assert (
        len(
            {t.instruction.removeprefix(s.instruction) for t, s in zip(tasks, samples, strict=True)}
        )
        > 4
    )
    assert tasks_of([], samples, 0, models=True) == (samples, [])
    tasks = [rows[0], *tasks[:1]]
    reward = VerifierReward(Math())
    assert reward.score(tasks, ["#### 4", "#### 4"]) == [1.0, None]
