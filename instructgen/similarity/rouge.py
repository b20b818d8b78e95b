"""An append-only index of texts that finds all matches by ROUGE-L, without approximation.

The F-measure of ROUGE-L is 2*LCS/(m+n) for texts of m and n words, where LCS is the length of
their longest common subsequence (Lin 2004, with equal weights for precision and recall). A pair
matches when 2*LCS*q > p*(m+n) for the threshold p/q. The comparison uses integers, because
rounding errors make floating-point numbers unreliable at the threshold: of 147 real pairs whose
F-measure is exactly 7/10, 33 have a floating-point F-measure above 0.7.

The search misses no match. The k-th occurrence of a word in a text flips one bit of the text's
bitmap. A word that only one of two texts contains changes at most one bit of the difference
(XOR) of their bitmaps. Two bitmaps therefore differ in at most m + n - 2*overlap bits, where the
overlap is the number of words in common. The LCS is at most the overlap. Let ``a`` be the smallest
LCS above the threshold. Rows whose bitmaps differ in more than m + n - 2a bits cannot match, nor
can rows for which ``a`` exceeds m or n. For the remaining rows, a few in a million, a bit-parallel
algorithm computes the LCS.

Rows of equal length are stored together in blocks of 8 KiB. A block contains the first 64-bit
integers of all its bitmaps, then all second integers, and so on, so that one vector instruction
compares several rows. A block stays in the cache while all queries (texts to search for) are
compared with it. Longer texts have wider bitmaps. The bitmap of a query is folded to the width of
the rows: its halves are combined with XOR.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from rapidfuzz.distance import LCSseq

from instructgen.errors import InputError
from instructgen.similarity import files
from instructgen.similarity.blocks import (
    WIDTHS,
    Array,
    Blocks,
    Growing,
    Queries,
    Texts,
    kernels,
    most_words,
    pick,
)
from instructgen.similarity.matches import Match, Pairs, check_count, joined
from instructgen.similarity.tokens import Tokenizer, Vocabulary, tokenize_all

MOST_WORDS = 100_000
_TEXTS_AT_ONCE = 2048
# The pairs for which there is room at first; a search that finds more is repeated.
_PAIRS_AT_FIRST, _PAIRS_EACH = 2**15, 2**8
_KIND = "ROUGE-L index 1"
T = TypeVar("T")


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """Return the ROUGE-L F-measure of two lists of words, or 0 if both are empty."""
    return 2 * LCSseq.similarity(a, b) / max(len(a) + len(b), 1)


class _Limits(NamedTuple):
    """What a match needs at least, for one threshold.

    ``lcs[s]`` is the smallest LCS of a match whose texts have s words together. Only rows with
    ``shortest[m]`` to ``longest[m]`` words can match a text of m words.
    """

    lcs: Array
    shortest: Array
    longest: Array


_NO_LIMITS = _Limits(*[np.zeros(0, np.int64)] * 3)


# Small indexes with the same threshold are created for each completion of a generation run.
@lru_cache(maxsize=8)
def _limits(threshold: Fraction, size: int, compatible: bool) -> _Limits:
    """Return the limits for sums and numbers of words from 0 to size - 1."""
    # Python's integers have no overflow, whatever the threshold is.
    p, q = threshold.numerator, threshold.denominator
    if compatible:
        # At exactly the threshold, the floating-point comparison may find a match.
        lcs = [-(-p * s // (2 * q)) for s in range(size)]
    else:
        lcs = [p * s // (2 * q) + 1 for s in range(size)]
    shortest = [-(-m * p // (2 * q - p)) for m in range(size)]
    longest = [min(m * (2 * q - p) // p, MOST_WORDS) for m in range(size)]
    return _Limits(*(np.array(numbers, np.int64) for numbers in (lcs, shortest, longest)))


class RougeLIndex:
    """Index of texts that finds the rows whose ROUGE-L similarity to a new text is high.

    Args:
        threshold: F-measure in (0, 1] above which a text matches a row.
        tokenizer: ``unicode`` for words in any writing system, ``ascii`` to split texts like the
            package rouge-score.
        compatible: ``rouge-score`` to compare in floating point like the package rouge-score, so
            that some pairs with exactly the threshold match. Default: exact comparison.
        threads: number of threads for searching for many texts; None for one thread per core. The
            results do not depend on the number of threads.

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
            raise ValueError(f"threshold must be in (0, 1], but is {threshold}")
        self.threshold = threshold
        self.tokenizer: Tokenizer = tokenizer
        self.compatible = compatible
        self.threads = threads or len(os.sched_getaffinity(0))
        self._exact = Fraction(str(threshold))
        self._vocabulary = Vocabulary()
        self._limits = _NO_LIMITS
        self._words = Growing(np.zeros(0, np.int32))
        self._offsets = Growing(np.zeros(1, np.int64))
        self._blocks = Blocks()

    def __len__(self) -> int:
        """Return the number of rows, which is also the row number of the next text."""
        return len(self._offsets) - 1

    def add(self, texts: Sequence[str]) -> None:
        """Append the texts to the index as new rows.

        Raises:
            InputError: a text has more than 100,000 words. In this case, no text is appended.
        """
        self._append(self._encode(texts))

    def nearest(self, texts: Sequence[str]) -> list[Match | None]:
        """For each text, return its best match, or None if no row scores above the threshold.

        If several rows match equally well, the first of these rows is returned. A text without
        words matches nothing.

        Raises:
            InputError: a text has more than 100,000 words.
        """
        results: list[Match | None] = []
        for at in range(0, len(texts), _TEXTS_AT_ONCE):
            part = self._encode(texts[at : at + _TEXTS_AT_ONCE], at)
            order, queries = self._queries(part)
            best = self._search(queries)
            results += self._matches(part, order, best)
        return results

    def pairs(self, texts: Sequence[str]) -> Pairs:
        """Return all pairs of a text and a matching row, with F-measures, sorted by text and row.

        Raises:
            InputError: a text has more than 100,000 words, or there are more
                than 100 million pairs.
        """
        results: list[Pairs] = []
        for at in range(0, len(texts), _TEXTS_AT_ONCE):
            part = self._encode(texts[at : at + _TEXTS_AT_ONCE], at)
            order, queries = self._queries(part)
            found = self._search_all(queries)
            if not len(found):
                continue
            query, row, lcs, total = found.T
            scores = self._f_measure(lcs, total, part.lengths[order][query])
            results.append(Pairs(at + order[query], row, scores))
            check_count(sum(len(p.text) for p in results))
        return joined(results)

    def among(self, texts: Sequence[str]) -> Pairs:
        """Return all matching pairs of a text and a text before it in ``texts``; see `pairs`.

        For a few texts, this is faster than to add them to an index. The rows of this index are
        not compared.
        """
        words = tokenize_all(texts, self.tokenizer)
        self._extend_limits(max(map(len, words), default=0))
        found = []
        for i, later in enumerate(words):
            for j, earlier in enumerate(words[:i]):
                total = len(later) + len(earlier)
                least = int(self._limits.lcs[total])
                if not later or not earlier or least > min(len(later), len(earlier)):
                    continue
                lcs = LCSseq.similarity(later, earlier, score_cutoff=least)
                if lcs >= max(least, 1):
                    score = float(self._f_measure(lcs, total, len(later)))
                    if not self.compatible or score > self.threshold:
                        found.append((i, j, score))
        text, row, scores = zip(*found, strict=True) if found else ((), (), ())
        return Pairs(
            np.array(text, np.int64), np.array(row, np.int64), np.array(scores, np.float64)
        )

    def gate(self, texts: Sequence[str]) -> tuple[list[int], list[tuple[int, Match]]]:
        """Append each text unless it matches a row, as Self-Instruct does.

        Each appended text counts as a row when the texts after it are compared.

        Returns:
            The positions in ``texts`` of the appended texts, and (position, match) for each text
            that was not appended.

        Raises:
            InputError: a text has more than 100,000 words. Texts are processed in blocks of
                2,048; texts that were appended from earlier blocks stay in the index.
        """
        kept: list[int] = []
        rejected: list[tuple[int, Match]] = []
        for at in range(0, len(texts), _TEXTS_AT_ONCE):
            part = self._encode(texts[at : at + _TEXTS_AT_ONCE], at)
            (order, queries), base = self._queries(part), len(self)
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
                self._limits.lcs,
                self._float_threshold,
                best,
                alive,
                len(self._vocabulary),
                most_words(part),
            )
            # Matches within this part refer to positions; replace these with the final row numbers.
            row_of = base + np.cumsum(alive) - 1
            in_part = best[:, 0] >= base
            best[in_part, 0] = row_of[best[in_part, 0] - base]
            for position, match in enumerate(self._matches(part, order, best)):
                if match is None:
                    kept.append(at + position)
                else:
                    rejected.append((at + position, match))
            self._append(pick(part, np.flatnonzero(alive)))
        return kept, rejected

    def save(self, path: str | Path) -> None:
        """Write the index to a single file, which `open` can read.

        Raises:
            OSError: the file cannot be written; an existing file stays unchanged.
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
        """Read an index that `save` wrote. Texts that are added later do not change the file.

        Raises:
            InputError: the file is not a ROUGE-L index, or is damaged or truncated.
            OSError: the file cannot be read.
        """
        settings, arrays = files.read(path, _KIND)
        words, offsets, bits, rows, fill, lengths, vocabulary = arrays
        index = cls(**settings, threads=threads)
        index._words, index._offsets = Growing(words), Growing(offsets)
        index._blocks = Blocks(bits, rows, fill, lengths)
        index._vocabulary = Vocabulary.unpacked(vocabulary)
        return index

    @property
    def _float_threshold(self) -> float:
        return self.threshold if self.compatible else 0.0

    def _encode(self, texts: Sequence[str], first: int = 0) -> Texts:
        encoded = Texts(*self._vocabulary.encode(texts, self.tokenizer))
        longest = most_words(encoded)
        if longest > MOST_WORDS:
            position = int(encoded.lengths.argmax())
            raise InputError(
                f"text {first + position} has {longest:,} words, "
                f"but at most {MOST_WORDS:,} can be compared.",
                hint="Shorten or remove the text.",
            )
        self._extend_limits(longest)
        return encoded

    def _append(self, texts: Texts) -> None:
        self._blocks.add(texts, len(self), len(self._vocabulary))
        start = self._offsets.view[-1]
        self._words.extend(texts.words)
        self._offsets.extend(start + texts.offsets[1:])

    def _extend_limits(self, longest: int) -> None:
        """Let the limits be valid for texts with up to ``longest`` words."""
        if len(self._limits.lcs) <= 2 * longest:
            # Powers of two, so that several indexes have the same size.
            size = max(1024, 1 << (2 * longest).bit_length())
            self._limits = _limits(self._exact, size, bool(self.compatible))

    def _queries(self, texts: Texts) -> tuple[Array, Queries]:
        """Return the order of the texts by length, and what is searched for, in this order."""
        self._extend_limits(self._blocks.longest)
        order, *fields = kernels().queries(
            *texts,
            WIDTHS,
            self._limits.shortest,
            self._limits.longest,
            self._blocks.longest,
            len(self._vocabulary),
        )
        return order, Queries(*fields)

    def _search(self, queries: Queries) -> Array:
        """Return row, LCS and sum of both lengths for each query's best match; LCS 0 means none."""
        best = _no_matches(len(queries.widths))
        no_pairs = np.zeros((0, 4), np.int64)

        def work(share: Array) -> None:
            results = best[share]
            self._run(_subset(queries, share), results, no_pairs)
            best[share] = results

        self._in_threads(work, len(best))
        return best

    def _search_all(self, queries: Queries) -> Array:
        """Return the query, the row, the LCS and the sum of both lengths of every matching pair."""

        def work(share: Array) -> Array:
            part, best = _subset(queries, share), _no_matches(len(share))
            pairs = np.empty((min(_PAIRS_AT_FIRST, _PAIRS_EACH * len(share)), 4), np.int64)
            count = self._run(part, best, pairs)
            if count > len(pairs):
                check_count(count)
                pairs = np.empty((count, 4), np.int64)
                self._run(part, best, pairs)
            pairs = pairs[:count]
            pairs[:, 0] = share[pairs[:, 0]]
            return pairs

        return np.concatenate(self._in_threads(work, len(queries.widths)))

    def _run(self, queries: Queries, best: Array, pairs: Array) -> int:
        texts = (self._words.view, self._offsets.view)
        pair_count: int = kernels().search(
            tuple(queries),
            tuple(self._blocks.shelf()),
            texts,
            self._limits.lcs,
            self._float_threshold,
            best,
            pairs,
            len(self._vocabulary),
            self._blocks.longest,
        )
        return pair_count

    def _in_threads(self, work: Callable[[Array], T], count: int) -> list[T]:
        """Divide ``count`` queries among threads, and run ``work`` on each thread's queries."""
        threads = max(min(self.threads, count // 64), 1)
        # Each thread gets every n-th query, so that all threads take a similar time.
        shares = [np.arange(i, count, threads) for i in range(threads)]
        if threads == 1:
            return [work(shares[0])]
        # Compute and cache the groups before several threads would do so at the same time.
        self._blocks.shelf()
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, shares))

    def _matches(self, texts: Texts, order: Array, best: Array) -> list[Match | None]:
        results: list[Match | None] = [None] * len(order)
        lengths = texts.lengths
        for place in np.flatnonzero(best[:, 1]).tolist():
            position = int(order[place])
            row, lcs, total = best[place].tolist()
            score = self._f_measure(lcs, total, int(lengths[position]))
            results[position] = Match(score, row)
        return results

    def _f_measure(self, lcs: Any, total: Any, m: Any) -> Any:
        """Compute the F-measure from the LCS, the sum of both lengths, and the query's length."""
        if not self.compatible:
            return 2 * lcs / total
        precision, recall = lcs / m, lcs / (total - m)
        return 2 * precision * recall / (precision + recall)


def _no_matches(count: int) -> Array:
    """Return row, LCS and sum of both lengths of each query, before any match is found."""
    best = np.zeros((count, 3), np.int64)
    best[:, 2] = 1
    return best


def _subset(queries: Queries, share: Array) -> Queries:
    if len(share) == len(queries.widths):
        return queries
    words = pick(Texts(queries.words, queries.offsets), share)
    rest = (queries.starts, queries.widths, queries.shortest, queries.longest)
    starts, widths, shortest, longest = (array[share] for array in rest)
    return Queries(*words, queries.bits, starts, widths, shortest, longest)
