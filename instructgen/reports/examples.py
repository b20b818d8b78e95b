"""Example rows for the report: rows near each filter's threshold, and a random sample."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from instructgen.plugins import classes
from instructgen.reports.charts import number_text
from instructgen.reports.columns import FIELDS, REJECTED, Columns, Rejections
from instructgen.reports.html import Markup, element
from instructgen.reports.page import card, table, texts
from instructgen.schema.records import JsonRecord
from instructgen.schema.sample import Sample
from instructgen.similarity import RougeLIndex
from instructgen.store import Manifest, has_current_run, read_info

# Rows per filter on each side of the threshold: kept and rejected.
BORDERLINE = 5
_COMPARED_WITH, _SHOWN, _TEXT, _SHORT = 20_000, 12, 2_000, 160
ANY_SIMILARITY = 1e-9
# A larger number of tokens is not that of any run, and cannot be divided by a number of rows.
MOST_TOKENS = 2**63
TokenCount = Annotated[int, Field(ge=0, lt=MOST_TOKENS)]


@dataclass(frozen=True, slots=True)
class BorderlineRow:
    """A row whose score is near a filter's threshold; ``side`` is ``kept`` or ``rejected``."""

    filter: str
    side: str
    value: float
    text: str


@dataclass(frozen=True, slots=True)
class ShownFacts(JsonRecord):
    """The facts of a manifest that a report shows, of all that the commands write."""

    borderline: tuple[BorderlineRow, ...] = ()
    prompt_tokens: TokenCount = 0
    output_tokens: TokenCount = 0


def shown_facts(folder: Path, manifest: Manifest) -> ShownFacts:
    """Return the facts of a manifest that a report shows.

    Raises:
        DamagedFileError: a fact has the wrong type, or a number is out of range.
    """
    data = json.dumps(manifest.facts).encode()
    return ShownFacts.from_json(data, folder / "manifest.json")


def thresholds_of(folder: Path) -> dict[str, Sequence[float]]:
    """Return the thresholds of a run's filters by filter name; empty if the folder is not a run.

    A curated dataset needs no thresholds, because its manifest lists the rows near them.
    """
    if not has_current_run(folder):
        return {}
    known, thresholds = classes("filters"), {}
    filters: Any = read_info(folder).config["filters"]
    for values in filters:
        options = {k: v for k, v in values.items() if k != "name"}
        if values["name"] in known and (
            bounds := known[values["name"]].model_validate(options).thresholds()
        ):
            thresholds[values["name"]] = bounds
    return thresholds


def borderline(
    folder: Path,
    manifest: Manifest,
    thresholds: Mapping[str, Sequence[float]],
    rejections: Rejections,
    columns: Columns,
    seeds: Sequence[Sample],
) -> Markup | None:
    """Return HTML with the kept and rejected rows nearest to the thresholds, or None."""
    examples = shown_facts(folder, manifest).borderline
    rows = [(e.filter, e.side, e.value, short(e.text)) for e in examples]
    for name, bounds in thresholds.items():
        rows += [
            (name, "rejected", r["score"], short(r["instruction"] or r["output"] or ""))
            for r in rejections.near.get(name, ())
        ]
        if name == "novelty":
            rows += _most_similar_kept(columns, seeds, bounds[0])
    if not rows:
        return None
    rows.sort(key=lambda r: (r[0], r[1], r[2]))
    cells = [(name, side, number_text(value), text) for name, side, value, text in rows]
    return card(
        "Rows near the thresholds",
        table(("filter", "verdict", "value", "row"), cells),
        note="The kept and rejected rows whose values are nearest to a filter's threshold. For a "
        "generation run, the kept rows are chosen from a random sample of 2,000.",
    )


def _most_similar_kept(
    columns: Columns, seeds: Sequence[Sample], threshold: float
) -> list[tuple[str, str, float, str]]:
    """Return the kept rows that are most similar to a seed or to another kept row."""
    texts_ = [row["instruction"] for row in columns.drawn[:_COMPARED_WITH]]
    index = RougeLIndex(max(threshold - 0.3, ANY_SIMILARITY))
    index.add([s.instruction for s in seeds[:_COMPARED_WITH]])
    matches = []
    # A text is added after it is compared, so that it is not compared with itself.
    for row, text in enumerate(texts_[:2_000]):
        (match,) = index.nearest([text])
        index.add([text])
        if match is not None and match.score <= threshold:
            matches.append(("novelty", "kept", match.score, short(texts_[row])))
    return sorted(matches, key=lambda r: -r[2])[:BORDERLINE]


def some_rows(columns: Columns) -> Markup | None:
    """Return HTML with randomly sampled rows, or None if the dataset has no rows."""
    if not columns.drawn:
        return None
    shown = []
    for row in columns.drawn[:_SHOWN]:
        properties = ", ".join(
            str(row[k]) for k in ("source", "license", "language", "category") if row[k]
        )
        names = [name for name in (*FIELDS, REJECTED) if name in row]
        fields = [(name, _cut(row[name] or "", _TEXT)) for name in names]
        shown.append(
            element(
                "div",
                element("p", f"{row['id']} · {properties}", class_="dim"),
                texts(fields),
                class_="sample",
            )
        )
    return card("Random sample of rows", *shown)


def short(text: str) -> str:
    """Return a text on one line, truncated to 160 characters."""
    return _cut(" ".join(text.split()), _SHORT)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
