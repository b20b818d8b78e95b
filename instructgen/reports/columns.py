"""Counts values in a dataset's columns and draws a random sample of rows, in one pass.

A million rows are read in seconds with little memory: Arrow does the counting, and only the
sampled rows become Python objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from instructgen.schema.arrow import rows_in
from instructgen.store import read_batches, shape_of

# Matches a word in any writing system, in RE2 syntax. In those without spaces, every character
# counts as a word.
_WORD = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]|[\pL\pN\pM]+"
WORD_EDGES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
FIELDS = ("instruction", "input", "output")
REJECTED = "rejected"
_KEYS = ("source", "license", "language", "category", "kind")
_DRAWN = ("id", *FIELDS, *_KEYS)
_DECISION = ("stage", "filter", "reason", "detail", "score", "nearest")

Counts = npt.NDArray[np.int64]


@dataclass(slots=True)
class Columns:
    """Statistics of the accepted rows of a dataset.

    Attributes:
        rows: number of rows.
        by: number of rows for each combination of source, license, language, category and kind.
        words: for each field, the number of rows in each bin of word counts. `WORD_EDGES` are the
            bin edges. Preference datasets also have the field ``rejected``.
        drafts: number of rows by draft; -1 for rows that were not generated.
        drawn: a random sample of rows: those with the smallest IDs. IDs are digests, so the
            same dataset always has the same sample.
    """

    rows: int = 0
    by: Counter[tuple[str, ...]] = field(default_factory=Counter)
    words: dict[str, Counts] = field(default_factory=dict)
    drafts: Counter[int] = field(default_factory=Counter)
    drawn: list[dict[str, Any]] = field(default_factory=list)

    def counted(self, name: str) -> dict[str, int]:
        """Return the number of rows per value of a column, the most frequent value first."""
        counts: Counter[str] = Counter()
        for key, count in self.by.items():
            counts[key[_KEYS.index(name)]] += count
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def read_columns(folder: Path, draw: int) -> Columns:
    """Return the statistics of a dataset's rows.

    Args:
        folder: a complete dataset.
        draw: maximum number of rows to sample.
    """
    fields = (*FIELDS, REJECTED) if shape_of(folder) == "preferences" else FIELDS
    drawn = (*_DRAWN, *fields[len(FIELDS) :])
    columns = Columns(words={name: np.zeros(len(WORD_EDGES), np.int64) for name in fields})
    kept: list[dict[str, Any]] = []
    bound: str | None = None
    for batch in read_batches(folder, columns=[*drawn, "origin"]):
        if REJECTED in fields:
            batch = _with_text(batch)
        columns.rows += batch.num_rows
        _count_keys(columns.by, batch, _KEYS)
        for name in fields:
            columns.words[name] += word_classes(batch.column(name))
        columns.drafts.update(_drafts(batch))
        kept += _below(batch, bound, drawn)
        if len(kept) > 2 * draw:
            kept = _first(kept, draw)
            bound = kept[-1]["id"]
    columns.drawn = _first(kept, draw)
    return columns


def read_words(folder: Path) -> dict[str, Counts]:
    """Return, for each field, the number of rows per bin of word counts (edges: `WORD_EDGES`)."""
    counts = {name: np.zeros(len(WORD_EDGES), np.int64) for name in FIELDS}
    for batch in read_batches(folder, columns=[*FIELDS]):
        for name in FIELDS:
            counts[name] += word_classes(batch.column(name))
    return counts


def word_classes(texts: Any) -> Counts:
    """Return the number of texts in a column per bin of word counts (edges: `WORD_EDGES`)."""
    import pyarrow.compute as pc

    words = pc.count_substring_regex(texts, _WORD).fill_null(0).to_numpy(zero_copy_only=False)
    places = np.searchsorted(WORD_EDGES, words, side="right") - 1
    return np.bincount(places, minlength=len(WORD_EDGES)).astype(np.int64)


@dataclass(slots=True)
class Rejections:
    """Statistics of the rejected rows of a dataset.

    Attributes:
        by: number of rows for each combination of stage, filter, reason and source.
        drafts: number of rows by draft. Accepted instructions for which the run
            generated no rows (reason ``not_expanded``) are not counted.
        near: for each filter, the rejected rows whose scores are nearest to its thresholds.
    """

    by: Counter[tuple[str, ...]] = field(default_factory=Counter)
    drafts: Counter[int] = field(default_factory=Counter)
    near: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def read_rejections(folder: Path, thresholds: dict[str, Sequence[float]], most: int) -> Rejections:
    """Return the statistics of a dataset's rejected rows.

    Args:
        folder: a complete dataset.
        thresholds: the thresholds of each filter, by filter name.
        most: maximum number of rows near the thresholds, per filter.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    rejections = Rejections()
    names = ["stage", "filter", "reason", "source"]
    columns = [*_DECISION, "source", "instruction", "output", "origin"]
    for batch in read_batches(folder, "rejected", columns=columns):
        _count_keys(rejections.by, batch, names)
        expanded = batch.filter(pc.not_equal(batch.column("reason"), pa.scalar("not_expanded")))
        rejections.drafts.update(_drafts(expanded))
        for name, bounds in thresholds.items():
            rows = batch.filter(
                pc.and_(
                    pc.equal(batch.column("filter"), pa.scalar(name)),
                    pc.is_valid(batch.column("score")),
                )
            )
            if rows.num_rows:
                nearest = rejections.near.get(name, []) + rows.drop_columns("origin").to_pylist()
                nearest.sort(key=lambda r: min(abs(r["score"] - b) for b in bounds))
                rejections.near[name] = nearest[:most]
    return rejections


def _with_text(batch: Any) -> Any:
    """Replace the rejected answer, which is a list with one message, with the message's text."""
    import pyarrow as pa

    place = batch.schema.get_field_index(REJECTED)
    answers = rows_in(batch.select([REJECTED]))
    texts = [row[REJECTED][0]["content"] if row[REJECTED] else None for row in answers]
    return batch.set_column(place, REJECTED, pa.array(texts, pa.string()))


def _count_keys(counter: Counter[tuple[str, ...]], batch: Any, names: Sequence[str]) -> None:
    import pyarrow as pa

    grouped = pa.table({n: batch.column(n) for n in names}).group_by(list(names))
    for row in grouped.aggregate([([], "count_all")]).to_pylist():
        counter[tuple(str(row[n] or "none") for n in names)] += row["count_all"]


def _drafts(batch: Any) -> dict[int, int]:
    import pyarrow.compute as pc

    origin = batch.column("origin")
    # Before format 5, the column draft was named batch.
    name = "draft" if origin.type.get_field_index("draft") >= 0 else "batch"
    numbers = pc.fill_null(pc.struct_field(origin, name), -1)
    return {v["values"]: v["counts"] for v in pc.value_counts(numbers).to_pylist()}


def _below(batch: Any, bound: str | None, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    table = pa.table({n: batch.column(n) for n in names})
    if bound is not None:
        table = table.filter(pc.less_equal(table.column("id"), pa.scalar(bound)))
    yield from table.to_pylist()


def _first(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: str(row["id"]))[:count]
