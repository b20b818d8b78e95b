"""Tests of prefer: which answers it keeps and rejects, and that no request is paid for twice."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest

from instructgen import explain, prefer
from instructgen.commands.prefer import _engine
from instructgen.errors import ConfigError, EngineError, RunError
from instructgen.evaluation.rewards import RewardEngine
from instructgen.generation.scoring import read_score
from instructgen.schema.sample import Label, Sample
from instructgen.store import CompletionLine, IssueLine, Run, manifest_in, read_samples
from instructgen.verifiers.constraints import LABEL, Constraint
from tests import forks
from tests.conftest import asked
from tests.test_openai import Server, reply
from tests.training_data import dataset

SHORT = Label(LABEL, Constraint("words_at_most", {"count": 4}).dumps())


class Writer(Server):
    """A server that answers with one to eight words, by the request's seed, or judges by length.

    As a judge it prefers the shorter answer, and it answers A if both have the same length.
    ``judge`` replaces this verdict. Requests after number ``fail_from`` fail.
    """

    def __init__(self, fail_from: int | None = None, judge: str = "") -> None:
        self.fail_from, self.judge = fail_from, judge
        super().__init__(self._answer)

    def _answer(self, handler: Any) -> None:
        if self.fail_from is not None and len(self.bodies) > self.fail_from:
            return reply(503)(handler)
        text = handler.body["messages"][-1]["content"]
        if "[Answer A]" in text:
            content = self.judge or self._verdict(text)
            finish = "stop"
        else:
            seed = f"{handler.body['seed']}{text}".encode()
            count = hashlib.sha256(seed).digest()[0] % 8 + 1
            content, finish = " ".join(["word"] * count), "length" if count == 8 else "stop"
        return reply(
            200,
            {
                "choices": [{"message": {"content": content}, "finish_reason": finish}],
                "usage": {"prompt_tokens": 5, "completion_tokens": 5},
            },
        )(handler)

    def _verdict(self, text: str) -> str:
        first, second = (text.split(f"[Answer {x}]\n")[1].split("\n\n")[0] for x in "AB")
        return "B" if len(second) < len(first) else "A"


def tasks(count: int = 30, *labels: Label) -> list[Sample]:
    """Return instructions with a license and an attribution text."""
    return [
        Sample(
            f"Describe day {i}.",
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
    """Make the engine openai use this server."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)


OPTIONS: dict[str, Any] = {"model": "writer", "engine": "openai", "samples": 4, "max_tokens": 32}


def test_pairs_have_the_best_and_worst_answer_and_their_provenance(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Writer())
    result = prefer(data, tmp_path / "out", score=["verifiers:ifeval"], **OPTIONS)
    rows = list(read_samples(result.out))
    assert result.rows + result.rejected == 16
    assert result.rows > 6
    for row in rows:
        best, worst = row.score("reward").value, row.score("reward_rejected").value
        assert best > worst
        assert len(row.output.split()) < len(row.rejected_output.split())
        # An answer of eight words is unfinished, and no pair contains one.
        assert len(row.rejected_output.split()) < 8
        assert row.origin.method == "preference"
        assert row.origin.model == "writer"
        assert row.origin.parents
        assert row.origin.prompt_sha256
        assert row.license == "CC-BY-4.0"
        assert row.attribution == ("The days",)
        assert row.generators == ("writer",)
    assert {r.reason for r in result.rejections} <= {"tie", "unfinished", "undecided"}
    assert sum(r.count for r in result.rejections) == result.rejected
    sources = {s.id for s in tasks(16, SHORT)}
    assert {p for row in rows for p in row.origin.parents} <= sources
    explanation = explain(result.out, rows[0].id)
    assert explanation.command == "prefer"
    assert any("The days" in sentence for sentence in explanation.obligations)


@pytest.mark.parametrize(
    "score",
    ["models/none", "smollm2", "verifier:ifeval", "verifiers:nothing", "judge:./none"],
)
def test_an_invalid_score_raises_an_error_before_any_request(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: str
) -> None:
    server = Writer()
    use(monkeypatch, server)
    with pytest.raises(ConfigError):
        prefer(data, tmp_path / "out", score=[score], judge_engine="vllm", **OPTIONS)
    assert server.bodies == []


def test_a_dataset_without_rows_ends_with_exit_code_3(data: Path, tmp_path: Path) -> None:
    server = Writer()
    args = ["--model", "writer", "--engine", "openai", "--endpoint", server.url]
    args += ["--min-score", "99", "--as", "instructions"]
    done = forks.command(
        "prefer", data, "--score", "verifiers:ifeval", *args, "--out", tmp_path / "o", "--json"
    )
    assert done.returncode == 3, done.stderr
    result = orjson.loads(done.stdout)
    assert (result["rows"], result["rejected"]) == (0, 16)


def test_shape_instructions_keeps_the_best_answer_above_min_score(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Writer())
    result = prefer(
        data, tmp_path / "out", score=["verifiers:ifeval"], shape="instructions", min_score=1.0,
        **OPTIONS,
    )  # fmt: skip
    rows = list(read_samples(result.out))
    assert rows
    assert all(len(row.output.split()) <= 4 for row in rows)
    assert all(row.origin.method == "best_of_n" for row in rows)
    assert {r.reason for r in result.rejections} <= {"low_score", "unfinished"}


def test_a_judge_decides_only_contests_in_which_both_orders_agree(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Writer()
    use(monkeypatch, server)
    result = prefer(data, tmp_path / "out", score=["judge:judge"], **OPTIONS)
    rows = list(read_samples(result.out))
    assert rows
    assert all(len(row.output) < len(row.rejected_output) for row in rows)
    counts = result.facts.judge
    # Answers of the same length get A in both orders, which contradict each other.
    assert counts["orders_disagree"] > 0
    judged = sum("[Answer A]" in b["messages"][-1]["content"] for b in server.bodies)
    assert judged == 2 * sum(counts.values())


@pytest.mark.parametrize("verdict", ["A", "I prefer the first one.", ""])
def test_a_judge_without_a_consistent_verdict_gives_no_pair(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: str
) -> None:
    use(monkeypatch, Writer(judge=verdict or " "))
    result = prefer(data, tmp_path / "out", score=["judge:judge"], **OPTIONS)
    assert result.rows == 0
    assert result.rejected == 16


def test_a_resumed_command_repeats_no_answered_request(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Writer())
    one = prefer(data, tmp_path / "one", score=["verifiers:ifeval"], **OPTIONS)
    monkeypatch.setattr(
        "instructgen.commands.prefer._engine",
        lambda *args: _engine(*args).model_copy(update={"max_retries": 0, "concurrency": 2}),
    )
    answered: list[str] = []
    for fail_from in (20, 20, None):
        server = Writer(fail_from)
        use(monkeypatch, server)
        if fail_from is None:
            two = prefer(data, tmp_path / "two", score=["verifiers:ifeval"], **OPTIONS)
        else:
            with pytest.raises(EngineError, match="HTTP 503") as caught:
                prefer(data, tmp_path / "two", score=["verifiers:ifeval"], **OPTIONS)
            assert "same command" in caught.value.hint
        answered += [str(body) for body in server.bodies[:fail_from]]
    # Each of the 64 requests was answered once.
    assert len(answered) == len(set(answered)) == 64
    for table in ("data", "rejected"):
        assert [s.id for s in read_samples(one.out, table)] == [
            s.id for s in read_samples(two.out, table)
        ]
    assert manifest_in(one.out).rows == manifest_in(two.out).rows == one.rows


def journal(folder: Path) -> tuple[list[IssueLine], dict[int, CompletionLine]]:
    """Return the requests and the completions of a journal."""
    with Run.view(folder) as run:
        lines = [line for _, line in run.lines()]
    completed = [line for line in lines if isinstance(line, CompletionLine)]
    assert len({line.n for line in completed}) == len(completed)
    issued = [line for line in lines if isinstance(line, IssueLine)]
    # Such a journal is not continued with other settings, so it has no sessions.
    assert len(issued) + len(completed) == len(lines)
    return issued, {line.n: line for line in completed}


def test_answers_and_judgments_have_a_journal_each(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Writer()
    use(monkeypatch, server)
    result = prefer(data, tmp_path / "out", score=["judge:judge"], **OPTIONS)
    issued, answers = journal(result.out / "answers")
    assert [(line.n, line.draft, line.role) for line in issued] == [
        (n, n, "writer") for n in range(64)
    ]
    assert sorted(answers) == list(range(64))
    judged, judgments = journal(result.out / "judgments")
    assert len(judged) == len(judgments) == 2 * sum(result.facts.judge.values())
    assert {line.role for line in judged} == {"judge"}
    assert len(server.bodies) == 64 + len(judgments)
    for row in read_samples(result.out):
        # The request is that of the better answer, and the draft the number of the prompt.
        assert row.origin.request is not None
        assert row.origin.draft == row.origin.request // 4
        line = answers[row.origin.request]
        assert line.completion.text.strip() == row.output
        assert line.digest == row.origin.prompt_sha256


def test_an_interrupted_journal_is_continued_with_the_requests_that_it_lacks(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process may be killed at any line of either journal."""
    use(monkeypatch, Writer())
    whole = prefer(data, tmp_path / "whole", score=["judge:judge"], **OPTIONS)
    expected = [list(read_samples(whole.out, table)) for table in ("data", "rejected")]
    for name, share in (("answers", 0.4), ("judgments", 0.8)):
        out = tmp_path / name
        shutil.copytree(whole.out / "answers", out / "answers")
        if name == "judgments":
            shutil.copytree(whole.out / "judgments", out / "judgments")
        shutil.copy(whole.out / "provenance.json", out)
        file = out / name / "journal.jsonl"
        lines = file.read_bytes().splitlines(keepends=True)
        at = round(share * len(lines))
        file.write_bytes(b"".join(lines[:at]) + lines[at][:9])
        recorded = len(journal(out / name)[1])
        assert 0 < recorded < len(journal(whole.out / name)[1])
        server = Writer()
        use(monkeypatch, server)
        prefer(data, out, score=["judge:judge"], **OPTIONS)
        missing = len(journal(whole.out / name)[1]) - recorded
        others = len(journal(whole.out / "judgments")[1]) if name == "answers" else 0
        assert len(server.bodies) == missing + others
        assert [list(read_samples(out, table)) for table in ("data", "rejected")] == expected


def reward_model(tiny: Path, folder: Path, seed: int) -> Path:
    """Save a reward model with random weights."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForSequenceClassification

    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(tiny, num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def test_scores_of_reward_models_are_recorded_and_not_computed_again(
    data: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A score near another one could decide differently on another machine."""
    requests = asked(monkeypatch, RewardEngine)
    use(monkeypatch, Writer())
    models = [str(reward_model(tiny, tmp_path / f"rm-{seed}", seed)) for seed in (1, 2)]
    with pytest.raises(ConfigError):
        prefer(data, tmp_path / "twice", score=[models[0], models[0]], **OPTIONS)
    out = tmp_path / "out"
    result = prefer(data, out, score=models, **OPTIONS)
    texts = [line.completion.text for _, line in sorted(journal(out / "answers")[1].items())]
    # Equal answers to a task are scored once, so that they tie.
    place: dict[tuple[int, str], int] = {}
    for number, text in enumerate(texts):
        place.setdefault((number // 4, text), len(place))
    one, two = (journal(out / name)[1] for name in ("rewards", "rewards-2"))
    assert len(one) == len(two) == len(place) < 64
    assert len(requests) == 2 * len(place)
    values = [[read_score(m[n].completion, "").value for n in range(len(m))] for m in (one, two)]
    assert len(set(values[0])) > 30
    for row in read_samples(result.out):
        at = place[row.origin.request // 4, texts[row.origin.request]]
        assert row.score("reward").value == pytest.approx(values[0][at] + values[1][at])
    part = next(out.glob("data/*.parquet"))
    before = part.read_bytes()
    file = out / "rewards-2" / "journal.jsonl"
    for missing in (0, 20):
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join(lines[: len(lines) - missing]))
        assert len(journal(out / "rewards-2")[1]) == len(place) - missing
        (out / "manifest.json").unlink()
        requests.clear()
        prefer(data, out, score=models, **OPTIONS)
        assert len(requests) == missing
        assert len(journal(out / "rewards-2")[1]) == len(place)
        if not missing:
            assert part.read_bytes() == before


def test_a_higher_limit_asks_only_for_the_new_answers(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Writer())
    few = prefer(data, tmp_path / "out", score=["verifiers:ifeval"], limit=5, **OPTIONS)
    assert few.rows + few.rejected == 5
    # As if the command with the higher limit had been killed before it wrote the dataset.
    (few.out / "manifest.json").unlink()
    server = Writer()
    use(monkeypatch, server)
    more = prefer(data, tmp_path / "out", score=["verifiers:ifeval"], limit=9, **OPTIONS)
    assert more.rows + more.rejected == 9
    assert len(server.bodies) == 4 * (9 - 5)
    assert len(journal(more.out / "answers")[1]) == 4 * 9


def test_recorded_answers_of_another_model_are_not_used(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorded answer does not name its model, but its journal does."""
    monkeypatch.setattr(
        "instructgen.commands.prefer._engine",
        lambda *args: _engine(*args).model_copy(update={"max_retries": 0, "concurrency": 2}),
    )
    use(monkeypatch, Writer(fail_from=20))
    with pytest.raises(EngineError):
        prefer(data, tmp_path / "p", score=["verifiers:ifeval"], **OPTIONS)
    server = Writer()
    use(monkeypatch, server)
    with pytest.raises(RunError) as caught:
        prefer(data, tmp_path / "p", score=["verifiers:ifeval"], **{**OPTIONS, "model": "other"})
    assert "options.model" in str(caught.value)
    assert server.bodies == []
    assert prefer(data, tmp_path / "p", score=["verifiers:ifeval"], **OPTIONS).rows


def test_a_dataset_written_again_from_its_journal_has_the_same_bytes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Writer()
    use(monkeypatch, server)
    out = tmp_path / "out"
    prefer(data, out, score=["verifiers:ifeval"], **OPTIONS)
    part = next(out.glob("data/*.parquet"))
    before, requests = part.read_bytes(), len(server.bodies)
    (out / "manifest.json").unlink()
    part.unlink()
    prefer(data, out, score=["verifiers:ifeval"], **OPTIONS)
    assert part.read_bytes() == before
    assert len(server.bodies) == requests


class Two(Writer):
    """A server of two models: terse writes two words, and chatty six."""

    def _answer(self, handler: Any) -> None:
        text = handler.body["messages"][-1]["content"]
        if "[Answer A]" in text:
            return super()._answer(handler)
        words = {"terse": 2, "chatty": 6, "other": 3}[handler.body["model"]]
        message = {"content": " ".join(["word"] * words), "reasoning_content": "Hm."}
        return reply(
            200, {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {}}
        )(handler)


def test_several_models_compete_and_only_those_in_the_row_are_its_generators(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Two()
    use(monkeypatch, server)
    options = {**OPTIONS, "model": ["other", "chatty", "terse"], "samples": 1}
    result = prefer(data, tmp_path / "out", score=["judge:judge"], **options)
    rows = list(read_samples(result.out))
    assert len(rows) == 16
    for row in rows:
        assert (len(row.output.split()), len(row.rejected_output.split())) == (2, 6)
        assert row.origin.model == "terse"
        # The model "other" has no text in the row, and the judge neither.
        assert row.generators == ("terse", "chatty")
        assert row.reasoning_content == row.rejected_reasoning_content == "Hm."
        margin = row.score("reward").value - row.score("reward_rejected").value
        assert row.score("margin").value == margin > 0
    asked = [b["model"] for b in server.bodies]
    assert {m: asked.count(m) for m in ("other", "chatty", "terse")} == {
        "other": 16, "chatty": 16, "terse": 16,
    }  # fmt: skip
    folders = sorted(p.name for p in result.out.iterdir() if p.name.startswith("answers"))
    assert folders == ["answers", "answers-2", "answers-3"]
    manifest = manifest_in(result.out)
    assert set(manifest.terms.generators) == {"terse", "chatty"}


def test_two_endpoints_of_the_same_model_and_as_many_samples_as_endpoints(
    data: Path, tmp_path: Path
) -> None:
    servers = [Two(), Two()]
    options = {**OPTIONS, "model": ["terse", "chatty"], "samples": 1}
    endpoints = [server.url for server in servers]
    result = prefer(
        data, tmp_path / "out", score=["verifiers:ifeval"], endpoint=endpoints, **options
    )
    assert result.rows == 16
    assert [{b["model"] for b in s.bodies} for s in servers] == [{"terse"}, {"chatty"}]


def test_the_existing_answer_may_win_or_lose(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Two())
    options = {**OPTIONS, "samples": 1, "existing": True}
    # The answer "A day." and that of terse meet the limit of four words; that of chatty does not.
    won = prefer(
        data, tmp_path / "won", score=["verifiers:ifeval"], **{**options, "model": "chatty"}
    )
    for row in read_samples(won.out):
        assert row.output == "A day."
        assert row.origin.model is None
        assert row.origin.request is None
        assert row.generators == ("chatty",)
    assert won.rows == 16
    tie = prefer(
        data, tmp_path / "tie", score=["verifiers:ifeval"], **{**options, "model": "terse"}
    )
    assert {r.reason: r.count for r in tie.rejections} == {"tie": 16}
    best = prefer(
        data, tmp_path / "best", score=["verifiers:ifeval"], shape="instructions",
        **{**options, "model": "chatty"},
    )  # fmt: skip
    for row in read_samples(best.out):
        assert (row.output, row.generators) == ("A day.", ())


@pytest.mark.parametrize(
    ("models", "endpoints"),
    [(["a", "b"], ["http://x/v1", "http://y/v1", "http://z/v1"]), (["a", "a"], [])],
)
def test_models_and_endpoints_that_do_not_fit_are_an_error(
    data: Path, tmp_path: Path, models: list[str], endpoints: list[str]
) -> None:
    with pytest.raises(ConfigError, match="model"):
        prefer(
            data, tmp_path / "o", score=["verifiers:ifeval"], endpoint=endpoints,
            **{**OPTIONS, "model": models},
        )  # fmt: skip
