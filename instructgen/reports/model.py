"""Creates the chapters of a report about a trained model and about an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instructgen.errors import DamagedFileError, InputError, quoted
from instructgen.licensing.licenses import obligations
from instructgen.reports.cards import estimated
from instructgen.reports.charts import Series, intervals, lines, number_text
from instructgen.reports.html import Markup, element
from instructgen.reports.page import Chapter, card, figure, figures, listed, table, tiles
from instructgen.schema.measures import EvaluationRecord, Measure
from instructgen.store import TrainedRows, read_file, read_log, read_training

_CURVES = {
    "loss": "Loss",
    "mean_token_accuracy": "Mean token accuracy",
    "reward": "Reward",
    "accuracy": "Pair accuracy",
    "rewards/accuracies": "Reward accuracy",
    "kl": "KL divergence from the base model",
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm",
}
_POINTS = 400


def model_chapter(folder: Path, name: str) -> Chapter:
    """Return the chapter about a trained model: data, options, training curves and evaluation.

    Raises:
        InputError: the training run is not finished.
        RunError: the folder is not the output of the command `train`.
    """
    info = read_training(folder)
    if info.result is None:
        raise InputError(
            "the training run is not finished.",
            path=folder,
            hint="Rerun the same train command to resume.",
        )
    trained, options = info.result, info.inputs.options
    rows, tokens, terms = trained.rows, trained.supervised_tokens, trained.terms
    facts = [
        ("steps", f"{trained.steps:,}"),
        ("rows used", f"{rows.seen:,} of {rows.train:,}"),
        *([("supervised tokens", f"{tokens:,}")] if tokens is not None else []),
        ("seconds", f"{trained.seconds:,.0f}"),
        *([("tokens per second", f"{trained.tokens_per_s:,.0f}")] if trained.tokens_per_s else []),
    ]
    log = sorted(read_log(folder), key=lambda entry: entry["step"])
    sentences = obligations(terms.licenses, terms.generators, terms.attributions)
    values = [(k, _value_text(v)) for k, v in options.items() if v is not None]
    nodes = [
        tiles(facts),
        figures(
            *(_curve(log, folder / "log.jsonl", key, title) for key, title in _CURVES.items()),
            _measured(trained.evaluation, rows),
            card("Licenses of the training data", listed(sentences), wide=False),
            card(
                "Rejected or truncated rows",
                table(("reason", "rows"), [(r, f"{n:,}") for r, n in rows.rejected.items()]),
                wide=False,
            )
            if rows.rejected
            else None,
            card("Options", table(("option", "value"), values), wide=False),
        ),
    ]
    base, data, peft = Path(trained.base).name, info.inputs.data.name, options.get("peft", "none")
    adapters = f"; PEFT method {peft}" if peft != "none" else ""
    return Chapter(name, f"{base}, trained with {trained.trainer} on {data}{adapters}.", nodes)


def _curve(log: Sequence[Mapping[str, Any]], path: Path, key: str, title: str) -> Markup | None:
    entries = [(e["step"], _number(e, key, path)) for e in log if e.get(key) is not None]
    if len(entries) < 2:
        return None
    # Evenly thinned, because a chart is not wide enough to show more points.
    shown = entries[:: -(-len(entries) // _POINTS)]
    steps, values = [s for s, _ in shown], [v for _, v in shown]
    return figure(
        title,
        lines(steps, [Series(key, values)], "steps"),
        ("step", key),
        [(f"{s:,}", number_text(v)) for s, v in shown],
    )


def _number(entry: Mapping[str, Any], key: str, path: Path) -> float:
    if not isinstance(entry[key], int | float):
        where = f"step {entry['step']}: {key}"
        raise DamagedFileError(f"{where}: {quoted(entry[key])} is not a number.", path=path)
    return float(entry[key])


def _measured(measures: Sequence[Measure], rows: TrainedRows) -> Markup | None:
    if not measures:
        return None
    return element(
        "div",
        *(_measure(m, ("after", "before")) for m in measures),
        card(
            "Before and after",
            table(_HEAD, [_line(m) for m in measures]),
            note=f"On {rows.held_out:,} held-out rows (from {rows.held_out_from}), with 95% "
            "bootstrap intervals over rows.",
        ),
        class_="wide",
    )


_HEAD = ("measure", "model", "compared with", "difference", "rows")


def _line(m: Measure) -> tuple[str, ...]:
    values = (estimated(value) for value in (m.after, m.before, m.difference))
    return (m.measure, *values, f"{m.after.rows:,}")


def _measure(m: Measure, names: Sequence[str]) -> Markup:
    both = zip(names, (m.after, m.before), strict=False)
    shown = [(name, value) for name, value in both if value is not None]
    return figure(
        m.measure,
        intervals([n for n, _ in shown], [(v.value, v.low, v.high) for _, v in shown]),
        ("", "value", "low", "high"),
        [(n, *(f"{x:.4f}" for x in (v.value, v.low, v.high))) for n, v in shown],
        f"{m.better} is better" if m.better else "",
    )


def evaluation_chapter(folder: Path, name: str) -> Chapter:
    """Return the chapter about an evaluation: a figure per measure and a table of all measures.

    Raises:
        DamagedFileError: evaluation.json is damaged.
    """
    path = folder / "evaluation.json"
    try:
        data = read_file(path)
    except OSError as error:
        raise DamagedFileError(f"the file cannot be read ({error}).", path=path) from error
    record = EvaluationRecord.from_json(data, path)
    names = [Path(ref.name).name for ref in (record.model, record.against) if ref is not None]
    nodes = [
        figures(*(_measure(m, names) for m in record.measures)),
        card(
            "All measures",
            table((*_HEAD, "better"), [(*_line(m), m.better) for m in record.measures]),
            note="95% bootstrap intervals over rows. Differences are measured on the same rows.",
        ),
        *([card("Notes", listed(record.notes))] if record.notes else []),
    ]
    return Chapter(name, f"{' compared with '.join(names)}, on {', '.join(record.data)}.", nodes)


def _value_text(value: Any) -> str:
    return number_text(value) if isinstance(value, float) else str(value)
