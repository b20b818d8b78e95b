"""Finds all pairs of near duplicates in a list of texts, with little memory.

`MinHashIndex` holds the words and the bands of all rows in memory, because rows are added to it
while it is searched. Here all texts are known before the search, so both are in temporary files,
and one band after the other is sorted: rows with an equal band are then neighbors. The pairs are
the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from instructgen.schema.progress import Progress, Watch
from instructgen.similarity.blocks import Array, Growing, Texts
from instructgen.similarity.matches import MAX_PAIRS, Pairs, check_count
from instructgen.similarity.minhash import PERMUTATIONS, RECALL, Signer
from instructgen.similarity.temporary import NumberFile, release_freed

_ROWS_READ = 512
_ROWS_AT_ONCE = 2**14
_PAIRS_AT_FIRST = 2**15


def minhash_pairs(
    columns: Sequence[Sequence[str]],
    threshold: float,
    folder: Path | None = None,
    watch: Watch | None = None,
) -> Pairs:
    """Return the pairs of a row and an earlier row that are similar in all columns.

    Two texts are similar if their Jaccard similarity is above the threshold, or both have no words.
    Candidates are found by the first column. A pair is found with a probability of at least 0.99.
    Its score is the lowest of the similarities, and is exact.

    Args:
        columns: the texts of each column, which are read once, in order. All have the same length.
        threshold: Jaccard similarity in (0, 1).
        folder: folder of the temporary files, which take about 1 KB per row.
        watch: function that is called with `Progress` events.

    Returns:
        The pairs, sorted by text and then by row; ``row`` is smaller than ``text``.

    Raises:
        InputError: there are more than 100 million pairs.
        StorageError: a temporary file cannot be written.
    """
    signer = Signer(threshold, 1, RECALL, PERMUTATIONS, "unicode")
    records, bands = NumberFile(np.int32, folder), NumberFile(np.int64, folder)
    ends, rows = Growing(np.zeros(1, np.int64)), len(columns[0])
    filled = np.zeros(rows, np.bool_)
    for start in range(0, rows, _ROWS_READ):
        sets = [signer.encode(column[start : start + _ROWS_READ]) for column in columns]
        data, lengths = _records(sets)
        records.extend(data)
        ends.extend(ends.view[-1] + np.cumsum(lengths))
        bands.extend(signer.keys(sets[0]).T)
        filled[start : start + _ROWS_READ] = np.diff(sets[0].offsets) > 0
        if watch is not None:
            watch(Progress("minhash", start + len(lengths), rows, "texts"))
    release_freed()
    codes, scores = np.zeros(0, np.int64), np.zeros(0)
    # A text without words matches nothing.
    search = _Search(signer, len(columns), records, ends.view, np.flatnonzero(filled))
    for band in range(signer.bands if rows else 0):
        for code, score in search.pairs(_column(bands, band, signer.bands, rows)):
            # Similar texts have several bands in common.
            codes, first = np.unique(np.concatenate([codes, code]), return_index=True)
            scores = np.concatenate([scores, score])[first]
            check_count(len(codes))
    return Pairs(codes >> 32, codes & 0xFFFFFFFF, scores)


def _records(sets: Sequence[Texts]) -> tuple[Array, Array]:
    """Return the word sets of each row, one after the other, and the length of each record.

    A record is the number of words in each column, followed by the words.
    """
    counts = np.stack([np.diff(s.offsets) for s in sets], axis=1)
    lengths = len(sets) + counts.sum(axis=1)
    data = np.empty(int(lengths.sum()), np.int32)
    begins = np.cumsum(lengths) - lengths
    data[begins[:, None] + np.arange(len(sets))] = counts
    begins = begins + len(sets)
    for k, s in enumerate(sets):
        shift = np.repeat(begins - s.offsets[:-1], counts[:, k])
        data[np.arange(len(s.words)) + shift] = s.words
        begins = begins + counts[:, k]
    return data, lengths


def _column(bands: NumberFile, band: int, count: int, rows: int) -> Array:
    """Return the key of one band for each row."""
    parts = [np.zeros(0, np.int64)]
    for start in range(0, rows, _ROWS_READ):
        size = min(_ROWS_READ, rows - start)
        begin = start * count + band * size
        parts.append(bands.read(begin, begin + size))
    return np.concatenate(parts)


class _Search:
    """Finds the similar pairs among rows with equal keys; ``rows`` are the rows to compare."""

    def __init__(
        self, signer: Signer, columns: int, records: NumberFile, ends: Array, rows: Array
    ) -> None:
        self._signer, self._columns = signer, columns
        self._records, self._ends, self._rows = records, ends, rows
        self._found = np.zeros((_PAIRS_AT_FIRST, 4), np.int64)

    def pairs(self, keys: Array) -> Iterator[tuple[Array, Array]]:
        """Yield pairs of rows, as ``text << 32 | row``, and their scores."""
        rows = self._rows[np.argsort(keys[self._rows], kind="stable")]
        keys = keys[rows]
        same = np.zeros(len(keys) + 1, np.bool_)
        same[1:-1] = keys[1:] == keys[:-1]
        shared = same[1:] | same[:-1]
        keys, rows = keys[shared], rows[shared]
        begins = np.flatnonzero(np.diff(keys, prepend=~keys[:1]) != 0)
        at = 0
        while at < len(keys):
            after = int(np.searchsorted(begins, at + _ROWS_AT_ONCE))
            end = int(begins[after]) if after < len(begins) else len(keys)
            yield self._among(keys[at:end], rows[at:end])
            at = end

    def _among(self, keys: Array, rows: Array) -> tuple[Array, Array]:
        p, q = self._signer.exact.numerator, self._signer.exact.denominator
        begins, ends = self._ends[rows], self._ends[rows + 1]
        data = [
            self._records.read(a, b) for a, b in zip(begins.tolist(), ends.tolist(), strict=True)
        ]
        offsets = np.cumsum(ends - begins) - (ends - begins)
        arguments = (keys, np.concatenate(data), offsets, self._columns, p, q)
        count = self._signer.kernels.groups(*arguments, self._found, MAX_PAIRS)
        if count > len(self._found):
            check_count(count)
            self._found = np.zeros((count, 4), np.int64)
            self._signer.kernels.groups(*arguments, self._found, MAX_PAIRS)
        later, earlier, common, either = self._found[:count].T
        return rows[later] << 32 | rows[earlier], common / either
