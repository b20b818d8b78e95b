"""What `instructgen.similarity.minhash` spends its time on, compiled with numba where it is there.

Without numba the same functions run as plain Python, and signatures in numpy.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import numpy as np

from instructgen.similarity.jit import COMPILED, jit


def signatures(hashes, a, b, words, offsets):
    """For every text and permutation the least ``a * hash + b`` of its words, modulo 2**32."""
    out = np.full((len(offsets) - 1, len(a)), 0xFFFFFFFF, np.uint32)
    if COMPILED:
        _least(hashes, a, b, words, offsets, out)
        return out
    for i in range(len(out)):
        some = hashes[words[offsets[i] : offsets[i + 1]]]
        out[i] = (some[:, None] * a + b).min(axis=0, initial=0xFFFFFFFF)
    return out


@jit
def _least(hashes, a, b, words, offsets, out):
    for i in range(len(out)):
        for p in range(offsets[i], offsets[i + 1]):
            hashed = hashes[words[p]]
            for k in range(len(a)):
                value = np.uint32(a[k] * hashed + b[k])
                if value < out[i, k]:
                    out[i, k] = value


@jit
def _slot(keys, heads, key):
    """The slot of a key in the open table, or the empty one where it belongs."""
    at = key & (len(keys) - 1)
    while heads[at] >= 0 and keys[at] != key:
        at = (at + 1) & (len(keys) - 1)
    return at


@jit
def rehash(old_keys, old_heads, keys, heads):
    """Move a table's entries to a larger empty one."""
    for i in range(len(old_keys)):
        if old_heads[i] >= 0:
            at = _slot(keys, heads, old_keys[i])
            keys[at], heads[at] = old_keys[i], old_heads[i]


@jit
def _insert(bands, row, keys, heads, chain):
    """Put a row first in the chain of each of its bands; returns the slots newly used."""
    new = 0
    for k in range(len(bands)):
        at = _slot(keys, heads, bands[k])
        new += heads[at] < 0
        chain[row, k] = heads[at]
        keys[at], heads[at] = bands[k], row
    return new


@jit
def _nearest(bands, ours, p, q, keys, heads, chain, words, offsets, seen, mark, text, pairs, found):
    """The row of highest Jaccard similarity above p/q among those that share a band.

    ``ours`` are the text's word numbers, rising and all different, as are every
    row's. Returns the row or -1, the words in common, and those in either. If
    there is room for some in ``pairs``, all rows above p/q are written there
    instead, from ``found`` on; returned is -1 and what `run` returns as found.
    """
    row, common, either = -1, 0, 1
    for k in range(len(bands)):
        at = _slot(keys, heads, bands[k])
        other = heads[at]
        while other >= 0:
            if seen[other] != mark:
                seen[other] = mark
                i, j, end, both = 0, offsets[other], offsets[other + 1], 0
                total = len(ours) + end - j
                # No more words can be shared than the shorter text has.
                if min(len(ours), end - j) * (p + q) <= p * total:
                    other = chain[other, k]
                    continue
                while i < len(ours) and j < end:
                    if ours[i] == words[j]:
                        both += 1
                        i += 1
                        j += 1
                    elif ours[i] < words[j]:
                        i += 1
                    else:
                        j += 1
                if both * q > p * (total - both) and len(pairs):
                    if found < len(pairs):
                        pairs[found, 0], pairs[found, 1] = text, other
                        pairs[found, 2], pairs[found, 3] = both, total - both
                    found += 1
                elif both * q > p * (total - both):
                    new, old = both * either, common * (total - both)
                    if new > old or (new == old and other < row):
                        row, common, either = other, both, total - both
            other = chain[other, k]
    return row, common, either, found


@jit
def run(
    look,
    put,
    bands,
    texts,
    offsets,
    p,
    q,
    keys,
    heads,
    chain,
    words,
    ends,
    seen,
    mark,
    row,
    best,
    pairs,
):
    """Look every text up, if ``look``, and make a row of it, if ``put`` and nothing was found.

    ``row`` is the next row; there is room for all texts. Fills ``best``
    (texts, 3) with row or -1, words in common and words in either, or
    ``pairs`` (room, 4), if it has room for any, with text, row and those two
    numbers of every pair. Returns the rows now, the slots newly used, and the
    number of pairs, those for which there was no room included.
    """
    used, found = 0, 0
    for i in range(len(best)):
        ours = texts[offsets[i] : offsets[i + 1]]
        best[i, 0] = -1
        if look and len(ours):
            best[i, 0], best[i, 1], best[i, 2], found = _nearest(
                bands[i],
                ours,
                p,
                q,
                keys,
                heads,
                chain,
                words,
                ends,
                seen,
                mark + i,
                i,
                pairs,
                found,
            )
        if put and best[i, 0] < 0:
            for j in range(len(ours)):
                words[ends[row] + j] = ours[j]
            ends[row + 1] = ends[row] + len(ours)
            if len(ours):
                used += _insert(bands[i], row, keys, heads, chain)
            row += 1
    return row, used, found
