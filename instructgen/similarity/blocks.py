"""Texts as numbers, and rows of a search kept in blocks of one length.

What a search reads: see `instructgen.similarity.rouge` for what it does with it.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# 64-bit words of a block: 8 KiB, which stays in a core's first cache while queries pass.
_BLOCK = 1024
# 64-bit words of the widest bitmap, that of texts of more than 512 words.
_WIDEST = 64


class Texts(NamedTuple):
    """Texts as word numbers: text i is ``words[offsets[i]:offsets[i + 1]]``."""

    words: Array
    offsets: Array


class Queries(NamedTuple):
    """Texts to look up, in order of length, with their bitmaps at every width they need.

    The bitmaps of query i begin at ``starts[i]`` with the widest, of
    ``widths[i]`` 64-bit words, then that folded to a half, and so on down to 2.
    Rows of fewer words than ``shortest[i]`` or more than ``longest[i]`` cannot match.
    """

    words: Array
    offsets: Array
    bits: Array
    starts: Array
    widths: Array
    shortest: Array
    longest: Array


class Shelf(NamedTuple):
    """Blocks of rows, grouped by the rows' length.

    Group g holds rows of ``lengths[g]`` words, bitmaps of ``widths[g]`` 64-bit
    words, in the blocks ``order[starts[g]:starts[g + 1]]``. Block b has
    ``fill[b]`` rows, whose numbers ``rows[b]`` rise. Word k of the block's j-th
    bitmap is ``bits[b, k * (_BLOCK // width) + j]``.
    """

    bits: Array
    rows: Array
    fill: Array
    lengths: Array
    widths: Array
    order: Array
    starts: Array


class Growing:
    """An array that grows at its end."""

    def __init__(self, array: Array) -> None:
        self._array, self._size = array, len(array)

    def __len__(self) -> int:
        return self._size

    @property
    def view(self) -> Array:
        """What is in it, not a copy."""
        return self._array[: self._size]

    def extend(self, more: Array) -> None:
        """Append to it."""
        self.reserve(len(more))
        self._array[self._size - len(more) : self._size] = more

    def reserve(self, count: int) -> None:
        """Append ``count`` entries: zero, or what stood there before a `cut`."""
        size = self._size + count
        if size > len(self._array):
            larger = np.zeros(
                (max(size, len(self._array) * 5 // 4), *self._array.shape[1:]), self._array.dtype
            )
            larger[: self._size] = self.view
            self._array = larger
        self._size = size

    def cut(self, size: int) -> None:
        """Forget what stands beyond ``size``."""
        self._size = size


class Blocks:
    """Rows in blocks, each of one length; see `Shelf`."""

    def __init__(
        self,
        bits: Array | None = None,
        rows: Array | None = None,
        fill: Array | None = None,
        lengths: Array | None = None,
    ) -> None:
        """Empty, or with what `arrays` gave."""
        self._bits = Growing(np.zeros((0, _BLOCK), np.uint64) if bits is None else bits)
        self._rows = Growing(np.zeros((0, _BLOCK // 2), np.int32) if rows is None else rows)
        self._fill = Growing(np.zeros(0, np.int32) if fill is None else fill)
        self._length = Growing(np.zeros(0, np.int32) if lengths is None else lengths)
        self.longest = int(self._length.view.max(initial=0))
        # The block of every length that is not full yet.
        self._last = {length: block for block, length in enumerate(self._length.view.tolist())}
        self._groups: tuple[Array, Array, Array, Array] | None = None

    def add(self, texts: Texts, first: int, vocabulary: int) -> None:
        """Append texts as the rows from ``first`` on; one without words matches nothing."""
        order = by_length(texts)
        lengths = np.diff(texts.offsets)
        order = order[lengths[order] > 0]
        if not len(order):
            return
        chosen = pick(texts, order)
        lengths = lengths[order]
        widths = bitmap_widths(lengths)
        starts = np.cumsum(widths) - widths
        bits = np.zeros(int(widths.sum()), np.uint64)
        kernels().bitmaps(*chosen, widths, starts, bits, vocabulary)
        self.longest = max(self.longest, int(lengths[-1]))
        distinct, begins = np.unique(lengths, return_index=True)
        ends = [*begins[1:].tolist(), len(order)]
        for length, begin, end in zip(distinct.tolist(), begins.tolist(), ends, strict=True):
            width = int(widths[begin])
            start = int(starts[begin])
            group = bits[start : start + (end - begin) * width].reshape(-1, width)
            self._put(length, width, group, first + order[begin:end])

    def _put(self, length: int, width: int, bits: Array, rows: Array) -> None:
        capacity, done = _BLOCK // width, 0
        while done < len(rows):
            block = self._last.get(length)
            if block is None or self._fill.view[block] == capacity:
                block = self._last[length] = len(self._fill)
                for array in (self._bits, self._rows, self._fill, self._length):
                    array.reserve(1)
                self._length.view[block] = length
                self._groups = None
            at = int(self._fill.view[block])
            size = min(capacity - at, len(rows) - done)
            self._bits.view[block].reshape(width, capacity)[:, at : at + size] = bits[
                done : done + size
            ].T
            self._rows.view[block, at : at + size] = rows[done : done + size]
            self._fill.view[block] = at + size
            done += size

    def arrays(self) -> tuple[Array, Array, Array, Array]:
        """Bitmaps, row numbers, fill and length of all blocks: what makes these blocks again."""
        return self._bits.view, self._rows.view, self._fill.view, self._length.view

    def shelf(self) -> Shelf:
        """The blocks, as the search reads them."""
        if self._groups is None:
            order = np.argsort(self._length.view, kind="stable")
            lengths, starts = np.unique(self._length.view[order], return_index=True)
            starts = np.append(starts, len(order))
            self._groups = (lengths.astype(np.int64), bitmap_widths(lengths), order, starts)
        return Shelf(self._bits.view, self._rows.view, self._fill.view, *self._groups)


@cache
def kernels() -> Any:
    """The compiled search, or the one without numba where that is missing or switched off."""
    from instructgen.similarity.jit import COMPILED

    name = "rouge_compiled" if COMPILED else "rouge_fallback"
    return importlib.import_module(f"instructgen.similarity.{name}")


def bitmap_widths(lengths: Array) -> Array:
    """64-bit words of the bitmap of texts of these lengths: a power of two, 4 bits a word."""
    rough = np.clip(lengths, 32, 16 * _WIDEST) / 16
    widths: Array = (2 ** np.ceil(np.log2(rough))).astype(np.int64)
    return widths


def most_words(texts: Texts) -> int:
    """The words of the longest text; 0 where there is none."""
    return int(np.diff(texts.offsets).max(initial=0))


def by_length(texts: Texts) -> Array:
    """Their positions, shortest text first, in their order where equally long."""
    order: Array = np.argsort(np.diff(texts.offsets), kind="stable")
    return order


def pick(texts: Texts, order: Array) -> Texts:
    """These texts in this order."""
    lengths = np.diff(texts.offsets)[order]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    shift = np.repeat(texts.offsets[order] - offsets[:-1], lengths)
    return Texts(texts.words[np.arange(offsets[-1]) + shift], offsets)
