"""The command `evaluate`: evaluates a model and, optionally, a second one on the same rows.

Each measure is reported with a confidence interval. With an output folder, what the models and
judges answer is recorded in it, so that an evaluation that is stopped continues.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import ValidationError

from instructgen.commands.derive import inputs_of, name_of
from instructgen.commands.interface import command
from instructgen.commands.options import EvaluateOptions
from instructgen.commands.recorded import recorded_answers, recorded_id
from instructgen.config import describe
from instructgen.engines import Completion, Engine, Request
from instructgen.errors import ConfigError, InputError
from instructgen.generation.options import lasting
from instructgen.generation.sequencer import answer_all
from instructgen.models.folders import model_digest, weights_digest
from instructgen.plugins import classes, find, provenance, suggest
from instructgen.reports.cards import estimated, table
from instructgen.schema.measures import EvaluationRecord, Measure
from instructgen.schema.progress import Progress, Watch
from instructgen.schema.sample import Sample
from instructgen.store import (
    InputRef,
    Provenance,
    digest_of,
    is_trained,
    read_training,
    splits_of,
    write_files,
)
from instructgen.versions import OF_MODELS, versions

if TYPE_CHECKING:
    from instructgen.evaluation.suites import Ask, Finding, Subject, Suite

_PLUGGED = ("sources", "suites", "verifiers", "engines")
_FILES = ("evaluation.json", "rows.jsonl", "evaluation.md", "evaluation.png")
_RECORDED = "journals"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of an evaluation: the measures, the files written, and notes.

    The notes state, for example, which split of a dataset was used and how many rows could not
    be evaluated.
    """

    model: str
    against: str | None
    measures: tuple[Measure, ...]
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()


@command(EvaluateOptions, "model")
def evaluate(options: EvaluateOptions, watch: Watch | None = None) -> Evaluation:
    """Evaluate a model on held-out rows, and optionally a second model on the same rows.

    With ``out``, the answers of the models and the verdicts of the judge are recorded in its folder
    ``journals``. The same call continues, and asks for no recorded answer again.

    Raises:
        InputError: the data contains no rows that a suite can use.
        ConfigError: an option or a model is invalid, or a required package is missing.
        EngineError: an engine cannot start.
        RunError: the output folder contains other files, or answers that were made differently.
        StorageError: the files cannot be written.
    """
    from instructgen.evaluation.suites import Subject
    from instructgen.training.options import PromptFormat
    from instructgen.training.policy import require_training_packages

    require_training_packages()
    rows, notes = _rows(options.data, options.limit)
    names = list(options.suites) or _fitting(rows)
    if not names:
        raise ConfigError(
            "--data and --suite are both missing.", "Pass --data=DATA, or --suite=lm-eval."
        )
    settings = dict(options.settings)
    if options.judge:
        settings["winrate.judge"] = options.judge
    suites = _suites(names, settings)
    prompt_format = PromptFormat(options.max_length, options.format, options.pad_token)
    if options.out is not None:
        write_files(options.out, {}, *_FILES, _RECORDED)
    subject = Subject(
        options.model,
        options.against,
        prompt_format,
        options.limit,
        options.seed,
        _asking(options, suites, watch),
    )
    findings = _findings(suites, subject, rows, watch)
    measures = tuple(finding.measure(name) for name, finding in findings)
    notes += _unmeasured(findings, rows)
    notes += _trained_on(subject.models, options.data)
    evaluation = Evaluation(options.model, options.against, measures, (), tuple(notes))
    if options.out is None:
        return evaluation
    return _written(options.out, evaluation, findings, options.data, subject)


def _asking(options: EvaluateOptions, suites: Sequence[Suite], watch: Watch | None) -> Ask:
    """Return the function that asks an engine for a suite, and records the completions."""
    models = [options.model, *([] if options.against is None else [options.against])]
    determining = {"limit", "max_length", "seed", "format", "pad_token"}
    determined = options.model_dump(mode="json", include=determining)
    settings = {suite.name: suite.model_dump(mode="json") for suite in suites}
    # With a higher limit, the new rows of one dataset follow the others.
    may_change = ("options.limit",) if len(options.data) == 1 else ()

    def ask(
        record: str, engine: Engine, requests: Sequence[Request], rows: Sequence[Sample]
    ) -> list[Completion]:
        if options.out is None:

            def report(done: int) -> None:
                if watch is not None:
                    watch(Progress(record, done, len(requests), "completions"))

            return answer_all(engine, requests, watch=report)
        # A judge's verdicts depend on the models whose answers it compares.
        asked = {engine.model, *(models if any(r.role != "writer" for r in requests) else ())}
        made_from = Provenance(
            "evaluate",
            inputs_of(options.data),
            {
                **determined,
                "engine": lasting(engine),
                "suite": settings[record.split("/")[0]],
            },
            models={name: weights_digest(name) for name in sorted(asked)},
            plugins=provenance(engines=[type(engine)]),
        )
        return recorded_answers(
            options.out / _RECORDED / record,
            engine,
            requests,
            rows,
            made_from,
            run=recorded_id(made_from, rows),
            may_change=may_change,
            watch=watch,
        )

    return ask


def _findings(
    suites: Sequence[Suite],
    subject: Subject,
    rows: Mapping[str, list[Sample]],
    watch: Watch | None,
) -> list[tuple[str, Finding]]:
    """Run all suites; return their measures, each with the name of its suite."""
    findings: list[tuple[str, Finding]] = []
    for number, suite in enumerate(suites):
        if watch is not None:
            watch(Progress(suite.name, number, len(suites), "suites"))
        suited = [] if suite.shape is None else rows.get(suite.shape, [])
        if suite.shape is not None and not suited:
            raise InputError(
                f"the suite {suite.name} requires {suite.shape}, which --data does not contain.",
                hint=f"Pass a dataset of {suite.shape} with --data=DATA.",
            )
        findings += [(suite.name, finding) for finding in suite.findings(subject, suited)]
    for name, finding in findings:
        if not finding.after.rows:
            raise InputError(
                f"the suite {name} cannot use any row: all rows are longer than --max-length "
                "tokens, or are unusable for another reason, such as an empty answer.",
                hint="Increase --max-length, or try a different --format.",
            )
    return findings


def _unmeasured(
    findings: Sequence[tuple[str, Finding]], rows: Mapping[str, list[Sample]]
) -> list[str]:
    """Return a note for each suite that could not use all rows, with the number of rows used."""
    notes = []
    for name, finding in findings:
        total = len(rows.get(find("suites", name).shape or "", ()))
        measured = len(finding.after.rows)
        if measured < total:
            notes.append(
                f"the suite {name} used {measured:,} of {total:,} rows; the others are longer than "
                "--max-length tokens, or unusable for another reason, such as an empty answer."
            )
    return notes


def _trained_on(models: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Return a warning for each evaluation dataset that one of the models was trained on."""
    notes = []
    for name in models:
        if not is_trained(Path(name)):
            continue
        trained = read_training(Path(name)).inputs.data.sha256
        for path in paths:
            splits = splits_of(path) if path.is_dir() else {}
            if digest_of(path) == trained and not {"test", "validation"} & splits.keys():
                notes.append(f"{name} was trained on rows of {path}, so its results are biased.")
    return notes


def _rows(paths: Sequence[Path], limit: int) -> tuple[dict[str, list[Sample]], list[str]]:
    """Return the rows by kind (instructions, preferences), and notes about the splits used."""
    from instructgen.training.rows import held_out_at, held_out_split

    rows: dict[str, list[Sample]] = {}
    notes = []
    for path in paths:
        samples = held_out_at(path)
        rows.setdefault(samples[0].shape, []).extend(samples[:limit])
        split = held_out_split(path)
        if split is not None:
            notes.append(f"{path}: {min(limit, len(samples)):,} of {len(samples):,} rows of the "
                         f"{split} split are used.")  # fmt: skip
    return rows, notes


def _fitting(rows: Mapping[str, Any]) -> list[str]:
    known = {"instructions": "likelihood", "preferences": "preference"}
    if unknown := [shape for shape in rows if shape not in known]:
        raise InputError(
            f"--data contains {unknown[0]}, for which there is no suite.",
            hint="Pass instruction rows or preference rows.",
        )
    return [known[shape] for shape in rows]


def _suites(names: Sequence[str], settings: Mapping[str, Any]) -> list[Suite]:
    values: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in settings.items():
        suite, _, option = key.rpartition(".")
        if suite not in classes("suites"):
            hint = suggest(suite, list(classes("suites")))
            raise ConfigError(f"--set={key}: unknown suite.", hint)
        if option not in find("suites", suite).model_fields:
            known = list(find("suites", suite).model_fields)
            raise ConfigError(f"--set={key}: unknown option.", suggest(option, known))
        if suite in values:
            values[suite][option] = value
    suites = []
    for name, options in values.items():
        try:
            suites.append(find("suites", name)(**options))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, (name, *first["loc"])))
            raise ConfigError(f"--set={where}: {describe(first)}") from None
    return suites


def _written(
    folder: Path,
    evaluation: Evaluation,
    findings: Sequence[tuple[str, Finding]],
    paths: Sequence[Path],
    subject: Subject,
) -> Evaluation:
    from instructgen.evaluation.plots import measures_plot
    from instructgen.evaluation.suites import named

    names = [named(name) for name in subject.models]
    record = EvaluationRecord(
        model=_reference(evaluation.model),
        against=None if evaluation.against is None else _reference(evaluation.against),
        data=tuple(name_of(p) for p in paths),
        format=subject.prompt_format.format,
        seed=subject.seed,
        measures=evaluation.measures,
        notes=evaluation.notes,
        versions=versions(OF_MODELS),
        # A suite may use engines, verifiers and formats, each of which may be a plug-in.
        plugins=provenance(**{group: classes(group).values() for group in _PLUGGED}),
    )
    contents = (
        record.to_json() + b"\n",
        b"\n".join(_row_lines(findings, names)) + b"\n",
        "\n".join(_table(evaluation, names)).encode(),
        measures_plot(evaluation.measures, names),
    )
    files = dict(zip(_FILES, contents, strict=True))
    write_files(folder, files, _RECORDED)
    return replace(evaluation, files=tuple(str(folder / name) for name in files))


def _reference(model: str) -> InputRef:
    return InputRef(model, model_digest(model))


def _row_lines(findings: Sequence[tuple[str, Finding]], names: Sequence[str]) -> list[bytes]:
    """Return a line of JSON for each combination of measure, model and row."""
    return [
        orjson.dumps(
            {
                "suite": suite,
                "measure": m.name,
                "model": name,
                "row": row,
                "part": part,
                "of": total,
            }
        )
        for suite, finding in findings
        for name, m in zip(names, (finding.after, finding.before), strict=False)
        if m is not None
        for row, part, total in zip(m.rows, m.parts, m.wholes, strict=True)
    ]


def _table(evaluation: Evaluation, names: Sequence[str]) -> list[str]:
    lines = [
        (
            m.measure,
            *(estimated(value) for value in (m.after, m.before, m.difference)),
            str(m.after.rows),
            m.better,
        )
        for m in evaluation.measures
    ]
    head = ("measure", names[0], names[1] if len(names) > 1 else "", "difference", "rows", "better")
    return [
        f"# {' against '.join(names)}",
        "",
        "The intervals are 95% bootstrap confidence intervals over rows. Both models are "
        "evaluated on the same rows.",
        "",
        *table(head, lines),
        "",
        *(f"- {note}" for note in evaluation.notes),
        "",
    ]
