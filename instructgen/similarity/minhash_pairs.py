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
from instructgen.similarity.blocks import Array, Growing
from instructgen.similarity.matches import MAX_PAIRS, Pairs, check_count
from instructgen.similarity.minhash import PERMUTATIONS, RECALL, Signer
from instructgen.similarity.temporary import NumberFile, forget

_TEXTS_AT_ONCE = 2048
# The system maps 64 KiB around each place that is read, so few rows are read at once.
_ROWS_AT_ONCE = 2**11
_PAIRS_AT_FIRST = 2**15


def minhash_pairs(
    texts: Sequence[str],
    threshold: float,
    folder: Path | None = None,
    watch: Watch | None = None,
) -> Pairs:
    """Return the pairs of a text and an earlier text with a Jaccard similarity above a threshold.

    A pair is found with a probability of at least 0.99; its similarity is exact.

    Args:
        texts: the texts, which are read once, in order, and not held in memory.
        threshold: Jaccard similarity in (0, 1) above which a pair is returned.
        folder: folder of the temporary files, which take about 0.6 KB per text.
        watch: function that is called with `Progress` events.

    Returns:
        The pairs, sorted by text and then by row; ``row`` is smaller than ``text``.

    Raises:
        InputError: there are more than 100 million pairs.
        StorageError: a temporary file cannot be written.
    """
    signer = Signer(threshold, 1, RECALL, PERMUTATIONS, "unicode")
    words, bands = NumberFile(np.int32, folder), NumberFile(np.int64, folder)
    ends = Growing(np.zeros(1, np.int64))
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        sets = signer.encode(texts[start : start + _TEXTS_AT_ONCE])
        words.extend(sets.words)
        bands.extend(signer.keys(sets).T)
        ends.extend(sets.offsets[1:] + ends.view[-1])
        if watch is not None:
            watch(Progress("minhash", start + len(sets.offsets) - 1, len(texts), "texts"))
    found = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    mapped = words.mapped()
    for band in range(signer.bands if len(texts) else 0):
        keys = _column(bands, band, signer.bands, len(texts))
        found = _merged([found, *_pairs_of_a_band(signer, keys, mapped, ends.view)])
        check_count(len(found.text))
    return found


def _column(bands: NumberFile, band: int, count: int, rows: int) -> Array:
    """Return the key of one band for each row."""
    parts = [np.zeros(0, np.int64)]
    for start in range(0, rows, _TEXTS_AT_ONCE):
        size = min(_TEXTS_AT_ONCE, rows - start)
        begin = start * count + band * size
        parts.append(bands.read(begin, begin + size))
    return np.concatenate(parts)


def _pairs_of_a_band(signer: Signer, keys: Array, words: Array, ends: Array) -> Iterator[Pairs]:
    p, q = signer.exact.numerator, signer.exact.denominator
    # A text without words matches nothing.
    rows = np.flatnonzero(np.diff(ends) > 0)
    rows = rows[np.argsort(keys[rows], kind="stable")]
    keys = keys[rows]
    same = np.zeros(len(keys) + 1, np.bool_)
    same[1:-1] = keys[1:] == keys[:-1]
    shared = same[1:] | same[:-1]
    keys, rows = keys[shared], rows[shared]
    begins = np.flatnonzero(np.diff(keys, prepend=~keys[:1]) != 0)
    found = np.zeros((_PAIRS_AT_FIRST, 4), np.int64)
    at = 0
    while at < len(keys):
        after = int(np.searchsorted(begins, at + _ROWS_AT_ONCE))
        end = int(begins[after]) if after < len(begins) else len(keys)
        arguments = (keys[at:end], rows[at:end], words, ends, p, q)
        count = signer.kernels.groups(*arguments, found, MAX_PAIRS)
        if count > len(found):
            check_count(count)
            found = np.zeros((count, 4), np.int64)
            signer.kernels.groups(*arguments, found, MAX_PAIRS)
        text, row, common, either = found[:count].T
        yield Pairs(text, row, common / either)
        forget(words)
        at = end


def _merged(parts: Sequence[Pairs]) -> Pairs:
    """Return the pairs of all parts once, sorted by text and then by row."""
    text, row, score = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    _, first = np.unique(text << 32 | row, return_index=True)
    return Pairs(text[first], row[first], score[first])
