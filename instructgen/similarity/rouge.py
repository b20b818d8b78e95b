"""An append-only index of texts that finds ROUGE-L matches exactly, and fast.

ROUGE-L's F-measure over tokens is 2*LCS/(m+n) (Lin 2004, with equal weight): a
pair matches when 2*LCS*q > p*(m+n) for the threshold p/q, in whole numbers. The
float F-measure calls 33 of 147 real pairs at exactly 7/10 "above 0.7".

Nothing is lost on the way to that decision. Every word and its k-th occurrence
in a text flips one bit of the text's bitmap. A word that only one of two texts
has flips at most one bit of difference, so two bitmaps differ in at most
m + n - 2*overlap bits, and no common subsequence is longer than the overlap.
With ``a`` the least LCS above the threshold, rows that differ in more than
m + n - 2a bits cannot match, nor can rows of whose length no ``a`` would do.
What is left, some rows of a million, gets a bit-parallel LCS.

Rows of one length stand together in blocks of 8 KiB, the first words of all
bitmaps of a block first: a block stays in cache while all queries pass it, and
several rows are compared by one vector instruction. A longer text has a wider
bitmap; a query's is folded to the width of the rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from instructgen.errors import InputError
from instructgen.similarity import files
from instructgen.similarity.blocks import (
    Array,
    Blocks,
    Growing,
    Queries,
    Texts,
    bitmap_widths,
    by_length,
    kernels,
    most_words,
    pick,
)
from instructgen.similarity.matches import Match, Pairs, check_count, joined
from instructgen.similarity.tokens import Tokenizer, Vocabulary

MOST_WORDS = 100_000
_TEXTS_AT_ONCE = 2048
_PAIRS_AT_FIRST = 2**15
# Row, LCS and both lengths together where nothing was found yet.
_NOTHING = np.array([0, 0, 1], np.int64)
_KIND = "ROUGE-L index 1"
T = TypeVar("T")


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """ROUGE-L's F-measure of two texts' words; 0 where there are none."""
    from rapidfuzz.distance import LCSseq

    return 2 * LCSseq.similarity(a, b) / max(len(a) + len(b), 1)


class RougeLIndex:
    """Texts seen so far, and the question whether a new one is too similar to any.

    Args:
        threshold: in (0, 1]; a pair matches when its F-measure is above it.
        tokenizer: ``unicode`` for words of any script, ``ascii`` for rouge-score's.
        compatible: ``rouge-score`` repeats that package's float comparison,
            which calls some pairs at exactly the threshold a match; by default
            the comparison is exact.
        threads: how many share a search of many texts; None for all cores.
            The results are the same.

    Raises:
        ValueError: the threshold is out of range.
    """

    def __init__(
        self,
        threshold: float = 0.7,
        tokenizer: Tokenizer = "unicode",
        compatible: Literal["rouge-score"] | None = None,
        threads: int | None = None,
    ) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must lie in (0, 1], not {threshold}")
        self.threshold = threshold
        self.tokenizer: Tokenizer = tokenizer
        self.compatible = compatible
        self.threads = threads or len(os.sched_getaffinity(0))
        self._exact = Fraction(str(threshold))
        self._vocabulary = Vocabulary()
        self._need = np.zeros(0, np.int64)
        self._words = Growing(np.zeros(0, np.int32))
        self._offsets = Growing(np.zeros(1, np.int64))
        self._blocks = Blocks()

    def __len__(self) -> int:
        """The number of rows, which is also the next text's row."""
        return len(self._offsets) - 1

    def add(self, texts: Sequence[str]) -> None:
        """Append texts; each becomes the next row.

        Raises:
            InputError: a text has more than 100,000 words. Nothing is appended then.
        """
        self._append(self._encode(texts))

    def nearest(self, texts: Sequence[str]) -> list[Match | None]:
        """For each text its best match above the threshold, or None.

        Of equally good matches the first row wins. An empty text matches nothing.

        Raises:
            InputError: a text has more than 100,000 words.
        """
        found: list[Match | None] = []
        for at in range(0, len(texts), _TEXTS_AT_ONCE):
            part = self._encode(texts[at : at + _TEXTS_AT_ONCE], at)
            order = by_length(part)
            best = self._search(self._queries(part, order))
            found += self._matches(part, order, best)
        return found

    def pairs(self, texts: Sequence[str]) -> Pairs:
        """Every row that a text matches, with its F-measure, in order of text and row.

        Raises:
            InputError: a text has more than 100,000 words, or there are more
                than 100 million pairs.
        """
        found: list[Pairs] = []
        for at in range(0, len(texts), _TEXTS_AT_ONCE):
            part = self._encode(texts[at : at + _TEXTS_AT_ONCE], at)
            order = by_length(part)
            query, row, lcs, both = self._search_all(self._queries(part, order)).T
            scores = self._f_measure(lcs, both, np.diff(part.offsets)[order][query])
            found.append(Pairs(at + order[query], row, scores))
            check_count(sum(len(p.text) for p in found))
        return joined(found)

    def gate(self, texts: Sequence[str]) -> tuple[list[int], list[tuple[int, Match]]]:
        """Self-Instruct's rule: keep each text in turn unless it matches a row or a kept text.

        Kept texts become rows.

        Returns:
            Positions of the kept texts, and (position, match) of the rejected.

        Raises:
            InputError: a text has more than 100,000 words. Those before its
                block of 2,048 are decided then.
        """
        kept: list[int] = []
        rejected: list[tuple[int, Match]] = []
        for at in range(0, len(texts), _TEXTS_AT_ONCE):
            part = self._encode(texts[at : at + _TEXTS_AT_ONCE], at)
            order, base = by_length(part), len(self)
            queries = self._queries(part, order)
            best = self._search(queries)
            alive = np.zeros(len(order), np.bool_)
            places = np.argsort(order)
            blocks = Blocks()
            blocks.add(part, 0, len(self._vocabulary))
            kernels().gate(
                places,
                base,
                tuple(queries),
                tuple(blocks.shelf()),
                tuple(part),
                self._need,
                self._float_threshold,
                best,
                alive,
                len(self._vocabulary),
                most_words(part),
            )
            # Rows of this part were named by their position; kept ones move up.
            row_of = base + np.cumsum(alive) - 1
            ours = best[:, 0] >= base
            best[ours, 0] = row_of[best[ours, 0] - base]
            for position, match in enumerate(self._matches(part, order, best)):
                if match is None:
                    kept.append(at + position)
                else:
                    rejected.append((at + position, match))
            self._append(pick(part, np.flatnonzero(alive)))
        return kept, rejected

    def save(self, path: str | Path) -> None:
        """Write the index to one file, which `open` maps into memory.

        Raises:
            OSError: the disk refuses; a file that was there is as it was.
        """
        settings = {
            "threshold": self.threshold,
            "tokenizer": self.tokenizer,
            "compatible": self.compatible,
        }
        arrays = (self._words.view, self._offsets.view, *self._blocks.arrays())
        files.write(path, _KIND, settings, [*arrays, self._vocabulary.packed()])

    @classmethod
    def open(cls, path: str | Path, threads: int | None = None) -> RougeLIndex:
        """An index that `save` wrote. What is added to it later does not change the file.

        Raises:
            InputError: the file is no such index, or not whole.
            OSError: it cannot be read.
        """
        settings, arrays = files.read(path, _KIND)
        words, offsets, bits, rows, fill, lengths, vocabulary = arrays
        index = cls(**settings, threads=threads)
        index._words, index._offsets = Growing(words), Growing(offsets)
        index._blocks = Blocks(bits, rows, fill, lengths)
        index._vocabulary = Vocabulary.unpacked(vocabulary)
        return index

    # -- inside ---------------------------------------------------------------------------

    @property
    def _float_threshold(self) -> float:
        return self.threshold if self.compatible else 0.0

    def _encode(self, texts: Sequence[str], first: int = 0) -> Texts:
        encoded = Texts(*self._vocabulary.encode(texts, self.tokenizer))
        lengths = np.diff(encoded.offsets)
        if len(lengths) and lengths.max() > MOST_WORDS:
            position = int(lengths.argmax())
            raise InputError(
                f"text {first + position} has {lengths[position]:,} words; "
                f"at most {MOST_WORDS:,} can be compared.",
                hint="Cut it, or leave it out.",
            )
        return encoded

    def _append(self, texts: Texts) -> None:
        self._blocks.add(texts, len(self), len(self._vocabulary))
        start = self._offsets.view[-1]
        self._words.extend(texts.words)
        self._offsets.extend(start + texts.offsets[1:])

    def _least(self, longest: int) -> None:
        """Know the least LCS of a match for every sum of two lengths up to ``2 * longest``."""
        p, q, known = self._exact.numerator, self._exact.denominator, len(self._need)
        if known > 2 * longest:
            return
        sums = range(known, max(2 * longest + 1, 2 * known, 1024))
        if self.compatible:
            # Floats may differ where the exact value lies on the threshold.
            least = [-(-p * s // (2 * q)) for s in sums]
        else:
            least = [p * s // (2 * q) + 1 for s in sums]
        self._need = np.concatenate([self._need, np.array(least, np.int64)])

    def _queries(self, texts: Texts, order: Array) -> Queries:
        sorted_ = pick(texts, order)
        lengths = np.diff(sorted_.offsets)
        self._least(max(most_words(texts), self._blocks.longest))
        p, q = self._exact.numerator, self._exact.denominator
        # Between these a row is long enough, and short enough, to match at all.
        distinct, where = np.unique(lengths, return_inverse=True)
        shortest = np.array([-(-int(m) * p // (2 * q - p)) for m in distinct], np.int64)[where]
        longest = np.array(
            [min(int(m) * (2 * q - p) // p, MOST_WORDS) for m in distinct], np.int64
        )[where]
        widths = bitmap_widths(np.minimum(longest, max(self._blocks.longest, most_words(texts))))
        sizes = 2 * widths - 2
        starts = np.cumsum(sizes) - sizes
        bits = np.zeros(int(sizes.sum()), np.uint64)
        kernels().bitmaps(*sorted_, widths, starts, bits, len(self._vocabulary))
        for width in np.unique(widths).tolist():
            some = starts[widths == width]
            while width > 2:
                half = width // 2
                at = some[:, None] + np.arange(half)
                bits[at + width] = bits[at] ^ bits[at + half]
                some, width = some + width, half
        return Queries(*sorted_, bits, starts, widths, shortest, longest)

    def _search(self, queries: Queries) -> Array:
        """Row, LCS and both lengths together of each query's best match; LCS 0 for none."""
        best = np.tile(_NOTHING, (len(queries.widths), 1))
        none = np.zeros((0, 4), np.int64)

        def work(share: Array) -> None:
            found = best[share]
            self._run(_some(queries, share), found, none)
            best[share] = found

        self._shared(work, len(best))
        return best

    def _search_all(self, queries: Queries) -> Array:
        """Query, row, LCS and both lengths together of every pair that matches."""

        def work(share: Array) -> Array:
            part, best = _some(queries, share), np.tile(_NOTHING, (len(share), 1))
            pairs = np.zeros((_PAIRS_AT_FIRST, 4), np.int64)
            count = self._run(part, best, pairs)
            if count > len(pairs):
                check_count(count)
                pairs = np.zeros((count, 4), np.int64)
                self._run(part, best, pairs)
            pairs = pairs[:count]
            pairs[:, 0] = share[pairs[:, 0]]
            return pairs

        return np.concatenate(self._shared(work, len(queries.widths)))

    def _run(self, queries: Queries, best: Array, pairs: Array) -> int:
        texts = (self._words.view, self._offsets.view)
        found: int = kernels().search(
            tuple(queries),
            tuple(self._blocks.shelf()),
            texts,
            self._need,
            self._float_threshold,
            best,
            pairs,
            len(self._vocabulary),
            self._blocks.longest,
        )
        return found

    def _shared(self, work: Callable[[Array], T], count: int) -> list[T]:
        """Work on shares of ``count`` queries, each in a thread."""
        threads = max(min(self.threads, count // 64), 1)
        # Every n-th query: lengths, and so the work, are alike for all.
        shares = [np.arange(i, count, threads) for i in range(threads)]
        if threads == 1:
            return [work(shares[0])]
        # Made once, not by two threads at a time.
        self._blocks.shelf()
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, shares))

    def _matches(self, texts: Texts, order: Array, best: Array) -> list[Match | None]:
        found: list[Match | None] = [None] * len(order)
        lengths = np.diff(texts.offsets)
        for place in np.flatnonzero(best[:, 1]).tolist():
            position = int(order[place])
            row, lcs, both = best[place].tolist()
            score = self._f_measure(lcs, both, int(lengths[position]))
            found[position] = Match(score, row)
        return found

    def _f_measure(self, lcs: Any, both: Any, m: Any) -> Any:
        """Of numbers or arrays: a common subsequence, both lengths together, and the text's."""
        if not self.compatible:
            return 2 * lcs / both
        precision, recall = lcs / m, lcs / (both - m)
        return 2 * precision * recall / (precision + recall)


def _some(queries: Queries, share: Array) -> Queries:
    if len(share) == len(queries.widths):
        return queries
    words = pick(Texts(queries.words, queries.offsets), share)
    rest = (queries.starts, queries.widths, queries.shortest, queries.longest)
    starts, widths, shortest, longest = (array[share] for array in rest)
    return Queries(*words, queries.bits, starts, widths, shortest, longest)
