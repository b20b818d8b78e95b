"""Rows to look at: on both sides of each threshold, and drawn at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instructgen.plugins import classes
from instructgen.reports.charts import number_text
from instructgen.reports.columns import FIELDS, REJECTED, Columns, Rejections
from instructgen.reports.html import Markup, element
from instructgen.reports.page import card, table, texts
from instructgen.schema.sample import Sample
from instructgen.similarity import RougeLIndex
from instructgen.store import is_run, read_info

# Of each filter, on the side of the rejected and on that of the kept.
BORDERLINE = 5
_COMPARED_WITH, _SHOWN, _TEXT, _SHORT = 20_000, 12, 2_000, 160
ANY_SIMILARITY = 1e-9


def thresholds_of(folder: Path) -> dict[str, Sequence[float]]:
    """Of a run's filters; a curated dataset has its own examples."""
    if not is_run(folder):
        return {}
    known, found = classes("filters"), {}
    for values in read_info(folder)["config"]["filters"]:
        options = {k: v for k, v in values.items() if k != "name"}
        if values["name"] in known and (
            bounds := known[values["name"]].model_validate(options).thresholds()
        ):
            found[values["name"]] = bounds
    return found


def borderline(
    folder: Path,
    manifest: Mapping[str, Any],
    thresholds: Mapping[str, Sequence[float]],
    rejections: Rejections,
    columns: Columns,
    seeds: Sequence[Sample],
) -> Markup | None:
    """Rows kept and rejected where a filter's verdict changes; None without any."""
    rows = [
        (e["filter"], e["side"], float(e["value"]), short(e["text"]))
        for e in manifest.get("borderline", ())
    ]
    for name, bounds in thresholds.items():
        rows += [
            (name, "rejected", r["score"], short(r["instruction"] or r["output"] or ""))
            for r in rejections.near.get(name, ())
        ]
        if name == "novelty":
            rows += _nearly_alike(columns, seeds, bounds[0])
    if not rows:
        return None
    rows.sort(key=lambda r: (r[0], r[1], r[2]))
    said = [(name, side, number_text(value), text) for name, side, value, text in rows]
    return card(
        "On both sides of each threshold",
        table(("filter", "side", "value", "row"), said),
        note="Rows kept and rejected that lie nearest to where a verdict changes; of a run, those "
        "kept are of 2,000 drawn evenly.",
    )


def _nearly_alike(
    columns: Columns, seeds: Sequence[Sample], threshold: float
) -> list[tuple[str, str, float, str]]:
    """The kept rows that are most like a seed or another kept row."""
    texts_ = [row["instruction"] for row in columns.drawn[:_COMPARED_WITH]]
    index = RougeLIndex(max(threshold - 0.3, ANY_SIMILARITY))
    index.add([s.instruction for s in seeds[:_COMPARED_WITH]])
    found = []
    # In their order, so that no text meets itself.
    for row, text in enumerate(texts_[:2_000]):
        (match,) = index.nearest([text])
        index.add([text])
        if match is not None and match.score <= threshold:
            found.append(("novelty", "kept", match.score, short(texts_[row])))
    return sorted(found, key=lambda r: -r[2])[:BORDERLINE]


def some_rows(columns: Columns) -> Markup | None:
    """A few whole rows, drawn evenly."""
    if not columns.drawn:
        return None
    shown = []
    for row in columns.drawn[:_SHOWN]:
        said = ", ".join(
            str(row[k]) for k in ("source", "license", "language", "category") if row[k]
        )
        names = [name for name in (*FIELDS, REJECTED) if name in row]
        fields = [(name, _cut(row[name] or "", _TEXT)) for name in names]
        shown.append(
            element(
                "div",
                element("p", f"{row['id']} · {said}", class_="dim"),
                texts(fields),
                class_="sample",
            )
        )
    return card("Rows drawn at random", *shown)


def short(text: str) -> str:
    """A text in one line, cut where it is long."""
    return _cut(" ".join(text.split()), _SHORT)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
