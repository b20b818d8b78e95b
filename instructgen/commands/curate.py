"""The command curate: one dataset in, what its recipe keeps out, every other row with a reason."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from instructgen.commands.derive import (
    Derived,
    Output,
    Written,
    check_apart,
    common_shape,
    derive,
    inputs_of,
)
from instructgen.filters import Filter, ScoringFilter
from instructgen.filters.contamination import Contamination
from instructgen.filters.curation import Curation, Report
from instructgen.filters.recipe import load_filters, recorded_filters
from instructgen.models.folders import model_digest
from instructgen.plugins import provenance
from instructgen.reports.cards import table
from instructgen.schema.progress import Progress, Watch
from instructgen.schema.sample import Rejected, Sample, Score
from instructgen.store import read_samples, splits_of


def curate(
    data: str | Path,
    out: str | Path,
    *,
    recipe: str | Path = "default",
    against: Sequence[str | Path] = (),
    scores_from: str | Path | None = None,
    watch: Watch | None = None,
) -> Derived:
    """Keep the rows that all filters of a recipe keep.

    Args:
        data: a dataset or run folder.
        out: a folder for the dataset. One made from the same is left as it is.
        recipe: a shipped name or a TOML file, of which [[filters]] counts.
        against: files of benchmark prompts; rows that hold one are rejected. For
            the recipe's filter ``contamination``, or one with its defaults, first.
        scores_from: a dataset that was curated before: its rows' scores, kept or
            rejected, are not computed again.
        watch: called with progress.

    Raises:
        InputError: an input is bad.
        ConfigError: the recipe is bad, or packages are missing.
        RunError: the input is no complete dataset, or ``out`` holds something else.
        StorageError: the disk refuses.
    """
    source, folder = Path(data), Path(out)
    filters = _against(load_filters(str(recipe)), against)
    given = inputs_of([source])
    check_apart(folder, [source])
    shape = common_shape([source])
    benchmarks = [path for f in filters for path in f.files()]
    scored = [] if scores_from is None else [Path(scores_from)]
    made = {
        "command": "curate",
        "inputs": given,
        "options": {
            "filters": [_without_paths(f) for f in recorded_filters(filters)],
            "against": inputs_of(benchmarks),
            "scores_from": inputs_of(scored),
        },
        **_models(filters),
        **provenance(filters=map(type, filters)),
    }
    splits = splits_of(source)

    def write(output: Output) -> Written:
        facts = _write(output, Curation(filters, _scores(scored)), source, splits, watch)
        return Written(facts, _sections(facts), ", curated")

    return derive(folder, made, shape, write, list(splits))


def _against(filters: Sequence[Filter], files: Sequence[str | Path]) -> list[Filter]:
    if not files:
        return list(filters)
    names = tuple(map(str, files))
    if not any(isinstance(f, Contamination) for f in filters):
        return [Contamination(against=names), *filters]
    return [
        f.model_copy(update={"against": (*f.against, *names)})
        if isinstance(f, Contamination)
        else f
        for f in filters
    ]


def _models(filters: Sequence[Filter]) -> dict[str, dict[str, str]]:
    """The models that filters score with: another in the same folder gives other scores."""
    scoring = [f.model_dump() | {"filter": f.name} for f in filters if isinstance(f, ScoringFilter)]
    found = {each["filter"]: model_digest(each["model"]) for each in scoring if "model" in each}
    return {"models": found} if found else {}


def _without_paths(recorded: dict[str, Any]) -> dict[str, Any]:
    """Where a benchmark lies is not what it says: its name and digest stand beside."""
    return {k: v for k, v in recorded.items() if k != "against"}


def _scores(folders: Sequence[Path]) -> dict[str, tuple[Score, ...]]:
    return {
        sample.id: sample.scores
        for folder in folders
        for part in ("data", "rejected")
        for sample in read_samples(folder, part)
        if sample.scores
    }


def _write(
    output: Output, curation: Curation, source: Path, splits: dict[str, int], watch: Watch | None
) -> dict[str, Any]:
    total = sum(splits.values())
    names, ends = list(splits), list(accumulate(splits.values()))
    kept_rows = 0
    for block in curation.blocks(_watched(read_samples(source), total, watch)):
        waiting: dict[str, list[Sample]] = {}
        for row in block.kept:
            waiting.setdefault(names[bisect_right(ends, row.place)], []).append(row.sample)
        for name, samples in waiting.items():
            output.keep(samples, name)
        kept_rows += len(block.kept)
        output.reject(
            [
                Rejected(d.sample, d.rejection, "curate", number)
                for number, d in enumerate(block.dropped, start=output.rejected)
            ]
        )
    curation.look_below()
    if kept_rows + output.rejected != total:
        raise RuntimeError(f"{total} rows read, {kept_rows} kept, {output.rejected} rejected")
    return {"read": total, **_reported(curation)}


def _watched(samples: Iterator[Sample], total: int, watch: Watch | None) -> Iterator[Sample]:
    for count, sample in enumerate(samples, start=1):
        if watch is not None and count % 1_000 == 0:
            watch(Progress("curate", count, total))
        yield sample


def _reported(curation: Curation) -> dict[str, Any]:
    report: Report = curation.report
    by_source = [
        {"filter": name, "reason": reason, "source": source, "count": count}
        for (name, reason, source), count in sorted(report.rejected.items())
    ]
    borderline = []
    for f in curation.order:
        kept, rejected = report.examples(f.name)
        for side, examples in (("kept", kept), ("rejected", rejected)):
            borderline += [
                {"filter": f.name, "side": side, "value": e.value, "text": e.text[:200]}
                for e in examples
            ]
    return {
        "by_source": by_source,
        "sources": dict(sorted(report.read.items())),
        "borderline": borderline,
        "filters": [f.name for f in curation.order],
    }


def _sections(facts: dict[str, Any]) -> list[str]:
    sources = list(facts["sources"])
    left = dict(facts["sources"])
    lines = [("rows read", *(f"{left[s]:,}" for s in sources), f"{facts['read']:,}")]
    reasons: dict[tuple[str, str], dict[str, int]] = {}
    for row in facts["by_source"]:
        reasons.setdefault((row["filter"], row["reason"]), {})[row["source"]] = row["count"]
    for name in dict.fromkeys(facts["filters"]):
        for (filter_name, reason), counts in reasons.items():
            if filter_name == name:
                lines.append(
                    (
                        f"{name}: {reason}",
                        *(f"−{counts[s]:,}" if s in counts else "" for s in sources),
                        f"−{sum(counts.values()):,}",
                    )
                )
                for s, count in counts.items():
                    left[s] -= count
    lines.append(("rows kept", *(f"{left[s]:,}" for s in sources), f"{sum(left.values()):,}"))
    return [
        "## Funnel",
        "",
        "The first filter that objects decides. Rejected rows are in `rejected/`, each with its "
        "reason, and with score and nearest row where the filter has them.",
        "",
        *table(("filter: reason", *sources, "all"), lines),
        "",
        *_borderline(facts["borderline"]),
    ]


def _borderline(examples: Sequence[dict[str, Any]]) -> list[str]:
    if not examples:
        return []
    lines = [
        (e["filter"], e["side"], f"{e['value']:.4g}", " ".join(e["text"].split())[:100])
        for e in examples
    ]
    return ["## Near the thresholds", "", *table(("filter", "side", "value", "row"), lines)]
