"""The chapters about a trained model and about an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from instructgen.errors import InputError, RunError
from instructgen.licensing.licenses import obligations
from instructgen.reports.charts import Series, intervals, lines, number_text
from instructgen.reports.html import Markup, element
from instructgen.reports.page import Chapter, card, figure, figures, listed, table, tiles
from instructgen.store import read_log, read_training

_CURVES = {
    "loss": "Loss",
    "mean_token_accuracy": "Share of tokens guessed",
    "reward": "Reward",
    "accuracy": "Pair accuracy",
    "rewards/accuracies": "Reward accuracy",
    "kl": "Divergence from the model it began as",
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm",
}
_POINTS = 400


def model_chapter(folder: Path, name: str) -> Chapter:
    """What a model was trained on and how, its curves, and what came of it.

    Raises:
        InputError: the training has not come to its end.
        RunError: it was not trained here.
    """
    run = read_training(folder)
    if run["status"] != "finished":
        raise InputError(
            "its training is not finished.", path=folder, hint="Give the train command again."
        )
    rows, tokens = run["rows"], run["supervised_tokens"]
    facts = [
        ("steps", f"{run['steps']:,}"),
        ("rows", f"{rows['train']:,}"),
        *([("supervised tokens", f"{tokens:,}")] if tokens is not None else []),
        ("seconds", f"{run['seconds']:,.0f}"),
        *([("tokens per second", f"{run['tokens_per_s']:,.0f}")] if run["tokens_per_s"] else []),
    ]
    left_out = rows["left_out"]
    terms = run["terms"]
    asked = obligations(terms["licenses"], terms["generators"], terms["attributions"])
    nodes = [
        tiles(facts),
        figures(
            *(_curve(read_log(folder), key, title) for key, title in _CURVES.items()),
            _measured(run, rows),
            card("Licences of the data", listed(asked), wide=False),
            card(
                "Rows left out, or cut",
                table(("reason", "rows"), [(r, f"{n:,}") for r, n in left_out.items()]),
                wide=False,
            )
            if left_out
            else None,
            card(
                "Options",
                table(
                    ("option", "value"),
                    [(k, _told(v)) for k, v in run["options"].items() if v is not None],
                ),
                wide=False,
            ),
        ),
    ]
    about = (
        f"{Path(run['base']).name}, trained by {run['method']} on {run['data']['name']}; "
        f"{run['options']['peft']} weights."
        if run["options"]["peft"] != "none"
        else f"{Path(run['base']).name}, trained by {run['method']} on {run['data']['name']}."
    )
    return Chapter(name, about, nodes)


def _curve(log: Sequence[Mapping[str, Any]], key: str, title: str) -> Markup | None:
    entries = [(e["step"], float(e[key])) for e in log if key in e and e[key] is not None]
    if len(entries) < 2:
        return None
    # Evenly thinned: a picture has no more points than it has places for.
    shown = entries[:: -(-len(entries) // _POINTS)]
    steps, values = [s for s, _ in shown], [v for _, v in shown]
    return figure(
        title,
        lines(steps, [Series(key, values)], "steps"),
        ("step", key),
        [(f"{s:,}", number_text(v)) for s, v in shown],
    )


def _measured(run: Mapping[str, Any], rows: Mapping[str, Any]) -> Markup | None:
    found = run["evaluation"] or {}
    measures = [m for m in (found, *found.values()) if isinstance(m, Mapping) and "measure" in m]
    if not measures:
        return None
    return element(
        "div",
        *(_measure(m, ("after", "before")) for m in measures),
        card(
            "Before and after",
            table(_HEAD, [_line(m) for m in measures]),
            note=f"On {rows['held_out']:,} rows held out ({rows['held_out_from']}); 95% "
            "bootstrap intervals over rows.",
        ),
        class_="wide",
    )


_HEAD = ("measure", "model", "beside", "difference", "rows")


def _line(m: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        m["measure"],
        *(_estimated(m.get(key)) for key in ("after", "before", "difference")),
        f"{m['after']['rows']:,}",
    )


def _estimated(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return ""
    return f"{value['value']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"


def _measure(m: Mapping[str, Any], names: Sequence[str]) -> Markup:
    shown = [
        (name, m[key])
        for name, key in zip(names, ("after", "before"), strict=False)
        if m.get(key) is not None
    ]
    return figure(
        m["measure"],
        intervals([n for n, _ in shown], [(v["value"], v["low"], v["high"]) for _, v in shown]),
        ("", "value", "low", "high"),
        [(n, *(f"{v[k]:.4f}" for k in ("value", "low", "high"))) for n, v in shown],
        f"{m['better']} is better" if "better" in m else "",
    )


def evaluation_chapter(folder: Path, name: str) -> Chapter:
    """The measures of an evaluation, each with its interval, and a table of all.

    Raises:
        RunError: evaluation.json is damaged.
    """
    path = folder / "evaluation.json"
    try:
        found = orjson.loads(path.read_bytes())
        return _evaluation(found, name)
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path} cannot be read ({error!r}).", "Run: instructgen evaluate."
        ) from error


def _evaluation(found: Mapping[str, Any], name: str) -> Chapter:
    names = [Path(found[k]["name"]).name for k in ("model", "against") if found[k] is not None]
    nodes = [
        figures(*(_measure(m, names) for m in found["measures"])),
        card(
            "All measures",
            table((*_HEAD, "better"), [(*_line(m), m["better"]) for m in found["measures"]]),
            note="95% bootstrap intervals over rows; differences on the same rows.",
        ),
    ]
    return Chapter(name, f"{' against '.join(names)}, on {', '.join(found['data'])}.", nodes)


def _told(value: Any) -> str:
    return number_text(value) if isinstance(value, float) else str(value)
