"""Arrays for the ROUGE-L search: texts as word numbers, and blocks of texts of equal length.

A word number is the index of a word in the `Vocabulary` of all distinct words.
The search itself is explained in `instructgen.similarity.rouge`.
"""

from __future__ import annotations

import importlib
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# 64-bit integers per block. Its 8 KiB stay in the L1 cache while all queries are compared with it.
_BLOCK = 1024
# 64-bit integers in the widest bitmap, which is used for texts of more than 512 words.
_WIDEST = 64
_LENGTHS = np.clip(np.arange(16 * _WIDEST + 1), 32, None)
# By number of words, the number of 64-bit integers in a bitmap; longer texts have the widest. The
# widths are powers of two from 2 to 64. Up to 1,024 words, each word has at least 4 bits.
WIDTHS = (2 ** np.ceil(np.log2(_LENGTHS / 16))).astype(np.int64)


class Texts(NamedTuple):
    """Texts as word numbers in one array: text i is ``words[offsets[i]:offsets[i + 1]]``."""

    words: Array
    offsets: Array

    @property
    def lengths(self) -> Array:
        """The number of words of each text."""
        lengths: Array = self.offsets[1:] - self.offsets[:-1]
        return lengths


class Queries(NamedTuple):
    """Texts for which similar rows are searched, sorted by length, with bitmaps in several widths.

    Query i is ``words[offsets[i]:offsets[i + 1]]``, as in `Texts`. Its bitmaps begin at
    ``bits[starts[i]]``. The widest bitmap comes first and has ``widths[i]`` 64-bit integers. It
    is followed by the same bitmap folded to half the width (its halves combined with XOR), then to
    a quarter, and so on, down to two 64-bit integers. A row whose text has fewer than
    ``shortest[i]`` or more than ``longest[i]`` words cannot match query i.
    """

    words: Array
    offsets: Array
    bits: Array
    starts: Array
    widths: Array
    shortest: Array
    longest: Array


class Shelf(NamedTuple):
    """Blocks of indexed texts (rows), grouped by the number of words in the texts.

    The texts of group g have ``lengths[g]`` words and bitmaps of ``widths[g]`` 64-bit integers.
    They are stored in the blocks ``order[starts[g]:starts[g + 1]]``. Block b contains ``fill[b]``
    rows, whose row numbers ``rows[b]`` are in ascending order. The k-th integer of the bitmap of
    the j-th row of block b is ``bits[b, k * (_BLOCK // width) + j]``.
    """

    bits: Array
    rows: Array
    fill: Array
    lengths: Array
    widths: Array
    order: Array
    starts: Array


class Growing:
    """An array to which entries can be appended."""

    def __init__(self, array: Array) -> None:
        self._array, self._size = array, len(array)

    def __len__(self) -> int:
        return self._size

    @property
    def view(self) -> Array:
        """The current entries, as a view of the array and not a copy."""
        return self._array[: self._size]

    def extend(self, more: Array) -> None:
        """Append the entries of the array ``more``."""
        self.reserve(len(more))
        self._array[self._size - len(more) : self._size] = more

    def reserve(self, count: int) -> None:
        """Append ``count`` entries, which are 0 or have the values that `cut` removed earlier."""
        size = self._size + count
        if size > len(self._array):
            larger = np.zeros(
                (max(size, len(self._array) * 5 // 4), *self._array.shape[1:]), self._array.dtype
            )
            larger[: self._size] = self.view
            self._array = larger
        self._size = size

    def cut(self, size: int) -> None:
        """Shorten the array to ``size`` entries."""
        self._size = size


class Blocks:
    """Texts stored in blocks. All texts of a block have the same number of words; see `Shelf`."""

    def __init__(
        self,
        bits: Array | None = None,
        rows: Array | None = None,
        fill: Array | None = None,
        lengths: Array | None = None,
    ) -> None:
        """Create an object without rows, or restore one from the arrays that `arrays` returned."""
        self._bits = Growing(np.zeros((0, _BLOCK), np.uint64) if bits is None else bits)
        self._rows = Growing(np.zeros((0, _BLOCK // 2), np.int32) if rows is None else rows)
        self._fill = Growing(np.zeros(0, np.int32) if fill is None else fill)
        self._length = Growing(np.zeros(0, np.int32) if lengths is None else lengths)
        self.longest = int(self._length.view.max(initial=0))
        # The last block for each text length, the only one that may have room for more rows.
        self._last = {length: block for block, length in enumerate(self._length.view.tolist())}
        self._groups: tuple[Array, Array, Array, Array] | None = None

    def add(self, texts: Texts, first: int, vocabulary: int) -> None:
        """Append texts as rows ``first``, ``first + 1``, ... Texts without words are skipped."""
        order, lengths, begins, starts, bits = kernels().rows(*texts, WIDTHS, vocabulary)
        for begin, end in pairwise(begins.tolist()):
            length, start = int(lengths[begin]), int(starts[begin])
            width = int(WIDTHS[min(length, len(WIDTHS) - 1)])
            group = bits[start : start + (end - begin) * width].reshape(-1, width)
            self._put(length, width, group, first + order[begin:end])
            self.longest = max(self.longest, length)

    def _put(self, length: int, width: int, bits: Array, rows: Array) -> None:
        capacity, stored = _BLOCK // width, 0
        while stored < len(rows):
            block = self._last.get(length)
            if block is None or self._fill.view[block] == capacity:
                block = self._last[length] = len(self._fill)
                for array in (self._bits, self._rows, self._fill, self._length):
                    array.reserve(1)
                self._length.view[block] = length
                self._groups = None
            at = int(self._fill.view[block])
            size = min(capacity - at, len(rows) - stored)
            self._bits.view[block].reshape(width, capacity)[:, at : at + size] = bits[
                stored : stored + size
            ].T
            self._rows.view[block, at : at + size] = rows[stored : stored + size]
            self._fill.view[block] = at + size
            stored += size

    def arrays(self) -> tuple[Array, Array, Array, Array]:
        """Return the arrays from which `Blocks` can be restored: bits, rows, fill and lengths."""
        return self._bits.view, self._rows.view, self._fill.view, self._length.view

    def shelf(self) -> Shelf:
        """Return the blocks grouped by text length, in the form that the search functions take."""
        if self._groups is None:
            order = np.argsort(self._length.view, kind="stable")
            lengths, starts = np.unique(self._length.view[order], return_index=True)
            starts = np.append(starts, len(order))
            widths = WIDTHS[np.minimum(lengths, len(WIDTHS) - 1)]
            self._groups = (lengths.astype(np.int64), widths, order, starts)
        return Shelf(self._bits.view, self._rows.view, self._fill.view, *self._groups)


@cache
def kernels() -> Any:
    """Return the module `rouge_compiled`, or `rouge_fallback` if numba is missing or disabled."""
    from instructgen.similarity.jit import COMPILED

    name = "rouge_compiled" if COMPILED else "rouge_fallback"
    return importlib.import_module(f"instructgen.similarity.{name}")


def most_words(texts: Texts) -> int:
    """Return the number of words in the longest text, or 0 for an empty list of texts."""
    return int(texts.lengths.max(initial=0))


def pick(texts: Texts, order: Array) -> Texts:
    """Return the texts with the indices ``order``, in that order."""
    begins, ends = texts.offsets[order], texts.offsets[order + 1]
    offsets = np.zeros(len(order) + 1, np.int64)
    np.cumsum(ends - begins, out=offsets[1:])
    parts = [texts.words[a:b] for a, b in zip(begins.tolist(), ends.tolist(), strict=True)]
    return Texts(np.concatenate([texts.words[:0], *parts]), offsets)
