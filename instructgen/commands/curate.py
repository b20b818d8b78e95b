"""The command `curate`: applies a recipe's filters to one dataset.

Rows that all filters accept are kept. For every other row, the filter that rejected it and the
reason are recorded.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from instructgen.commands.derive import (
    Derived,
    Output,
    Written,
    check_separate,
    derive,
    inputs_of,
    readers_of,
    refs_of,
)
from instructgen.commands.interface import command
from instructgen.commands.options import CurateOptions
from instructgen.commands.recorded import recorded_answers, recorded_form, recorded_id
from instructgen.distributed.blocks import RayCluster
from instructgen.distributed.cluster import connected
from instructgen.engines import Engine
from instructgen.engines.supervisor import Supervisor
from instructgen.errors import ConfigError, InputError
from instructgen.filters import AskingFilter, Filter, ScoringFilter
from instructgen.filters.contamination import Contamination
from instructgen.filters.curation import Curation, Known, Report
from instructgen.filters.recipe import load_filters, recorded_filters
from instructgen.filters.score import ScoreFilter
from instructgen.generation.options import judged_by, lasting, load_judge
from instructgen.generation.scoring import ScoringEngine, read_score, score_request
from instructgen.models.folders import model_digest
from instructgen.plugins import provenance
from instructgen.reports.cards import table
from instructgen.reports.examples import BorderlineRow
from instructgen.schema.progress import Progress, Watch
from instructgen.schema.records import JsonRecord
from instructgen.schema.sample import Label, Rejected, Sample, Score
from instructgen.store import DatasetReader, Provenance, read_samples


@dataclass(frozen=True, slots=True)
class SourceRejections:
    """The number of rows of one source that a filter rejected for one reason."""

    filter: str
    reason: str
    source: str
    count: int


@dataclass(frozen=True, slots=True)
class CurateFacts(JsonRecord):
    """Facts about a curated dataset, for its manifest.

    ``filters`` are the names of the filters in the order in which they evaluated the rows.
    ``sources`` is the number of rows read from each source, ``edited`` the number of rows that
    each filter edited, and ``benchmarks`` the number of prompts in each benchmark file.
    """

    read: int
    filters: tuple[str, ...]
    sources: dict[str, int]
    by_source: tuple[SourceRejections, ...]
    edited: dict[str, int]
    benchmarks: dict[str, int]
    borderline: tuple[BorderlineRow, ...]


@command(CurateOptions, "data", "out")
def curate(options: CurateOptions, watch: Watch | None = None) -> Derived[CurateFacts]:
    """Keep the rows that all filters of a recipe accept.

    The filter ``contamination`` rejects rows that contain a benchmark prompt from the files in
    ``against``. If the recipe does not contain this filter, it is added before the others. A
    filter that asks a judge does so for the rows that the filters before it accept; the replies
    are recorded in the folder, so that each is paid for once, and so are the scores that decide
    which rows it is asked about.

    Raises:
        InputError: an input is invalid.
        ConfigError: the recipe is invalid, or a required package or the judge is missing.
        EngineError: the judge cannot continue; the same call resumes.
        RunError: the input is not a complete dataset, or the output folder contains other files
            or a dataset from different inputs or settings.
        StorageError: the files cannot be written.
    """
    source = options.data
    judge = _judge(options)

    def load() -> list[Filter]:
        loaded = load_filters(options.recipe)
        filters = _with_benchmarks(judged_by(loaded, judge) if judge else loaded, options.against)
        if options.pass_rate is None:
            return filters
        low, high = options.pass_rate
        return [ScoreFilter(of="pass_rate", min=low, max=high, on_error="reject"), *filters]

    filters = load()
    check_separate(options.out, [source])
    (reader,) = readers_of([source])
    benchmarks = [path for f in filters for path in f.files()]
    scored = [] if options.scores_from is None else [options.scores_from]
    recorded: dict[str, Any] = {
        "filters": [_without_paths(f) for f in recorded_filters(filters)],
        "against": [ref.to_dict() for ref in inputs_of(benchmarks)],
        "scores_from": [ref.to_dict() for ref in inputs_of(scored)],
        **({"judge": lasting(judge)} if judge else {}),
    }
    made_from = Provenance(
        "curate",
        refs_of([reader]),
        recorded,
        models=_models(filters),
        plugins=provenance(filters=map(type, filters), engines=[type(judge)] if judge else []),
    )

    def write(output: Output) -> Written[CurateFacts]:
        known = _known(scored, filters)
        if judge is not None:
            known = _judged(load, reader, known, judge, made_from, options.out, watch)
        with _curation(options, filters, known, reader, watch) as curation:
            facts = _write(output, curation, reader, watch)
        return Written(facts, _sections(facts), ", curated")

    return derive(options.out, made_from, reader.shape, CurateFacts, write, list(reader.splits))


@contextmanager
def _curation(
    options: CurateOptions,
    filters: list[Filter],
    known: dict[str, Known],
    reader: DatasetReader,
    watch: Watch | None,
) -> Iterator[Curation]:
    """Yield what applies the filters, in this process or on a Ray cluster."""
    if options.ray is None:
        yield Curation(filters, known, options.out)
        return
    from instructgen.distributed.curation import RayCuration

    with connected(options.ray, options.out) as ray:
        yield RayCuration(filters, known, options.out, RayCluster(ray), reader, watch)


def _judge(options: CurateOptions) -> Engine | None:
    """Return the engine that the filters of the recipe ask, or None if they ask none.

    Raises:
        ConfigError: the judge is missing, or is set and no filter asks it.
    """
    filters = load_filters(options.recipe)
    said = {
        "name": options.judge_engine, "model": options.judge, "endpoint": options.judge_endpoint
    }  # fmt: skip
    if not any(isinstance(f, AskingFilter) for f in filters):
        if any(said.values()):
            raise ConfigError(
                f"--judge: no filter of the recipe {options.recipe} asks a judge.",
                "Use --recipe=judged, or add the filter judge to the recipe.",
            )
        return None
    judge = load_judge(options.recipe, said, filters)
    if judge is None:
        raise ConfigError(
            f"the recipe {options.recipe} needs a judge.",
            "Pass --judge=MODEL, or add a table [judge] to the recipe.",
        )
    return judge


def _judged(
    load: Callable[[], list[Filter]],
    reader: DatasetReader,
    known: dict[str, Known],
    judge: Engine,
    made_from: Provenance,
    folder: Path,
    watch: Watch | None,
) -> dict[str, Known]:
    """Return what is known of the rows, with the scores of all filters that ask the judge.

    The scores of the filters before the last one of these are recorded too: computed again on
    another machine, one might decide differently, and the judge would be asked about other rows.

    Args:
        load: returns the filters of the recipe, without any rows that they remember.
    """
    filters = load()
    asking = [i for i, f in enumerate(filters) if isinstance(f, AskingFilter)]
    places = [i for i, f in enumerate(filters[: asking[-1] + 1]) if _computes(f)]
    supervisor = Supervisor(judge)
    try:
        for place in places:
            filters = load()
            f = filters[place]
            assert isinstance(f, ScoringFilter)
            order = Curation(filters).order
            before = order[: [each is f for each in order].index(True)]
            asked = _without_score(f, Curation(before, known, folder), reader)
            if not asked:
                continue
            tags: tuple[str, ...] = ()
            if isinstance(f, AskingFilter):
                journal = folder / ("judgments" if place == asking[0] else f"judgments-{place}")
                scored = _asked(f, asked, supervisor, made_from, journal, watch)
                tags = f.label_names()
            else:
                journal = folder / ("scores" if place == places[0] else f"scores-{place}")
                scored = _computed(f, asked, made_from, journal, watch)
            for row in scored:
                _learn(known, row.id, row.scores, [x for x in row.labels if x.name in tags])
    finally:
        supervisor.close()
    return known


def _computes(f: Filter) -> bool:
    return isinstance(f, ScoringFilter) and not isinstance(f, ScoreFilter)


def _without_score(f: ScoringFilter, curation: Curation, reader: DatasetReader) -> list[Sample]:
    """Return the rows that reach a filter and whose score is not known, each id once."""
    return list(
        {
            row.sample.id: row.sample
            for block in curation.blocks(reader.samples())
            for row in block.kept
            if not curation.knows(row.sample, f.score_name)
        }.values()
    )


def _asked(
    f: AskingFilter,
    rows: Sequence[Sample],
    supervisor: Supervisor,
    made_from: Provenance,
    journal: Path,
    watch: Watch | None,
) -> list[Sample]:
    """Return the rows with the scores that the judge gives them."""
    structured = recorded_form(journal).get("structured")
    if structured is None:
        structured = supervisor.judge_enforces_schemas()
    replies = recorded_answers(
        journal,
        supervisor,
        [f.request(row, structured=bool(structured)) for row in rows],
        rows,
        made_from,
        run=recorded_id(made_from, rows),
        form={"structured": structured},
        watch=watch,
    )
    return [f.read(row, reply) for row, reply in zip(rows, replies, strict=True)]


def _computed(
    f: ScoringFilter,
    rows: Sequence[Sample],
    made_from: Provenance,
    journal: Path,
    watch: Watch | None,
) -> list[Sample]:
    """Return the rows with the scores that the model of a filter gives them."""
    engine = ScoringEngine.of([f])
    assert engine is not None
    replies = recorded_answers(
        journal,
        engine,
        [score_request(f, row) for row in rows],
        rows,
        made_from,
        run=recorded_id(made_from, rows),
        watch=watch,
    )
    pairs = zip(rows, replies, strict=True)
    return [row.with_score(read_score(reply, f.score_name)) for row, reply in pairs]


def _with_benchmarks(filters: Sequence[Filter], files: Sequence[Path]) -> list[Filter]:
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


def _models(filters: Sequence[Filter]) -> dict[str, str]:
    """Return the digest of each scoring filter's model as a dict keyed by filter name."""
    scoring = [
        f.model_dump() | {"filter": f.name}
        for f in filters
        if isinstance(f, ScoringFilter) and not isinstance(f, AskingFilter)
    ]
    return {each["filter"]: model_digest(each["model"]) for each in scoring if "model" in each}


def _without_paths(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return a filter's settings without benchmark files, whose digests are recorded instead."""
    return {k: v for k, v in recorded.items() if k != "against"}


def _learn(
    known: dict[str, Known], row: str, scores: Sequence[Score], labels: Sequence[Label] = ()
) -> None:
    """Add scores and labels to what is known of a row."""
    before = known.get(row, Known(()))
    names = {score.name for score in before.scores}
    tags = {label.name for label in before.labels}
    known[row] = Known(
        (*before.scores, *(s for s in scores if s.name not in names)),
        (*before.labels, *(x for x in labels if x.name not in tags)),
    )


def _known(folders: Sequence[Path], filters: Sequence[Filter]) -> dict[str, Known]:
    tags = {name for f in filters if isinstance(f, AskingFilter) for name in f.label_names()}
    return {
        sample.id: Known(sample.scores, tuple(x for x in sample.labels if x.name in tags))
        for folder in folders
        for part in ("data", "rejected")
        for sample in read_samples(folder, part)
        if sample.scores
    }


def _write(
    output: Output, curation: Curation, reader: DatasetReader, watch: Watch | None
) -> CurateFacts:
    splits = reader.splits
    total = sum(splits.values())
    names, ends = list(splits), list(accumulate(splits.values()))
    kept_rows = 0
    for block in curation.blocks(_watched(reader.samples(), total, watch)):
        waiting: dict[str, list[Sample]] = {}
        for row in block.kept:
            waiting.setdefault(names[bisect_right(ends, row.place)], []).append(row.sample)
        for name, samples in waiting.items():
            output.keep(samples, name)
        kept_rows += len(block.kept)
        output.reject(
            [
                Rejected(r.sample, r.rejection, "curate", number)
                for number, r in enumerate(block.rejected, start=output.rejected)
            ]
        )
    _check_names(curation.report)
    curation.collect_borderline()
    if kept_rows + output.rejected != total:
        raise RuntimeError(
            f"{total} rows were read, but {kept_rows} were kept and {output.rejected} rejected. "
            "This is a bug; please report it."
        )
    return _facts(curation, total)


def _check_names(report: Report) -> None:
    """Raise InputError if a filter reads a score or label that no row has."""
    for (kind, name), found in report.found.items():
        if not found:
            known = sorted(report.names.get(kind, ()))
            raise InputError(
                f"the filter {kind} reads the {kind} {name!r}, which no row has. The rows have "
                f"these {kind}s: {', '.join(known) or 'none'}.",
                hint=f"Set the option of, or import the data with --map={kind}.{name}=FIELD.",
            )


def _watched(samples: Iterator[Sample], total: int, watch: Watch | None) -> Iterator[Sample]:
    for count, sample in enumerate(samples, start=1):
        if watch is not None and count % 1_000 == 0:
            watch(Progress("curate", count, total))
        yield sample


def _facts(curation: Curation, total: int) -> CurateFacts:
    report: Report = curation.report
    borderline = []
    for f in curation.order:
        kept, rejected = report.examples(f.name)
        for side, examples in (("kept", kept), ("rejected", rejected)):
            borderline += [BorderlineRow(f.name, side, e.value, e.text[:200]) for e in examples]
    searched: dict[str, int] = {}
    for f in curation.filters:
        if isinstance(f, Contamination):
            searched |= f.searched()
    return CurateFacts(
        read=total,
        filters=tuple(f.name for f in curation.order),
        sources=dict(sorted(report.read.items())),
        by_source=tuple(
            SourceRejections(*key, count) for key, count in sorted(report.rejected.items())
        ),
        edited={name: rows for name, rows in sorted(report.edited.items()) if rows},
        benchmarks=searched,
        borderline=tuple(borderline),
    )


def _sections(facts: CurateFacts) -> list[str]:
    edited = [(name, f"{rows:,}") for name, rows in facts.edited.items()]
    searched = [(name, f"{prompts:,}") for name, prompts in facts.benchmarks.items()]
    return [
        "## Funnel",
        "",
        "A row is rejected by the first filter that does not accept it. The rejected rows are in "
        "`rejected/`, each with the reason for its rejection and, if the filter computes them, its "
        "score and the ID of the most similar row.",
        "",
        *_funnel(facts),
        "",
        *(["## Edited rows", "", *table(("filter", "rows"), edited), ""] if edited else []),
        *(
            ["## Benchmark prompts", "", *table(("benchmark", "prompts"), searched), ""]
            if searched
            else []
        ),
        *_borderline(facts.borderline),
    ]


def _funnel(facts: CurateFacts) -> list[str]:
    sources, left = list(facts.sources), dict(facts.sources)
    lines = [("rows read", *(f"{left[s]:,}" for s in sources), f"{facts.read:,}")]
    reasons: dict[tuple[str, str], dict[str, int]] = {}
    for row in facts.by_source:
        reasons.setdefault((row.filter, row.reason), {})[row.source] = row.count
    for name in dict.fromkeys(facts.filters):
        for (filter_name, reason), counts in reasons.items():
            if filter_name == name:
                cells = (f"−{counts[s]:,}" if s in counts else "" for s in sources)
                lines.append((f"{name}: {reason}", *cells, f"−{sum(counts.values()):,}"))
                for source, count in counts.items():
                    left[source] -= count
    lines.append(("rows kept", *(f"{left[s]:,}" for s in sources), f"{sum(left.values()):,}"))
    return table(("filter: reason", *sources, "all"), lines)


def _borderline(examples: Sequence[BorderlineRow]) -> list[str]:
    if not examples:
        return []
    lines = [(e.filter, e.side, f"{e.value:.4g}", " ".join(e.text.split())[:100]) for e in examples]
    return ["## Rows near the thresholds", "", *table(("filter", "status", "value", "row"), lines)]
