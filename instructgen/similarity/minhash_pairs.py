"""Finds all pairs of near duplicates in a list of texts, with little memory.

`MinHashIndex` holds the words and the bands of all rows in memory, because rows are added to it
while it is searched. Here all texts are known before the search, so both are in temporary files,
and one band after the other is sorted: rows with an equal band are then neighbors. The pairs are
the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    signer = signer_for(threshold)
    records, bands = NumberFile(np.int32, folder), NumberFile(np.int64, folder)
    ends, rows = Growing(np.zeros(1, np.int64)), len(columns[0])
    filled = np.zeros(rows, np.bool_)
    for start in range(0, rows, _ROWS_READ):
        sets = [signer.encode(column[start : start + _ROWS_READ]) for column in columns]
        data, lengths = records_of(sets)
        records.extend(data)
        ends.extend(ends.view[-1] + np.cumsum(lengths))
        bands.extend(signer.keys(sets[0]).T)
        filled[start : start + _ROWS_READ] = np.diff(sets[0].offsets) > 0
        if watch is not None:
            watch(Progress("minhash", start + len(lengths), rows, "texts"))
    release_freed()
    found, rows_with_words = FoundPairs(), np.flatnonzero(filled)

    def read(some: Array) -> tuple[Array, Array]:
        begin, end = ends.view[some], ends.view[some + 1]
        data = [records.read(a, b) for a, b in zip(begin.tolist(), end.tolist(), strict=True)]
        return np.concatenate(data), np.cumsum(end - begin) - (end - begin)

    search = PairSearch(signer, len(columns), read)
    for band in range(signer.bands if rows else 0):
        # A text without words matches nothing.
        keys = _column(bands, band, signer.bands, rows)[rows_with_words]
        for codes, scores in search.pairs(rows_with_words, keys):
            found.add(codes, scores)
    return found.pairs()


def signer_for(threshold: float) -> Signer:
    """Return what signs the texts that deduplication compares."""
    return Signer(threshold, 1, RECALL, PERMUTATIONS, "unicode")


def records_of(sets: Sequence[Texts]) -> tuple[Array, Array]:
    """Return the word sets of each row, one after the other, and the length of each record.

    A record is the number of words in each column, followed by the words.
    """
    counts = np.stack([np.diff(s.offsets) for s in sets], axis=1)
    lengths = len(sets) + counts.sum(axis=1)
    data = np.empty(int(lengths.sum()), sets[0].words.dtype)
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


class PairSearch:
    """Finds the similar pairs among rows that have a band in common.

    Args:
        signer: states what is similar.
        columns: the number of compared texts of a row.
        read: returns the records of rows, one after the other, and where each of them begins. A
            record is the number of words in each column, followed by the words in ascending order.
    """

    def __init__(
        self, signer: Signer, columns: int, read: Callable[[Array], tuple[Array, Array]]
    ) -> None:
        self._signer, self._columns, self._read = signer, columns, read
        self._found = np.zeros((_PAIRS_AT_FIRST, 4), np.int64)

    def pairs(self, rows: Array, keys: Array) -> Iterator[tuple[Array, Array]]:
        """Yield pairs of rows with equal keys, as ``text << 32 | row``, and their scores.

        Args:
            rows: numbers of rows, in ascending order among those with equal keys.
            keys: the key of each of them.
        """
        order = np.argsort(keys, kind="stable")
        rows, keys = rows[order], keys[order]
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
        records, begins = self._read(rows)
        arguments = (keys, records, begins, self._columns, p, q)
        count = self._signer.kernels.groups(*arguments, self._found, MAX_PAIRS)
        if count > len(self._found):
            check_count(count)
            self._found = np.zeros((count, 4), np.int64)
            self._signer.kernels.groups(*arguments, self._found, MAX_PAIRS)
        later, earlier, common, either = self._found[:count].T
        return rows[later] << 32 | rows[earlier], common / either


class FoundPairs:
    """Collects the pairs that `PairSearch` finds; similar texts have several bands in common."""

    def __init__(self) -> None:
        self._codes, self._scores = np.zeros(0, np.int64), np.zeros(0)

    def add(self, codes: Array, scores: Array) -> None:
        """Add pairs. Raise InputError if there are more than 100 million."""
        self._codes, first = np.unique(np.concatenate([self._codes, codes]), return_index=True)
        self._scores = np.concatenate([self._scores, scores])[first]
        check_count(len(self._codes))

    def pairs(self) -> Pairs:
        """Return all pairs, sorted by text and then by row."""
        return Pairs(self._codes >> 32, self._codes & 0xFFFFFFFF, self._scores)
