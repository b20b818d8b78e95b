"""The command evaluate: what a model can do, beside another, in numbers with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import ValidationError

from instructgen.errors import ConfigError, InputError
from instructgen.models.folders import model_digest
from instructgen.plugins import classes, find, provenance, suggest
from instructgen.reports.cards import estimated, table
from instructgen.schema.progress import Progress, Watch
from instructgen.schema.sample import Sample
from instructgen.store import digest_of, is_trained, read_training, splits_of, write_files
from instructgen.versions import OF_MODELS, versions

if TYPE_CHECKING:
    from instructgen.evaluation.suites import Finding, Subject, Suite

_ROWS = 200
_PLUGGED = ("sources", "suites", "verifiers", "engines")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured: ``measures`` as plain data, each with its suite."""

    model: str
    against: str | None
    measures: list[dict[str, Any]]
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()


def evaluate(
    model: str,
    *,
    data: str | Path | Sequence[str | Path] = (),
    against: str | None = None,
    suites: Sequence[str] = (),
    judge: str = "",
    out: str | Path | None = None,
    format: str = "chat",
    pad_token: str | None = None,
    max_length: int = 1024,
    limit: int = _ROWS,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
) -> Evaluation:
    """Measure a model on rows that it was not trained on.

    Args:
        model: a folder, a Hub name, or ``smollm2``.
        data: datasets or files of rows; of a dataset that is split, the split ``test``,
            or else ``validation``.
        against: another model, measured on the same rows.
        suites: names; without any, ``likelihood`` for instructions and ``preference``
            for preferences.
        judge: for ``winrate``: a reward model, or a model to ask.
        out: a folder for evaluation.json, the rows' numbers, a table and a picture.
        format: how rows are put to the models: ``chat``, ``alpaca`` or ``dolly``.
        pad_token: for tokenizers without one.
        max_length: tokens of a row; longer ones are passed over.
        limit: rows of each dataset.
        seed: of constraints, sampling and few-shot examples.
        settings: of suites, as ``{"constraints.engine": "vllm"}``.
        watch: called with each suite.

    Raises:
        InputError: there are no rows for a suite.
        ConfigError: an option or a model is bad, or packages are missing.
        EngineError: an engine cannot start.
    """
    from instructgen.evaluation.measures import Framing
    from instructgen.evaluation.suites import Subject
    from instructgen.training.policy import needs_packages

    _check_sizes(limit, max_length)
    needs_packages()
    paths = [Path(p) for p in ([data] if isinstance(data, str | Path) else data)]
    rows = _rows(paths, limit)
    names = list(suites) or _fitting(rows)
    if not names:
        raise ConfigError("There is nothing to measure.", "Give --data, or --suite lm-eval.")
    given = dict(settings or {})
    if judge:
        given["winrate.judge"] = judge
    made = _suites(names, given)
    subject = Subject(model, against, Framing(max_length, format, pad_token), limit, seed)
    found = _found(made, subject, rows, watch)
    measures = [_measure(name, finding) for name, finding in found]
    evaluation = Evaluation(model, against, measures, (), _notes(subject.models, paths))
    if out is None:
        return evaluation
    return _written(Path(out), evaluation, found, paths, subject)


def _check_sizes(limit: int, max_length: int) -> None:
    if limit < 1 or max_length < 16:
        raise ConfigError(
            "--limit or --max-length is too small.", "Give 1 or more, and 16 or more."
        )


def _found(
    suites: Sequence[Suite],
    subject: Subject,
    rows: Mapping[str, list[Sample]],
    watch: Watch | None,
) -> list[tuple[str, Finding]]:
    """What the suites found, each with the suite's name."""
    found: list[tuple[str, Finding]] = []
    for number, suite in enumerate(suites):
        if watch is not None:
            watch(Progress(suite.name, number, len(suites), "suites"))
        wanted = [] if suite.shape is None else rows.get(suite.shape, [])
        if suite.shape is not None and not wanted:
            raise InputError(
                f"The suite {suite.name} wants {suite.shape}, and --data has none.",
                hint="Give a dataset of these.",
            )
        found += [(suite.name, finding) for finding in suite.findings(subject, wanted)]
    for name, finding in found:
        if not finding.after.rows:
            raise InputError(
                f"The suite {name} found no row that it can measure.",
                hint="See --max-length and --format.",
            )
    return found


def _notes(models: Sequence[str], paths: Sequence[Path]) -> tuple[str, ...]:
    """What a reader of the numbers has to know: rows that a model was trained on."""
    found = []
    for name in models:
        if not is_trained(Path(name)):
            continue
        trained = read_training(Path(name)).get("data", {}).get("sha256")
        for path in paths:
            splits = splits_of(path) if path.is_dir() else {}
            if digest_of(path) == trained and not {"test", "validation"} & splits.keys():
                found.append(f"{name} was trained on rows of {path}.")
    return tuple(found)


def _rows(paths: Sequence[Path], limit: int) -> dict[str, list[Sample]]:
    from instructgen.training.rows import held_out_at

    found: dict[str, list[Sample]] = {}
    for path in paths:
        samples = held_out_at(path)
        found.setdefault(samples[0].shape, []).extend(samples[:limit])
    return found


def _fitting(rows: Mapping[str, Any]) -> list[str]:
    known = {"instructions": "likelihood", "preferences": "preference"}
    return [known[shape] for shape in rows]


def _suites(names: Sequence[str], settings: Mapping[str, Any]) -> list[Any]:
    values: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in settings.items():
        suite, _, option = key.rpartition(".")
        if suite not in classes("suites"):
            raise ConfigError(f"{key}: no such suite.", suggest(suite, list(classes("suites"))))
        if option not in find("suites", suite).model_fields:
            known = list(find("suites", suite).model_fields)
            raise ConfigError(f"{key}: unknown option.", suggest(option, known))
        if suite in values:
            values[suite][option] = value
    made = []
    for name, options in values.items():
        try:
            made.append(find("suites", name)(**options))
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"{name}.{first['loc'][0]}: {first['msg']}.", "Mend it.") from None
    return made


def _measure(suite: str, finding: Any) -> dict[str, Any]:
    from instructgen.evaluation.measures import compared

    better = "higher" if finding.higher else "lower"
    return {
        "suite": suite,
        **compared(finding.after, finding.before),
        "better": better,
        **finding.facts,
    }


def _written(
    folder: Path, evaluation: Evaluation, found: Any, paths: Sequence[Path], subject: Any
) -> Evaluation:
    from instructgen.evaluation.plots import measures_plot
    from instructgen.evaluation.suites import named

    names = [named(name) for name in subject.models]
    lines = [
        orjson.dumps(
            {
                "suite": suite,
                "measure": m.name,
                "model": name,
                "row": row,
                "part": part,
                "of": whole,
            }
        )
        for suite, finding in found
        for name, m in zip(names, (finding.after, finding.before), strict=False)
        if m is not None
        for row, part, whole in zip(m.rows, m.parts, m.wholes, strict=True)
    ]
    record = {
        "model": {"name": evaluation.model, "digest": model_digest(evaluation.model)},
        "against": None
        if evaluation.against is None
        else {"name": evaluation.against, "digest": model_digest(evaluation.against)},
        "data": [p.name for p in paths],
        "format": subject.framing.format,
        "seed": subject.seed,
        "measures": evaluation.measures,
        "versions": versions(OF_MODELS),
        # Suites ask engines and verifiers, and read files, of which any may be of a plug-in.
        **provenance(**{group: classes(group).values() for group in _PLUGGED}),
    }
    files = {
        "evaluation.json": orjson.dumps(record, option=orjson.OPT_INDENT_2) + b"\n",
        "rows.jsonl": b"\n".join(lines) + b"\n",
        "evaluation.md": "\n".join(_table(evaluation, names)).encode(),
        "evaluation.png": measures_plot(evaluation.measures, names),
    }
    write_files(folder, files)
    return Evaluation(
        evaluation.model,
        evaluation.against,
        evaluation.measures,
        tuple(str(folder / name) for name in files),
        evaluation.notes,
    )


def _table(evaluation: Evaluation, names: Sequence[str]) -> list[str]:
    lines = []
    for m in evaluation.measures:
        cells = [estimated(m.get(key)) for key in ("after", "before", "difference")]
        lines.append((m["measure"], *cells, str(m["after"]["rows"]), m["better"]))
    head = ("measure", names[0], names[1] if len(names) > 1 else "", "difference", "rows", "better")
    return [
        f"# {' against '.join(names)}",
        "",
        "95% bootstrap intervals over rows; differences on the same rows.",
        "",
        *table(head, lines),
        "",
    ]
