"""The ROUGE-L search in numpy and rapidfuzz, for use without numba.

The functions have the same names and results as those of
`instructgen.similarity.rouge_compiled`, but take 20 to 50 times as long.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from rapidfuzz.distance import LCSseq

from instructgen.similarity.blocks import Array, Queries, Shelf, Texts, pick


def rows(
    words: Array, offsets: Array, width_of: Array, vocabulary: int
) -> tuple[Array, Array, Array, Array, Array]:
    """Return what `Blocks` stores of the texts that have words; see `rouge_compiled.rows`."""
    texts = Texts(words, offsets)
    order = _by_length(texts)
    order = order[texts.lengths[order] > 0]
    texts = pick(texts, order)
    lengths = texts.lengths
    widths = _widths(width_of, lengths)
    starts = np.cumsum(widths) - widths
    bits = np.zeros(int(widths.sum()), np.uint64)
    _bitmaps(*texts, widths, starts, bits, vocabulary)
    changes = np.flatnonzero(lengths[1:] != lengths[:-1]) + 1
    begins = np.concatenate([np.zeros(min(len(order), 1), np.int64), changes, [len(order)]])
    return order, lengths, begins, starts, bits


def queries(
    words: Array,
    offsets: Array,
    width_of: Array,
    shortest_of: Array,
    longest_of: Array,
    longest_row: int,
    vocabulary: int,
) -> tuple[Array, ...]:
    """Return the order of the texts and the fields of `Queries`; see `rouge_compiled.queries`."""
    order = _by_length(Texts(words, offsets))
    texts = pick(Texts(words, offsets), order)
    lengths = texts.lengths
    most = max(longest_row, int(lengths.max(initial=0)))
    shortest, longest = shortest_of[lengths], longest_of[lengths]
    widths = _widths(width_of, np.minimum(longest, most))
    sizes = 2 * widths - 2
    starts = np.cumsum(sizes) - sizes
    bits = np.zeros(int(sizes.sum()), np.uint64)
    _bitmaps(*texts, widths, starts, bits, vocabulary)
    for width in set(widths.tolist()):
        begins = starts[widths == width]
        while width > 2:
            half = width // 2
            at = begins[:, None] + np.arange(half)
            bits[at + width] = bits[at] ^ bits[at + half]
            begins, width = begins + width, half
    return order, *texts, bits, starts, widths, shortest, longest


def _by_length(texts: Texts) -> Array:
    """Return the indices of the texts sorted by length, shortest first (stable sort)."""
    order: Array = np.argsort(texts.lengths, kind="stable")
    return order


def _widths(width_of: Array, words: Array) -> Array:
    widths: Array = width_of[np.minimum(words, len(width_of) - 1)]
    return widths


def _bitmaps(
    words: Array, offsets: Array, widths: Array, starts: Array, bits: Array, vocabulary: int
) -> None:
    """Build a bitmap per text in ``bits``: for each word, flip the bit that its hash selects."""
    text = np.repeat(np.arange(len(widths)), np.diff(offsets))
    words = words[offsets[0] : offsets[-1]]
    key = text * vocabulary + words
    order = np.argsort(key, kind="stable")
    first = np.ones(len(key), np.bool_)
    first[1:] = key[order][1:] != key[order][:-1]
    place = np.arange(len(key))
    occurrence = np.empty(len(key), np.uint64)
    occurrence[order] = place - np.maximum.accumulate(np.where(first, place, 0))
    u = np.uint64
    x = words.astype(u) * u(0x9E3779B97F4A7C15) + occurrence * u(0xD1B54A32D192ED03)
    x = (x ^ (x >> u(32))) * u(0xD6E8FEB86659FD93)
    x = (x ^ (x >> u(29))) & (64 * widths[text] - 1).astype(u)
    at = starts[text] + (x >> u(6)).astype(np.int64)
    np.bitwise_xor.at(bits, at, u(1) << (x & u(63)))


def search(
    q: Any,
    shelf: Any,
    texts: Any,
    need: Array,
    threshold: float,
    best: Array,
    pairs: Array,
    vocabulary: int,
    longest: int,
) -> int:
    """Fill ``pairs`` with all matches, or ``best`` with the best; see `rouge_compiled.search`."""
    pairs_found: list[tuple[int, int, int, int]] | None = [] if len(pairs) else None
    for c in range(len(best)):
        _search_one(c, q, shelf, texts, need, threshold, None, 0, 0, best, pairs_found)
    if not pairs_found:
        return 0
    pairs[: len(pairs_found)] = pairs_found[: len(pairs)]
    return len(pairs_found)


def gate(
    order: Array,
    base: int,
    q: Any,
    shelf: Any,
    texts: Any,
    need: Array,
    threshold: float,
    best: Array,
    alive: Array,
    vocabulary: int,
    longest: int,
) -> None:
    """Keep queries similar to no row and no earlier kept query; see `rouge_compiled.gate`."""
    for i, c in enumerate(order.tolist()):
        _search_one(c, q, shelf, texts, need, threshold, alive, i, base, best, None)
        alive[i] = best[c, 1] == 0


def _search_one(
    c: int,
    q: Any,
    shelf: Any,
    texts: Any,
    need: Array,
    threshold: float,
    alive: Array | None,
    before: int,
    base: int,
    best: Array,
    pairs_found: list[tuple[int, int, int, int]] | None,
) -> None:
    q, shelf, texts = Queries(*q), Shelf(*shelf), Texts(*texts)
    ours = q.words[q.offsets[c] : q.offsets[c + 1]].tolist()
    m = len(ours)
    first, last = np.searchsorted(shelf.lengths, [q.shortest[c], q.longest[c] + 1]).tolist()
    for group in range(first, last):
        n, width = int(shelf.lengths[group]), int(shelf.widths[group])
        at_row, at_lcs, at_both = best[c].tolist()
        wanted = max(int(need[m + n]), -(-at_lcs * (m + n) // at_both))
        if wanted > min(m, n):
            continue
        blocks = shelf.order[shelf.starts[group] : shelf.starts[group + 1]]
        at = q.starts[c] + 2 * (q.widths[c] - width)
        bits = shelf.bits[blocks].reshape(len(blocks), width, -1)
        query = q.bits[at : at + width]
        differing = np.bitwise_count(bits ^ query[:, None]).sum(axis=1, dtype=np.int64)
        differing[np.arange(differing.shape[1]) >= shelf.fill[blocks][:, None]] = m + n + 1
        rows = shelf.rows[blocks, : differing.shape[1]]
        near = differing <= m + n - 2 * wanted
        for row, distance in zip(rows[near].tolist(), differing[near].tolist(), strict=True):
            if distance > m + n - 2 * wanted:
                continue
            if alive is not None and (row >= before or not alive[row]):
                continue
            theirs = texts.words[texts.offsets[row] : texts.offsets[row + 1]].tolist()
            lcs = LCSseq.similarity(ours, theirs)
            if lcs < wanted or (threshold > 0 and not _float_above(lcs, m, n, threshold)):
                continue
            if pairs_found is not None:
                pairs_found.append((c, row, lcs, m + n))
                continue
            new, old = lcs * at_both, at_lcs * (m + n)
            if new > old or (new == old and base + row < at_row):
                at_row, at_lcs, at_both = best[c] = base + row, lcs, m + n
                wanted = lcs + 1


def _float_above(lcs: int, m: int, n: int, threshold: float) -> bool:
    """Return whether the F-measure, rounded as in rouge-score, is above the threshold."""
    precision, recall = lcs / m, lcs / n
    return 2 * precision * recall / (precision + recall) > threshold
