"""The ROUGE-L search, compiled with numba. `rouge_fallback` does the same without numba.

`instructgen.similarity.blocks` describes the arrays, and `instructgen.similarity.rouge` explains
why no match is missed. `Queries`, `Shelf` and `Texts` are passed as plain tuples of their fields.
If the classes were passed, moving a class to a different module would break numba's disk cache.
"""

# numba infers the types of these functions, so they have no annotations for mypy to check.
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
    """Count the bits of a number that are 1, with LLVM's ctpop (on many processors, vectorized)."""

    def code(_context, builder, _signature, args):
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), code


@jit
def _by_length(words, offsets):
    """Return the order of the texts by length (stable), and the texts in this order."""
    count = len(offsets) - 1
    order = np.argsort(offsets[1:] - offsets[:-1], kind="mergesort")
    sorted_words = np.empty(offsets[count] - offsets[0], words.dtype)
    sorted_offsets = np.zeros(count + 1, np.int64)
    for i in range(count):
        at = sorted_offsets[i]
        for p in range(offsets[order[i]], offsets[order[i] + 1]):
            sorted_words[at] = words[p]
            at += 1
        sorted_offsets[i + 1] = at
    return order, sorted_words, sorted_offsets


@jit
def _width(width_of, words):
    return width_of[min(words, len(width_of) - 1)]


@jit
def rows(words, offsets, width_of, vocabulary):
    """Return what `Blocks` stores of the texts that have words, sorted by length.

    ``width_of[n]`` is the width of the bitmap of a text of n words; longer texts have the last one.

    Returns:
        ``order`` and ``lengths`` (rows,): the position of each row among the texts, and its number
        of words. ``begins`` (lengths + 1,): the first row of each length, and the number of rows.
        ``starts`` (rows,) and ``bits``: the bitmap of row i begins at ``bits[starts[i]]``.
    """
    order, words, offsets = _by_length(words, offsets)
    empty = 0
    while empty < len(order) and offsets[empty + 1] == 0:
        empty += 1
    order, offsets = order[empty:], offsets[empty:]
    count = len(order)
    lengths, starts = offsets[1:] - offsets[:-1], np.zeros(count, np.int64)
    widths, begins = np.zeros(count, np.int64), np.zeros(count + 1, np.int64)
    size = different = 0
    for i in range(count):
        widths[i], starts[i] = _width(width_of, lengths[i]), size
        size += widths[i]
        if i == 0 or lengths[i] != lengths[i - 1]:
            begins[different] = i
            different += 1
    begins[different] = count
    bits = np.zeros(size, np.uint64)
    _bitmaps(words, offsets, widths, starts, bits, vocabulary)
    return order, lengths, begins[: different + 1], starts, bits


@jit
def queries(words, offsets, width_of, shortest_of, longest_of, longest_row, vocabulary):
    """Return the order of the texts by length, and the fields of `Queries`.

    Only rows with ``shortest_of[m]`` to ``longest_of[m]`` words can match a text of m words.
    ``longest_row`` is the number of words of the longest row. See `rows` for ``width_of``.
    """
    order, words, offsets = _by_length(words, offsets)
    count = len(order)
    shortest, longest = np.zeros(count, np.int64), np.zeros(count, np.int64)
    widths, starts = np.zeros(count, np.int64), np.zeros(count, np.int64)
    # In `gate`, the texts are rows too.
    most = max(longest_row, offsets[count] - offsets[count - 1] if count else 0)
    size = 0
    for i in range(count):
        m = offsets[i + 1] - offsets[i]
        shortest[i], longest[i] = shortest_of[m], longest_of[m]
        widths[i], starts[i] = _width(width_of, min(longest[i], most)), size
        size += 2 * widths[i] - 2
    bits = np.zeros(size, np.uint64)
    _bitmaps(words, offsets, widths, starts, bits, vocabulary)
    for i in range(count):
        at, width = starts[i], widths[i]
        while width > 2:
            half = width // 2
            for k in range(at, at + half):
                bits[k + width] = bits[k] ^ bits[k + half]
            at, width = at + width, half
    return order, words, offsets, bits, starts, widths, shortest, longest


@jit
def _bitmaps(words, offsets, widths, starts, bits, vocabulary):
    """Write a bitmap of each text to ``bits``, by flipping one hashed bit for each of its words.

    The bitmap of text i has ``widths[i]`` 64-bit integers.
    """
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
    """Return the number of words (with repetitions) in both texts: at least the LCS length."""
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
    """Return the length of the longest common subsequence (LCS) of two texts (Hyyro 2004).

    64 words of ``a`` are processed at once. All entries of ``masks``, of shape (vocabulary,),
    must be zero, and are zero again on return. ``carry``, of shape (len(b),), is scratch space.
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


# numba counts references to every slice, which costs more than comparing a few rows. Slices are
# therefore taken once per block, and queries are passed by their position.


@jit
def _differing_bits(block, j, queries, at, width):
    """Return the number of bits that differ between row j of a block and a query's bitmap."""
    capacity, differing = len(block) // width, _U(0)
    for k in range(width):
        differing += _popcount(block[k * capacity + j] ^ queries[at + k])
    return differing


@jit
def _any_near(low, high, a, b, limit):
    """Return whether any 128-bit bitmap differs from the query (a, b) in at most ``limit`` bits."""
    near = _U(0)
    for j in range(len(low)):
        near |= _U(_popcount(low[j] ^ a) + _popcount(high[j] ^ b) <= limit)
    return near != 0


@jit
def _any_near_wide(block, size, queries, at, width, limit, differing):
    """Do the same as `_any_near` for wider bitmaps. ``differing`` is scratch space."""
    capacity = len(block) // width
    for j in range(size):
        differing[j] = _U(0)
    for k in range(width):
        rows, part = block[k * capacity : k * capacity + size], queries[at + k]
        for j in range(size):
            differing[j] += _popcount(rows[j] ^ part)
    near = _U(0)
    for j in range(size):
        near |= _U(differing[j] <= limit)
    return near != 0


@jit
def _float_above(lcs, m, n, threshold):
    """Return whether the F-measure, computed as in rouge-score, is above the threshold."""
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
    """Do the same as `search`, but only for the queries from ``first`` to ``end`` - 1."""
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
            # Round up to whole vectors. The entries beyond the fill are compared but not used.
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
                    if _differing_bits(bits, j, q_bits, at, width) > _U(limit):
                        continue
                    b = words[offsets[row] : offsets[row + 1]]
                    wanted = (m + n - limit) // 2
                    if m > 64 and _overlap(a, b, count) < wanted:
                        continue
                    lcs = _lcs(a, b, masks, carry)
                    if lcs < wanted or (threshold > 0 and not _float_above(lcs, m, n, threshold)):
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
                        # Later rows of this length must be better than this one, not equal.
                        limit = m + n - 2 * (lcs + 1) if lcs < min(m, n) else -1
                        limits[c - first] = limit
                        if limit < 0:
                            break
    return found


@jit
def search(q, shelf, texts, need, threshold, best, pairs, vocabulary, longest):
    """Fill ``best`` with each query's best match: row, length of the LCS, and sum of both lengths.

    Queries must be sorted by length. ``best`` of shape (queries, 3) must initially contain, for
    each query, the best match that is already known, or else an LCS of 0 and a sum of 1. If
    ``pairs`` of shape (capacity, 4) is not empty, ``best`` does not change, and every matching pair
    is written to ``pairs`` as query, row, LCS and sum of both lengths. Returns the number of
    matching pairs, including those for which ``pairs`` has no room.
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
    """Keep each query that matches neither a row of the index nor a query that was kept before.

    ``order[i]`` is the position of text i among the queries, which are sorted by length.
    ``shelf`` contains the same texts as rows, in their original order. All entries of ``alive``
    must initially be false; on return, those of the kept texts are true. ``best`` has the same
    form as in `search`, and must initially contain the best matches among the ``base`` rows of
    the index. On return, a row number ``base + i`` in ``best`` refers to text i.
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
