"""The ROUGE-L search compiled with numba. `rouge_fallback` does the same without.

What the arrays hold is told in `instructgen.similarity.blocks`, and why nothing is
lost in `instructgen.similarity.rouge`. Queries, shelf and texts come as plain
tuples of those fields: numba's cache on disk would remember classes of ours by
name, and break when they move.
"""

# numba compiles these bodies: their types are in the docstrings' shapes.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import intrinsic

from instructgen.similarity.jit import jit

_U = np.uint64
_ONE, _ALL = np.uint64(1), np.uint64(0xFFFFFFFFFFFFFFFF)


@intrinsic
def _popcount(_, number):
    """LLVM's own, which becomes a vector instruction where the machine has one."""

    def code(_context, builder, _signature, args):
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), code


@jit
def bitmaps(words, offsets, widths, starts, bits, vocabulary):
    """XOR into ``bits`` one bit per word and occurrence; text i has ``widths[i]`` of 64 bits."""
    count = np.zeros(vocabulary, np.int32)
    for i in range(len(widths)):
        low = _U(64 * widths[i] - 1)
        for p in range(offsets[i], offsets[i + 1]):
            word = words[p]
            x = _U(word) * _U(0x9E3779B97F4A7C15) + _U(count[word]) * _U(0xD1B54A32D192ED03)
            x = (x ^ (x >> _U(32))) * _U(0xD6E8FEB86659FD93)
            x = (x ^ (x >> _U(29))) & low
            bits[starts[i] + np.int64(x >> _U(6))] ^= _ONE << (x & _U(63))
            count[word] += 1
        for p in range(offsets[i], offsets[i + 1]):
            count[words[p]] = 0


@jit
def _overlap(a, b, count):
    """Words in common, each as often as both hold it: no subsequence is longer."""
    common = 0
    for word in a:
        count[word] += 1
    for word in b:
        if count[word] > 0:
            count[word] -= 1
            common += 1
    for word in a:
        count[word] = 0
    return common


@jit
def _lcs(a, b, masks, carry):
    """Length of the longest common subsequence (Hyyro 2004), in strips of 64 words of ``a``.

    ``masks`` (vocabulary,) is zero and is left so; ``carry`` (len(b),) is scratch.
    """
    total = np.int64(0)
    for base in range(0, len(a), 64):
        size = min(64, len(a) - base)
        for i in range(size):
            masks[a[base + i]] |= _ONE << _U(i)
        s = _ALL
        for j in range(len(b)):
            u = s & masks[b[j]]
            t = s + u
            over = t < s
            if base:
                t += _U(carry[j])
                over = over or (carry[j] and t == _U(0))
            carry[j] = over
            s = t | (s - u)
        for i in range(size):
            masks[a[base + i]] = _U(0)
        ours = _ALL if size == 64 else (_ONE << _U(size)) - _ONE
        total += np.int64(_popcount(~s & ours))
    return total


# numba counts references to every slice, which costs more than comparing a few
# rows: slices are made once per block, and queries are given by their place.


@jit
def _apart(block, j, queries, at, width):
    """In how many bits row j of a block differs from the query at ``at``."""
    capacity, apart = len(block) // width, _U(0)
    for k in range(width):
        apart += _popcount(block[k * capacity + j] ^ queries[at + k])
    return apart


@jit
def _any_near(low, high, a, b, limit):
    """Whether a row of a block of 128-bit bitmaps differs from ``a, b`` in at most ``limit``."""
    near = _U(0)
    for j in range(len(low)):
        near |= _U(_popcount(low[j] ^ a) + _popcount(high[j] ^ b) <= limit)
    return near != 0


@jit
def _any_near_wide(block, size, queries, at, width, limit, apart):
    """The same for wider bitmaps and the query at ``at``; ``apart`` is scratch."""
    capacity = len(block) // width
    for j in range(size):
        apart[j] = _U(0)
    for k in range(width):
        rows, part = block[k * capacity : k * capacity + size], queries[at + k]
        for j in range(size):
            apart[j] += _popcount(rows[j] ^ part)
    near = _U(0)
    for j in range(size):
        near |= _U(apart[j] <= limit)
    return near != 0


@jit
def _above(lcs, m, n, threshold):
    """rouge-score's own float comparison."""
    precision, recall = lcs / m, lcs / n
    return 2 * precision * recall / (precision + recall) > threshold


@jit
def _search(
    first,
    end,
    q,
    shelf,
    texts,
    need,
    threshold,
    alive,
    before,
    base,
    best,
    pairs,
    masks,
    count,
    carry,
):
    """`search` for the queries ``first`` to ``end``, which are in order of length."""
    found = 0
    q_words, q_offsets, q_bits, q_starts, q_widths, q_shortest, q_longest = q
    blocks, rows, fills, lengths, widths, order, starts = shelf
    words, offsets = texts
    limits = np.empty(end - first, np.int64)
    scratch = np.empty(blocks.shape[1] // 4, np.uint64)
    for group in range(len(lengths)):
        n = lengths[group]
        low, high = end, first
        for c in range(first, end):
            m = q_offsets[c + 1] - q_offsets[c]
            limits[c - first] = -1
            if q_shortest[c] <= n and n <= q_longest[c]:
                a = need[m + n]
                if best[c, 1] > 0:
                    a = max(a, -((-best[c, 1] * (m + n)) // best[c, 2]))
                if a <= min(m, n):
                    limits[c - first] = m + n - 2 * a
                    low, high = min(low, c), c + 1
        if low >= high:
            continue
        for place in range(starts[group], starts[group + 1]):
            block = order[place]
            bits, fill, width = blocks[block], fills[block], widths[group]
            # Whole vectors: what stands beyond the fill is looked at and not used.
            capacity = len(bits) // width
            size = min(capacity, (fill + 31) // 32 * 32)
            lower, upper = bits[:size], bits[capacity : capacity + size]
            for c in range(low, high):
                limit = limits[c - first]
                if limit < 0:
                    continue
                at = q_starts[c] + 2 * (q_widths[c] - width)
                if width == 2:
                    near = _any_near(lower, upper, q_bits[at], q_bits[at + 1], _U(limit))
                else:
                    near = _any_near_wide(bits, size, q_bits, at, width, _U(limit), scratch)
                if not near:
                    continue
                a = q_words[q_offsets[c] : q_offsets[c + 1]]
                m = len(a)
                for j in range(fill):
                    row = rows[block, j]
                    if len(alive) and (row >= before or not alive[row]):
                        continue
                    if _apart(bits, j, q_bits, at, width) > _U(limit):
                        continue
                    b = words[offsets[row] : offsets[row + 1]]
                    wanted = (m + n - limit) // 2
                    if m > 64 and _overlap(a, b, count) < wanted:
                        continue
                    lcs = _lcs(a, b, masks, carry)
                    if lcs < wanted or (threshold > 0 and not _above(lcs, m, n, threshold)):
                        continue
                    if len(pairs):
                        if found < len(pairs):
                            pairs[found, 0], pairs[found, 1] = c, row
                            pairs[found, 2], pairs[found, 3] = lcs, m + n
                        found += 1
                        continue
                    ours, theirs = lcs * best[c, 2], best[c, 1] * (m + n)
                    if ours > theirs or (ours == theirs and base + row < best[c, 0]):
                        best[c, 0], best[c, 1], best[c, 2] = base + row, lcs, m + n
                        # Later rows of this length must be better, not as good.
                        limit = m + n - 2 * (lcs + 1) if lcs < min(m, n) else -1
                        limits[c - first] = limit
                        if limit < 0:
                            break
    return found


@jit
def search(q, shelf, texts, need, threshold, best, pairs, vocabulary, longest):
    """Fill ``best`` with every query's nearest row: row, LCS, and both lengths together.

    Queries are in order of length. ``best`` (queries, 3) begins with what is
    known already, or with LCS 0 and lengths 1. If there is room for some in
    ``pairs`` (room, 4), ``best`` stays as it is, and every pair that matches is
    written there as query, row, LCS and both lengths. Returns their number,
    those for which there was no room included.
    """
    masks, count = np.zeros(vocabulary, np.uint64), np.zeros(vocabulary, np.int32)
    carry, alive = np.zeros(longest, np.bool_), np.zeros(0, np.bool_)
    return _search(
        0,
        len(best),
        q,
        shelf,
        texts,
        need,
        threshold,
        alive,
        0,
        0,
        best,
        pairs,
        masks,
        count,
        carry,
    )


@jit
def gate(order, base, q, shelf, texts, need, threshold, best, alive, vocabulary, longest):
    """One query after the other against those before it that were kept.

    ``order[i]`` is the i-th text's place among the queries, which are in order
    of length and are what the shelf holds, as rows in the texts' own order.
    ``alive`` comes false and tells at the end who was kept; ``best`` is as in
    `search`, with what the ``base`` rows before all of these say, and names
    these as the rows after.
    """
    masks, count = np.zeros(vocabulary, np.uint64), np.zeros(vocabulary, np.int32)
    carry, pairs = np.zeros(longest, np.bool_), np.zeros((0, 4), np.int64)
    for i in range(len(order)):
        c = order[i]
        _search(
            c,
            c + 1,
            q,
            shelf,
            texts,
            need,
            threshold,
            alive,
            i,
            base,
            best,
            pairs,
            masks,
            count,
            carry,
        )
        alive[i] = best[c, 1] == 0
