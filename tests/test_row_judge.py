"""The filter judge: what it asks, what it reads, and that each row is paid for once."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import instructgen
from instructgen.engines import Completion
from instructgen.errors import ConfigError, EngineError, RunError
from instructgen.filters.judge import Judge
from instructgen.filters.novelty import Novelty
from instructgen.filters.perplexity import Perplexity
from instructgen.generation.methods.magpie import Magpie
from instructgen.schema.messages import Message
from instructgen.schema.sample import Sample, Score
from instructgen.store import CompletionLine, Run, read_rows, read_samples
from tests.conftest import ROOT
from tests.scripted import play
from tests.test_openai import Server, reply
from tests.training_data import dataset

ROW = Sample("Name a fruit.", output="An apple.", language="en", license="CC0-1.0", source="s")


def grades(number: int, **others: Any) -> str:
    names = ("helpfulness", "correctness", "clarity", "instruction_following")
    return orjson.dumps({"reason": "So.", **dict.fromkeys(names, number), **others}).decode()


def read(judge: Judge, text: str | Completion) -> Sample:
    completion = Completion(text, "stop", 1, 1) if isinstance(text, str) else text
    return judge.read(ROW, completion)


def test_the_request_has_the_conversation_the_answer_and_each_aspect() -> None:
    row = Sample("And in Peru?", output="Lucuma.", history=(Message("user", "Name a fruit."),
                 Message("assistant", "An apple.")), language="en")  # fmt: skip
    request = Judge(aspects={"tone": "Is it polite?"}, model="j").request(row, structured=True)
    text = request.prompt[0].content  # type: ignore[union-attr]
    for part in ("Name a fruit.", "An apple.", "And in Peru?", "Lucuma.", "tone: Is it polite?"):
        assert part in text
    assert request.schema is not None
    assert request.schema["required"] == ["reason", "tone"]
    assert (request.role, request.sampling.temperature) == ("judge", 0.0)


def test_grades_and_tags_become_scores_and_labels() -> None:
    judge = Judge(model="j", tags=("difficulty", "task_category"))
    row = read(judge, grades(4, clarity=2, difficulty="hard", task_category="cooking"))
    scores = {s.name: s.value for s in row.scores}
    assert scores == {
        "judge.helpfulness/j": 4.0,
        "judge.correctness/j": 4.0,
        "judge.clarity/j": 2.0,
        "judge.instruction_following/j": 4.0,
        "judge/j": 3.5,
    }
    # A category that was not offered is not stored.
    assert [(x.name, x.value) for x in row.labels] == [("difficulty", "hard")]
    assert row.generators == ()


@pytest.mark.parametrize(
    "text",
    [
        "", "4", "null", "[4, 4]", "{", grades(6), grades(0), grades(4, clarity="4"),
        grades(4, clarity=True), grades(4, clarity=4.0), grades(4).replace("clarity", "x"),
        Completion.failed("HTTP 400"), Completion(grades(4)[:30], "length", 1, 1),
    ],
)  # fmt: skip
def test_a_reply_that_cannot_be_read_leaves_the_row_unscored(text: str | Completion) -> None:
    (score,) = read(Judge(model="j"), text).scores
    assert (score.name, score.value) == ("judge/j", None)
    assert score.error


@given(st.text(), st.text())
def test_text_around_the_object_is_ignored_and_no_reply_raises(before: str, text: str) -> None:
    judge = Judge(model="j")
    read(judge, text)
    if not set(before) & set("{}"):
        score = read(judge, f"{before}\n{grades(3)}\n{before}").score("judge/j")
        assert score is not None
        assert score.value == 3.0


@pytest.mark.parametrize(
    ("options", "number", "reason"),
    [
        ({"min": 3.5}, 4, None),
        ({"min": 3.5}, 3, "too_low"),
        ({"min_each": 4}, 3, "too_low"),
        ({"max": 4}, 5, "too_high"),
        ({"min": 1, "on_error": "reject"}, 9, "no_score"),
        ({"min": 1, "on_error": "keep"}, 9, None),
    ],
)
def test_bounds(options: dict[str, Any], number: int, reason: str | None) -> None:
    judge = Judge(model="j", **options)
    (verdict,) = judge.evaluate([read(judge, grades(number))])
    assert (verdict.rejection.reason if verdict.rejection else None) == reason


@pytest.mark.parametrize("aspects", [["beauty"], [], {}])
def test_unknown_aspects_are_an_error(aspects: Any) -> None:
    with pytest.raises(ValueError, match="aspects"):
        Judge(aspects=aspects)


# -- in generate ----------------------------------------------------------------------------


def test_near_duplicates_that_wait_for_the_judge_together_are_not_both_kept() -> None:
    users = iter(["Name a rare fruit of southern Peru now.", "Name a rare fruit of southern Peru."])

    def model(request: Any) -> str:
        if request.role == "judge":
            return grades(5)
        return next(users) if request.stage == "user" else "Lucuma."

    done = play(
        Magpie(), [], model, target=2, window=2, most=6,
        filters=[Judge(model="critic", min=3), _Rows(threshold=0.7)],
    )  # fmt: skip
    judged = [r for r in done.requests if r.role == "judge"]
    assert len(judged) == 2
    assert {r.model for r in judged} == {"critic"}
    assert len(done.rows) == 1
    assert "not_novel" in done.reasons() or "similar" in " ".join(done.reasons())


class _Rows(Novelty):
    """Novelty of finished rows, so that both rows pass before either is judged."""

    scope = "row"


# -- in curate ------------------------------------------------------------------------------


class Critic(Server):
    """A server that gives rows with an even number 5, and others 2; it fails after some."""

    def __init__(self, fail_from: int | None = None) -> None:
        self.fail_from = fail_from
        super().__init__(self._answer)

    def _answer(self, handler: Any) -> None:
        if self.fail_from is not None and len(self.bodies) > self.fail_from:
            return reply(400, {"error": "no"})(handler)
        text = handler.body["messages"][-1]["content"]
        if "Grade the answer" not in text:
            content = "I do not follow schemas."
        else:
            number = int(text.split("number ")[1].split(".")[0])
            content = "Oh no" if number % 10 == 9 else grades(2 if number % 2 else 5)
        return reply(
            200,
            {"choices": [{"message": {"content": content}, "finish_reason": "stop"}], "usage": {}},
        )(handler)


def rows(count: int = 20) -> list[Sample]:
    words = ("boat", "house", "stone", "apple", "coat", "table", "river", "bird", "lamp", "door")
    return [
        Sample(
            f"Describe the {words[i % 10]} and the {words[i // 10]} of number {i}.",
            output=f"The {words[i % 10]} has the color {words[-1 - i // 10]}, as I see it.",
            language="en",
            source="s",
            license="CC0-1.0",
        )
        for i in range(count)
    ]


RECIPE = {"filters": [{"name": "judge", "min": 3.5, "on_error": "reject", "tags": ["difficulty"]}]}


def curated(data: Path, out: Path, server: Server, **options: Any) -> Any:
    recipe = options.pop("recipe", RECIPE)
    return instructgen.curate(
        data, out, recipe=recipe, judge="critic", judge_engine="openai",
        judge_endpoint=server.url, **options,
    )  # fmt: skip


def judgments(folder: Path) -> int:
    with Run.view(folder / "judgments") as run:
        return sum(isinstance(line, CompletionLine) for _, line in run.lines())


def test_curate_keeps_the_rows_that_the_judge_grades_well(tmp_path: Path) -> None:
    data, server = dataset(tmp_path / "data", rows()), Critic()
    result = curated(data, tmp_path / "out", server)
    assert {(r.filter, r.reason): r.count for r in result.rejections} == {
        ("judge", "too_low"): 8,
        ("judge", "no_score"): 2,
    }
    assert result.rows == 10
    for row in read_samples(result.out):
        assert row.score("judge/critic").value == 5.0  # type: ignore[union-attr]
        assert row.generators == ()
    assert judgments(result.out) == 20
    explained = instructgen.explain(result.out, next(read_samples(result.out)).id)
    assert "judge/critic 5" in str(explained)


def test_a_killed_curation_pays_for_no_row_twice(tmp_path: Path) -> None:
    data, server = dataset(tmp_path / "data", rows()), Critic()
    whole = curated(data, tmp_path / "whole", server)
    out = tmp_path / "out"
    shutil.copytree(whole.out / "judgments", out / "judgments")
    shutil.copy(whole.out / "provenance.json", out)
    journal = out / "judgments" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[: 3 * len(lines) // 4]) + lines[-1][:20])
    recorded = judgments(out)
    assert 0 < recorded < 20
    second = Critic()
    again = curated(data, out, second)
    assert len(second.bodies) == 20 - recorded
    assert (again.rows, again.rejected) == (whole.rows, whole.rejected)
    for table in ("data", "rejected"):
        assert [s.id for s in read_samples(again.out, table)] == [
            s.id for s in read_samples(whole.out, table)
        ]


@pytest.mark.parametrize("compared", [False, True])
def test_scores_before_the_judge_are_recorded_and_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compared: bool
) -> None:
    """Another machine could reject other rows, about which the judge was not asked."""
    scored: list[Sample] = []
    accepted = 1

    def scores(self: Perplexity, samples: Any) -> list[Score]:
        scored.extend(samples)
        numbers = [int(s.instruction.split("number ")[1].rstrip(".")) for s in samples]
        return [Score(self.score_name, 2.0 + (n // 2 % 2 == accepted)) for n in numbers]

    monkeypatch.setattr(Perplexity, "scores", scores)
    # The last row repeats one that the judge sees. It is scored too, because filters that compare
    # rows follow those that do not.
    again = replace(rows()[2], instruction="Describe the stone and the boat of number 102.")
    data, server = dataset(tmp_path / "data", [*rows(), again]), Critic()
    first = [{"name": "novelty", "threshold": 0.8}] if compared else []
    recipe = {"filters": [*first, {"name": "perplexity", "min": 2.5}, *RECIPE["filters"]]}
    whole = curated(data, tmp_path / "whole", server, recipe=recipe)
    assert len(scored) == 21
    asked = judgments(whole.out)
    assert asked == 11 - compared
    assert ("novelty" in {r.filter for r in whole.rejections}) == compared

    for number, kept in enumerate((("scores", 21), ("scores", 12), ("judgments", asked - 2))):
        out = tmp_path / f"out-{number}"
        shutil.copytree(whole.out / "scores", out / "scores")
        if kept[0] == "judgments":
            shutil.copytree(whole.out / "judgments", out / "judgments")
        shutil.copy(whole.out / "provenance.json", out)
        cut(out / kept[0], kept[1])
        second = Critic()
        scored.clear()
        # The scores of another machine.
        accepted = 1 if kept == ("scores", 12) else 0
        result = curated(data, out, second, recipe=recipe)
        assert len(scored) == (21 - kept[1] if kept[0] == "scores" else 0)
        # One more request tests whether the server enforces schemas.
        assert len(second.bodies) == (2 if kept[0] == "judgments" else asked + 1)
        assert (result.rows, result.rejected) == (whole.rows, whole.rejected)
        for table in ("data", "rejected"):
            assert list(read_samples(result.out, table)) == list(read_samples(whole.out, table))


def cut(folder: Path, completions: int) -> None:
    """Remove the end of a journal, so that this many completions are left."""
    file = folder / "journal.jsonl"
    kept, left = [], completions
    for line in file.read_bytes().splitlines(keepends=True):
        left -= b'"kind":"completion"' in line
        if left < 0:
            break
        kept.append(line)
    file.write_bytes(b"".join(kept))


def test_other_bounds_reuse_the_scores_of_an_earlier_curation(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", rows())
    first = curated(data, tmp_path / "first", Critic())
    server = Critic()
    recipe = {"filters": [{"name": "judge", "min": 1, "on_error": "keep"}]}
    result = curated(data, tmp_path / "o", server, recipe=recipe, scores_from=first.out)
    assert server.bodies == []
    assert result.rows == 20


def test_rows_that_earlier_filters_reject_are_not_judged(tmp_path: Path) -> None:
    some = [*rows(), *rows(3)]
    data, server = dataset(tmp_path / "data", some), Critic()
    filters = [{"name": "near_duplicate"}, {"name": "length", "max_words": 9}, *RECIPE["filters"]]
    result = curated(data, tmp_path / "out", server, recipe={"filters": filters})
    asked = [b for b in server.bodies if "Grade the answer" in b["messages"][-1]["content"]]
    passed = 23 - sum(r.count for r in result.rejections if r.filter != "judge")
    assert len(asked) == passed < 23
    rejected = next(r for r in read_rows(result.out, "rejected") if r["filter"] == "judge")
    assert "not evaluated" not in str(instructgen.explain(result.out, rejected["id"]))
    rejected = next(r for r in read_rows(result.out, "rejected") if r["filter"] != "judge")
    assert "not evaluated" in str(instructgen.explain(result.out, rejected["id"]))


def test_a_missing_or_needless_judge_is_an_error(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", rows(2))
    with pytest.raises(ConfigError, match="judge"):
        instructgen.curate(data, tmp_path / "o", recipe=RECIPE)
    with pytest.raises(ConfigError, match="judge"):
        instructgen.curate(data, tmp_path / "o", recipe="default", judge="x")
    two = {"filters": [{"name": "judge", "model": "a"}, {"name": "judge", "model": "b"}]}
    with pytest.raises(ConfigError, match="judge"):
        instructgen.curate(data, tmp_path / "o", recipe=two, judge_engine="openai")


def test_a_judge_that_is_down_stops_the_command(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", rows())
    server = Server(reply(404, {"error": "no model"}))
    with pytest.raises(EngineError):
        curated(data, tmp_path / "out", server)


# -- the judge of a run ---------------------------------------------------------------------


class Author(Server):
    """A server that writes a request to each text, and does not enforce schemas."""

    def __init__(self) -> None:
        super().__init__(self._answer)

    def _answer(self, handler: Any) -> None:
        words = handler.body["messages"][-1]["content"].split()[-9:]
        text = f"Why {' '.join(words)}?"
        message = {"content": text}
        reply(200, {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {}})(
            handler
        )


class Grader(Server):
    """A server that enforces schemas, and gives each pair 5."""

    def __init__(self) -> None:
        super().__init__(self._answer)

    def _answer(self, handler: Any) -> None:
        schema = handler.body["response_format"]["json_schema"]["schema"]
        values = {k: s.get("const", "So.") for k, s in schema["properties"].items()}
        if "score" in values:
            values["score"] = 5
        message = {"content": orjson.dumps(values).decode()}
        reply(200, {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {}})(
            handler
        )


def test_the_judge_of_a_run_may_be_another_server(tmp_path: Path) -> None:
    author, grader = Author(), Grader()
    options = {
        "method": "reverse",
        "seeds": ROOT / "seeds" / "passages.jsonl",
        "engine": "openai",
        "model": "author",
        "endpoint": author.url,
        "judge": "grader",
        "judge_endpoint": grader.url,
        "settings": {"generate.acceptance_floor": 0},
    }
    result = instructgen.generate(target=5, out=tmp_path / "run", **options)
    assert result.rows == 5
    assert {b["model"] for b in author.bodies} == {"author"}
    assert {b["model"] for b in grader.bodies} == {"grader"}
    # Each server was asked once whether it enforces schemas.
    assert len(author.bodies) - 1 >= 5
    assert all("response_format" in b for b in grader.bodies)
    assert all("response_format" not in b for b in author.bodies[1:])
    for row in read_samples(result.out):
        assert row.generators == ("author",)
        assert row.score("fit").value == 5.0  # type: ignore[union-attr]
    # A rebuild needs neither of them.
    assert instructgen.rebuild(result.out).unchanged
    with pytest.raises(RunError, match=r"judge\.model"):
        instructgen.generate(target=5, out=result.out, **{**options, "judge": "other"})


def test_options_of_parts_keep_the_other_values(tmp_path: Path) -> None:
    from instructgen.commands.generate import configure
    from instructgen.commands.options import GenerateOptions

    def configured(**settings: Any) -> Any:
        return configure(
            GenerateOptions(
                seeds="x.jsonl", target=1, out=tmp_path, method="evol", settings=settings
            )
        ).method

    method = configured(**{"method.answers.max_tokens": 9, "method.rounds": 2})
    assert method.rounds == 2
    assert (method.answers.max_tokens, method.answers.temperature) == (9, 0.7)
    for name in ("rounds", "methods.rounds", "method.round", "method.answers.tokens"):
        with pytest.raises(ConfigError):
            configured(**{name: 2})
