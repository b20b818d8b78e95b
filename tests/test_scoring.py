"""Scores of model filters in a run: each is requested once, recorded, and never computed again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

import instructgen
from instructgen import plugins
from instructgen.commands.generate import reopen, replayed
from instructgen.engines import Completion, Request, Sampling
from instructgen.generation.scoring import SCORE, ScoringEngine, read_score
from instructgen.plugins import find, load_plugin
from instructgen.schema.sample import Sample, Score
from instructgen.store import CompletionLine, IssueLine, Run, read_samples
from tests.test_loop import GENERAL, tree_digest

# A filter that depends on a file, as a filter of a model depends on the machine.
PLUGIN = """
from pathlib import Path
from instructgen.filters import ScoringFilter
from instructgen.schema.sample import Score

class Measured(ScoringFilter):
    name = "measured"
    folder: str
    label: str = "m"

    @property
    def score_name(self):
        return f"measured/{self.label}"

    def scores(self, samples):
        assert samples
        offset = int((Path(self.folder) / "offset").read_text())
        with (Path(self.folder) / f"log-{self.label}").open("a") as log:
            log.writelines(f"{sample.id}\\n" for sample in samples)
        return [self._score(sample, offset) for sample in samples]

    def _score(self, sample, offset):
        value = len(sample.output) % 7
        if value == 6:
            return Score(self.score_name, None, "six")
        return Score(self.score_name, float(value + offset))
"""


class Site:
    """A folder with the plug-in's file, its log and its offset, and recipes that use it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "measured.py").write_text(PLUGIN)
        load_plugin(folder / "measured.py")
        self.offset(0)

    def offset(self, number: int) -> None:
        """Make the filter return other scores."""
        (self.folder / "offset").write_text(str(number))

    def scored(self, label: str = "m") -> list[str]:
        """Return the ids of the rows whose scores were computed, in order."""
        path = self.folder / f"log-{label}"
        return path.read_text().split() if path.exists() else []

    def measured(self, **options: object) -> dict[str, Any]:
        return {"name": "measured", "folder": str(self.folder), "on_error": "reject", **options}

    def generate(self, out: Path, target: int = 12, *more: dict[str, Any], **options: Any) -> Any:
        filters = [
            {"name": "length"},
            {"name": "novelty"},
            self.measured(min=2, **options),
            *more,
            {"name": "instance"},
        ]
        recipe = {"engine": {"name": "echo"}, "filters": filters}
        return instructgen.generate(GENERAL, target, out, recipe=recipe)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(plugins, "_FROM_FILES", {})
    yield Site(tmp_path / "site")
    plugins.classes.cache_clear()


def requests_of(out: Path, label: str = "m") -> tuple[dict[int, IssueLine], dict[int, Completion]]:
    """Return the requests for scores in a run's journal, and their completions."""
    with Run.view(out) as run:
        lines = [line for _, line in run.lines()]
    stage = f"{SCORE}measured/{label}"
    issued = {line.n: line for line in lines if isinstance(line, IssueLine) and line.stage == stage}
    completed = [line for line in lines if isinstance(line, CompletionLine) and line.n in issued]
    assert len({line.n for line in completed}) == len(completed)
    return issued, {line.n: line.completion for line in completed}


def rows_of(out: Path) -> list[Sample]:
    return [*read_samples(out), *read_samples(out, "rejected")]


def test_each_row_that_reaches_the_filter_is_scored_once(site: Site, tmp_path: Path) -> None:
    result = site.generate(tmp_path / "run")
    issued, completed = requests_of(result.out)
    assert {line.role for line in issued.values()} == {"reward"}
    assert all(c.finish_reason == "stop" for c in completed.values())
    kept = list(read_samples(result.out))
    assert len(kept) == 12
    assert all(row.score("measured/m").value >= 2 for row in kept)
    scored = [row for row in rows_of(result.out) if row.score("measured/m") is not None]
    reasons = {r.reason: r.count for r in result.rejections if r.filter == "measured"}
    assert set(reasons) == {"too_low", "no_score"}
    assert len(scored) >= 12 + sum(reasons.values())
    # Every other row still waited for its score when the run ended.
    waiting = sum(r.count for r in result.rejections if r.reason == "not_scored")
    assert len(issued) == len(scored) + waiting
    assert len(scored) <= len(completed) <= len(site.scored()) <= len(issued)
    # The recorded scores are those of the rows.
    recorded = sorted(str(read_score(c, "measured/m")) for c in completed.values())
    remaining = [str(row.score("measured/m")) for row in scored]
    for text in remaining:
        recorded.remove(text)
    assert len(recorded) == len(completed) - len(scored)
    # Requests for scores are not completions of the model, but they are counted as requests.
    assert result.facts.requests > len(completed)


def test_rows_that_an_earlier_filter_rejects_are_not_scored(site: Site, tmp_path: Path) -> None:
    rejecting = {"name": "length", "min_words": 1000, "max_words": 2000}
    recipe = {
        "engine": {"name": "echo"},
        "method": {"name": "alpaca"},
        "generate": {"max_tokens_total": 20_000},
        "filters": [rejecting, site.measured()],
    }
    result = instructgen.generate(GENERAL, 5, tmp_path / "run", recipe=recipe)
    assert result.rows == 0
    assert result.facts.candidates > 10
    assert requests_of(result.out) == ({}, {})
    assert site.scored() == []


def test_a_second_filter_scores_what_the_first_one_keeps(site: Site, tmp_path: Path) -> None:
    result = site.generate(tmp_path / "run", 6, site.measured(label="n", max=4))
    for row in read_samples(result.out):
        assert 2 <= row.score("measured/m").value <= 4
        assert row.score("measured/n") == Score("measured/n", row.score("measured/m").value)
    first, second = requests_of(result.out, "m")[1], requests_of(result.out, "n")[1]
    values = [read_score(c, "").value for c in first.values()]
    assert 0 < len(second) <= sum(v is not None and v >= 2 for v in values)
    assert instructgen.rebuild(result.out).unchanged
    by = {(r.filter, r.reason) for r in result.rejections}
    assert {("measured", "too_low"), ("measured", "too_high")} <= by


def test_rebuild_and_resume_use_the_recorded_scores(site: Site, tmp_path: Path) -> None:
    out = site.generate(tmp_path / "run").out
    digest, scored = tree_digest(out), site.scored()
    site.offset(-100)
    rebuilt = instructgen.rebuild(out)
    resumed = site.generate(out)
    (out / "manifest.json").unlink()
    instructgen.rebuild(out)
    assert rebuilt.unchanged and resumed.unchanged
    assert (resumed.asked, resumed.rows) == (0, 12)
    assert tree_digest(out) == digest
    assert site.scored() == scored
    # Not even the file that the filter depends on is needed.
    (site.folder / "offset").unlink()
    assert instructgen.rebuild(out).unchanged
    written = instructgen.snapshot(out, tmp_path / "snapshot")
    assert list(read_samples(written.out)) == list(read_samples(out))


def truncated(out: Path, to: Path, lines: int) -> Path:
    """Copy a run as if it had been killed after a number of lines of its journal."""
    to.mkdir(parents=True)
    for name in ("run.json", "seeds.jsonl"):
        shutil.copy(out / name, to / name)
    whole = (out / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (to / "journal.jsonl").write_bytes(b"".join(whole[:lines]))
    return to


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.97])
def test_an_interrupted_run_asks_only_for_the_scores_that_are_not_recorded(
    site: Site, tmp_path: Path, share: float
) -> None:
    whole = site.generate(tmp_path / "whole").out
    computed = len(site.scored())
    length = len((whole / "journal.jsonl").read_bytes().splitlines())
    part = truncated(whole, tmp_path / "part" / "whole", round(share * length))
    recorded = requests_of(part)[1]
    site.generate(part)
    assert tree_digest(part) == tree_digest(whole)
    again = len(site.scored()) - computed
    assert len(requests_of(part)[1]) - len(recorded) <= again
    assert again <= len(requests_of(part)[0]) - len(recorded)


def test_a_resumed_run_keeps_recorded_scores_next_to_new_ones(site: Site, tmp_path: Path) -> None:
    whole = site.generate(tmp_path / "whole", 20).out
    length = len((whole / "journal.jsonl").read_bytes().splitlines())
    part = truncated(whole, tmp_path / "part", round(0.6 * length))
    before = requests_of(part)[1]
    assert before
    site.offset(100)
    site.generate(part, 20)
    after = requests_of(part)[1]
    assert {n: after[n] for n in before} == before
    values = [row.score("measured/m").value for row in read_samples(part)]
    assert min(values) < 100 < max(values)
    old = [read_score(c, "").value for c in before.values()]
    new = [read_score(c, "").value for n, c in after.items() if n not in before]
    assert all(v is None or v < 100 for v in old) and all(v is None or v >= 100 for v in new)
    assert instructgen.rebuild(part).unchanged


def test_a_run_whose_filter_failed_can_be_resumed(site: Site, tmp_path: Path) -> None:
    (site.folder / "offset").unlink()
    with pytest.raises(FileNotFoundError):
        site.generate(tmp_path / "a" / "run")
    issued, completed = requests_of(tmp_path / "a" / "run")
    assert issued and not completed
    site.offset(0)
    site.generate(tmp_path / "a" / "run")
    site.generate(tmp_path / "b" / "run")
    assert tree_digest(tmp_path / "a" / "run") == tree_digest(tmp_path / "b" / "run")


def test_scored_rows_are_explained(site: Site, tmp_path: Path) -> None:
    out = site.generate(tmp_path / "run").out
    kept = next(read_samples(out))
    explanation = instructgen.explain(out, kept.id)
    assert explanation.verdict == "kept"
    assert [w.stage for w in explanation.written] == ["instructions", "instances"]
    assert explanation.row["scores"][0]["name"] == "measured/m"
    with Run.view(out) as run:
        loop = replayed(run, reopen(run)).work
    rejected = next(r for r in loop.rejected if r.rejection.filter == "measured")
    # It is counted at the stage that wrote it.
    assert rejected.stage == "instances"
    explanation = instructgen.explain(out, rejected.id)
    assert (explanation.verdict, explanation.row["filter"]) == ("rejected", "measured")
    # Novelty and length evaluate instructions only.
    assert explanation.passed == ("instruction/length", "instruction/novelty")


def test_the_scoring_engine_scores_the_rows_of_several_filters_together(site: Site) -> None:
    kind = find("filters", "measured")
    filters = [kind(folder=str(site.folder), label=label) for label in "mn"]
    assert ScoringEngine.of([]) is None
    engine = ScoringEngine.of(filters)
    assert engine is not None and not engine.has_chat_template()
    rows = [Sample("Do", output="x" * n) for n in range(14)]
    requests = [
        Request(row.messages, Sampling(), role="reward", stage=f"{SCORE}measured/{label}", row=row)
        for row in rows
        for label in "mn"
    ]
    completions = engine.complete(requests)
    scores = [read_score(c, r.stage) for c, r in zip(completions, requests, strict=True)]
    assert [s.value for s in scores[::2]] == [None if n % 7 == 6 else n % 7 for n in range(14)]
    assert scores[12].error == "six"
    assert [s.value for s in scores[::2]] == [s.value for s in scores[1::2]]
    assert site.scored("m") == site.scored("n") == [row.id for row in rows]
    failed = read_score(Completion.failed("no memory"), "measured/m")
    assert failed == Score("measured/m", None, "no memory")
    assert orjson.loads(completions[0].text) == {"value": 0.0, "error": None}
