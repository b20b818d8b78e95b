"""One pass over a dataset's columns: counts of everything, and an even draw of whole rows.

Reads a million rows in seconds and small memory: Arrow counts, and only the rows drawn
become Python objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from instructgen.store import read_batches, shape_of

# Words of any script as RE2 knows them; what is written without spaces counts by character.
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
    """What a table of a dataset holds.

    Attributes:
        rows: how many.
        by: rows by source, licence, language, category and kind.
        words: rows by the number of words of each field, in the classes of `WORD_EDGES`;
            of preferences also of the rejected answer.
        batches: rows by the batch that wrote them; -1 where none did.
        drawn: rows drawn evenly, by their ids, which are digests: the same at every time.
    """

    rows: int = 0
    by: Counter[tuple[str, ...]] = field(default_factory=Counter)
    words: dict[str, Counts] = field(default_factory=dict)
    batches: Counter[int] = field(default_factory=Counter)
    drawn: list[dict[str, Any]] = field(default_factory=list)

    def counted(self, name: str) -> dict[str, int]:
        """Rows by one of the keys, the most frequent first."""
        found: Counter[str] = Counter()
        for key, count in self.by.items():
            found[key[_KEYS.index(name)]] += count
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def read_columns(folder: Path, draw: int) -> Columns:
    """The data of a dataset folder, counted.

    Args:
        folder: a complete dataset.
        draw: rows to draw.
    """
    fields = (*FIELDS, REJECTED) if shape_of(folder) == "preferences" else FIELDS
    drawn = (*_DRAWN, *fields[len(FIELDS) :])
    found = Columns(words={name: np.zeros(len(WORD_EDGES), np.int64) for name in fields})
    kept: list[dict[str, Any]] = []
    bound: str | None = None
    for batch in read_batches(folder, columns=[*drawn, "origin"]):
        if REJECTED in fields:
            batch = _with_text(batch)
        found.rows += batch.num_rows
        _count_keys(found.by, batch, _KEYS)
        for name in fields:
            found.words[name] += word_classes(batch.column(name))
        found.batches.update(_batches(batch))
        kept += _below(batch, bound, drawn)
        if len(kept) > 2 * draw:
            kept = _first(kept, draw)
            bound = kept[-1]["id"]
    found.drawn = _first(kept, draw)
    return found


def read_words(folder: Path) -> dict[str, Counts]:
    """The rows of a dataset folder by the number of words of each field, as `Columns.words`."""
    found = {name: np.zeros(len(WORD_EDGES), np.int64) for name in FIELDS}
    for batch in read_batches(folder, columns=[*FIELDS]):
        for name in FIELDS:
            found[name] += word_classes(batch.column(name))
    return found


def word_classes(texts: Any) -> Counts:
    """How many texts of an Arrow column have so many words, by the classes of `WORD_EDGES`."""
    import pyarrow.compute as pc

    words = pc.count_substring_regex(texts, _WORD).fill_null(0).to_numpy(zero_copy_only=False)
    places = np.searchsorted(WORD_EDGES, words, side="right") - 1
    return np.bincount(places, minlength=len(WORD_EDGES)).astype(np.int64)


@dataclass(slots=True)
class Rejections:
    """What a dataset's rejected rows say.

    Attributes:
        by: rows by stage, filter, reason and source.
        batches: rows by the batch that wrote them, but those that never had their turn.
        near: the rejected with a score, nearest to their filter's threshold, by filter.
    """

    by: Counter[tuple[str, ...]] = field(default_factory=Counter)
    batches: Counter[int] = field(default_factory=Counter)
    near: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def read_rejections(folder: Path, thresholds: dict[str, Sequence[float]], most: int) -> Rejections:
    """The rejected rows of a dataset folder, counted.

    Args:
        folder: a complete dataset.
        thresholds: by filter.
        most: rows to keep near the thresholds of each.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    found = Rejections()
    names = ["stage", "filter", "reason", "source"]
    columns = [*_DECISION, "source", "instruction", "output", "origin"]
    for batch in read_batches(folder, "rejected", columns=columns):
        _count_keys(found.by, batch, names)
        turned = batch.filter(pc.not_equal(batch.column("reason"), pa.scalar("not_expanded")))
        found.batches.update(_batches(turned))
        for name, bounds in thresholds.items():
            rows = batch.filter(
                pc.and_(
                    pc.equal(batch.column("filter"), pa.scalar(name)),
                    pc.is_valid(batch.column("score")),
                )
            )
            if rows.num_rows:
                some = found.near.get(name, []) + rows.drop_columns("origin").to_pylist()
                some.sort(key=lambda r: min(abs(r["score"] - b) for b in bounds))
                found.near[name] = some[:most]
    return found


def _with_text(batch: Any) -> Any:
    """Preferences with the rejected answer as text, in place of its list of one message."""
    import pyarrow.compute as pc

    place = batch.schema.get_field_index(REJECTED)
    text = pc.struct_field(pc.list_element(batch.column(place), 0), "content")
    return batch.set_column(place, REJECTED, text)


def _count_keys(counter: Counter[tuple[str, ...]], batch: Any, names: Sequence[str]) -> None:
    import pyarrow as pa

    grouped = pa.table({n: batch.column(n) for n in names}).group_by(list(names))
    for row in grouped.aggregate([([], "count_all")]).to_pylist():
        counter[tuple(str(row[n] or "none") for n in names)] += row["count_all"]


def _batches(batch: Any) -> dict[int, int]:
    import pyarrow.compute as pc

    numbers = pc.fill_null(pc.struct_field(batch.column("origin"), "batch"), -1)
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
