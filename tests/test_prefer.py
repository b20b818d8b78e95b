"""Preferences made here: what is chosen, what is not and why, and what was paid for once."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from instructgen import explain, prefer
from instructgen.commands.prefer import _engine
from instructgen.errors import ConfigError, EngineError, RunError
from instructgen.schema.sample import Label, Sample
from instructgen.store import read_manifest, read_samples
from instructgen.verifiers.constraints import LABEL, Constraint
from tests.test_openai import Server, reply
from tests.training_data import dataset

SHORT = Label(LABEL, Constraint("words_at_most", {"count": 4}).dumps())


class Writer(Server):
    """A server that writes one to eight words, by the request's seed, or judges by length.

    As a judge it likes the shorter answer; of equal ones it always says A.
    """

    def __init__(self, fail_from: int | None = None, judge: str = "") -> None:
        self.fail_from, self.judge = fail_from, judge
        super().__init__(self._answer)

    def _answer(self, handler: Any) -> None:
        if self.fail_from is not None and len(self.bodies) > self.fail_from:
            return reply(503)(handler)
        text = handler.body["messages"][-1]["content"]
        if "[Answer A]" in text:
            said = self.judge or self._verdict(text)
            finish = "stop"
        else:
            seed = f"{handler.body['seed']}{text}".encode()
            count = hashlib.sha256(seed).digest()[0] % 8 + 1
            said, finish = " ".join(["word"] * count), "length" if count == 8 else "stop"
        return reply(
            200,
            {
                "choices": [{"message": {"content": said}, "finish_reason": finish}],
                "usage": {"prompt_tokens": 5, "completion_tokens": 5},
            },
        )(handler)

    def _verdict(self, text: str) -> str:
        first, second = (text.split(f"[Answer {x}]\n")[1].split("\n\n")[0] for x in "AB")
        return "B" if len(second) < len(first) else "A"


def tasks(count: int = 30, *labels: Label) -> list[Sample]:
    return [
        Sample(
            f"Tell of day {i}.",
            output="A day.",
            language="en",
            source="days",
            license="CC-BY-4.0",
            attribution=("The days",),
            labels=labels,
        )
        for i in range(count)
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return dataset(tmp_path / "data", tasks(16, SHORT))


def use(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)


GIVEN: dict[str, Any] = {"model": "writer", "engine": "openai", "samples": 4, "max_tokens": 32}


def test_best_and_worst_are_written_with_their_provenance(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Writer())
    result = prefer(data, tmp_path / "out", score=["verifiers:ifeval"], **GIVEN)
    rows = list(read_samples(result.out))
    assert result.rows + result.rejected == 16
    assert result.rows > 6
    for row in rows:
        best, worst = row.score("reward").value, row.score("reward_rejected").value
        assert best > worst
        assert len(row.output.split()) < len(row.rejected_output.split())
        # Cut off after eight words: no answer that never ended is in a pair.
        assert len(row.rejected_output.split()) < 8
        assert row.origin.method == "preference"
        assert row.origin.model == "writer"
        assert row.origin.parents
        assert row.origin.prompt_sha256
        assert row.license == "CC-BY-4.0"
        assert row.attribution == ("The days",)
        assert row.generators == ("writer",)
    reasons = {r["reason"] for r in result.funnel}
    assert reasons <= {"tie", "unfinished", "undecided"}
    sources = {s.id for s in tasks(16, SHORT)}
    assert {p for row in rows for p in row.origin.parents} <= sources
    found = explain(result.out, rows[0].id)
    assert found.command == "prefer"
    assert any("The days" in said for said in found.obliges)


@pytest.mark.parametrize(
    "score",
    ["models/none", "smollm2", "verifier:ifeval", "verifiers:nothing", "judge:./none"],
)
def test_a_score_that_is_none_is_refused_before_a_token_is_paid_for(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: str
) -> None:
    server = Writer()
    use(monkeypatch, server)
    with pytest.raises(ConfigError):
        prefer(data, tmp_path / "out", score=[score], judge_engine="vllm", **GIVEN)
    assert server.bodies == []


def test_the_best_alone_is_rejection_sampling(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Writer())
    result = prefer(
        data, tmp_path / "out", score=["verifiers:ifeval"], shape="instructions", min_score=1.0,
        **GIVEN,
    )  # fmt: skip
    rows = list(read_samples(result.out))
    assert rows
    assert all(len(row.output.split()) <= 4 for row in rows)
    assert all(row.origin.method == "best_of_n" for row in rows)
    assert {r["reason"] for r in result.funnel} <= {"low_score", "unfinished"}


def test_a_judge_decides_only_where_both_orders_agree(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Writer()
    use(monkeypatch, server)
    result = prefer(data, tmp_path / "out", score=["judge:judge"], **GIVEN)
    rows = list(read_samples(result.out))
    assert rows
    assert all(len(row.output) < len(row.rejected_output) for row in rows)
    counts = result.facts["judge"]
    # Equal answers get A in both orders, which is no verdict.
    assert counts["orders_disagree"] > 0
    judged = sum("[Answer A]" in b["messages"][-1]["content"] for b in server.bodies)
    assert judged == 2 * sum(counts.values())


@pytest.mark.parametrize("says", ["A", "I prefer the first one.", ""])
def test_a_judge_that_cannot_tell_makes_no_pair(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str
) -> None:
    use(monkeypatch, Writer(judge=says or " "))
    result = prefer(data, tmp_path / "out", score=["judge:judge"], **GIVEN)
    assert result.rows == 0
    assert result.rejected == 16


def test_what_was_answered_is_never_asked_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Writer())
    one = prefer(data, tmp_path / "one", score=["verifiers:ifeval"], **GIVEN)
    monkeypatch.setattr(
        "instructgen.commands.prefer._engine",
        lambda *given: _engine(*given).model_copy(update={"max_retries": 0, "concurrency": 2}),
    )
    answered: list[str] = []
    for fail_from in (20, 20, None):
        server = Writer(fail_from)
        use(monkeypatch, server)
        if fail_from is None:
            two = prefer(data, tmp_path / "two", score=["verifiers:ifeval"], **GIVEN)
        else:
            with pytest.raises(EngineError, match="the same command goes on"):
                prefer(data, tmp_path / "two", score=["verifiers:ifeval"], **GIVEN)
        answered += [str(body) for body in server.bodies[:fail_from]]
    # Each of 64 requests was answered once.
    assert len(answered) == len(set(answered)) == 64
    for table in ("data", "rejected"):
        assert [s.id for s in read_samples(one.out, table)] == [
            s.id for s in read_samples(two.out, table)
        ]
    assert read_manifest(one.out)["rows"] == read_manifest(two.out)["rows"]


def test_answers_of_another_model_are_not_taken_over(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorded answer does not say who wrote it: its journal does."""
    monkeypatch.setattr(
        "instructgen.commands.prefer._engine",
        lambda *given: _engine(*given).model_copy(update={"max_retries": 0, "concurrency": 2}),
    )
    use(monkeypatch, Writer(fail_from=20))
    with pytest.raises(EngineError):
        prefer(data, tmp_path / "p", score=["verifiers:ifeval"], **GIVEN)
    server = Writer()
    use(monkeypatch, server)
    with pytest.raises(RunError) as caught:
        prefer(data, tmp_path / "p", score=["verifiers:ifeval"], **{**GIVEN, "model": "other"})
    assert "options.model" in str(caught.value)
    assert server.bodies == []
    assert prefer(data, tmp_path / "p", score=["verifiers:ifeval"], **GIVEN).rows


def test_made_again_from_its_journal_the_bytes_are_the_same(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Writer()
    use(monkeypatch, server)
    out = tmp_path / "out"
    prefer(data, out, score=["verifiers:ifeval"], **GIVEN)
    part = next(out.glob("data/*.parquet"))
    before, asked = part.read_bytes(), len(server.bodies)
    (out / "manifest.json").unlink()
    part.unlink()
    prefer(data, out, score=["verifiers:ifeval"], **GIVEN)
    assert part.read_bytes() == before
    assert len(server.bodies) == asked
