"""Inner loops of `instructgen.similarity.minhash`, compiled with numba if it is installed.

Without numba, the same functions run as plain Python, and signatures are computed with numpy.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import numpy as np

from instructgen.similarity.jit import COMPILED, jit


def signatures(hashes, a, b, words, offsets):
    """For each text and pair (a, b), return the minimum of (a * hash + b) % 2**32 of all words."""
    out = np.full((len(offsets) - 1, len(a)), 0xFFFFFFFF, np.uint32)
    if COMPILED:
        _minimum_hashes(hashes, a, b, words, offsets, out)
        return out
    for i in range(len(out)):
        text_hashes = hashes[words[offsets[i] : offsets[i + 1]]]
        out[i] = (text_hashes[:, None] * a + b).min(axis=0, initial=0xFFFFFFFF)
    return out


@jit
def _minimum_hashes(hashes, a, b, words, offsets, out):
    for i in range(len(out)):
        for p in range(offsets[i], offsets[i + 1]):
            hashed = hashes[words[p]]
            for k in range(len(a)):
                value = np.uint32(a[k] * hashed + b[k])
                if value < out[i, k]:
                    out[i, k] = value


@jit
def _slot(keys, heads, key):
    """Return the slot of a key in the hash table, or the empty slot for inserting the key."""
    slot = key & (len(keys) - 1)
    while heads[slot] >= 0 and keys[slot] != key:
        slot = (slot + 1) & (len(keys) - 1)
    return slot


@jit
def rehash(old_keys, old_heads, keys, heads):
    """Copy the entries of a hash table to a larger, empty hash table."""
    for i in range(len(old_keys)):
        if old_heads[i] >= 0:
            slot = _slot(keys, heads, old_keys[i])
            keys[slot], heads[slot] = old_keys[i], old_heads[i]


@jit
def _insert(bands, row, keys, heads, chain):
    """Prepend a row to the linked list of each of its bands; return the number of new slots."""
    new_slots = 0
    for k in range(len(bands)):
        slot = _slot(keys, heads, bands[k])
        new_slots += heads[slot] < 0
        chain[row, k] = heads[slot]
        keys[slot], heads[slot] = bands[k], row
    return new_slots


@jit
def _common(ours, theirs, p, q):
    """Return the number of words that both texts have, or 0 if their Jaccard cannot be above p/q.

    The shorter text bounds the number of common words.
    """
    i, j, both = 0, 0, 0
    if min(len(ours), len(theirs)) * (p + q) <= p * (len(ours) + len(theirs)):
        return both
    while i < len(ours) and j < len(theirs):
        if ours[i] == theirs[j]:
            both += 1
            i += 1
            j += 1
        elif ours[i] < theirs[j]:
            i += 1
        else:
            j += 1
    return both


@jit
def groups(keys, records, offsets, columns, p, q, pairs, most):
    """Find the pairs of rows with equal keys that are similar in all columns.

    Rows with equal keys are neighbors. The record of row i begins at ``offsets[i]``: the number of
    words in each of the ``columns`` texts, and then the words. Two rows are similar if in each
    column the Jaccard similarity is above p/q, or both texts have no words. Each pair is written to
    ``pairs`` of shape (capacity, 4): the later row, the earlier row, and the lowest similarity as
    two numbers of words, those that both texts contain and those that at least one contains.
    Returns the number of pairs, including those for which ``pairs`` has no room. The search ends
    when the number exceeds ``most``.
    """
    found, begin = 0, 0
    for i in range(len(keys)):
        if keys[i] != keys[begin]:
            begin = i
        for j in range(begin, i):
            common, either = _lowest(records, offsets[i], offsets[j], columns, p, q)
            if either > 0:
                if found < len(pairs):
                    pairs[found, 0], pairs[found, 1] = i, j
                    pairs[found, 2], pairs[found, 3] = common, either
                found += 1
        if found > most:
            return found
    return found


@jit
def _lowest(records, ours, theirs, columns, p, q):
    """Return the lowest similarity of two rows as two numbers, or (0, 0) if it is not above p/q."""
    common, either = 1, 1
    i, j = ours + columns, theirs + columns
    for k in range(columns):
        end, stop = i + records[ours + k], j + records[theirs + k]
        both, total = _common(records[i:end], records[j:stop], p, q), end - i + stop - j
        i, j = end, stop
        if total:
            if both * q <= p * (total - both):
                return 0, 0
            if both * either < common * (total - both):
                common, either = both, total - both
    return common, either


@jit
def _nearest(bands, ours, p, q, keys, heads, chain, words, offsets, seen, mark, text, pairs, found):
    """Find the row most similar to a text, with a band in common and a Jaccard above p/q.

    ``ours`` contains the word numbers of the text in ascending order without duplicates. The word
    numbers of every row are stored in the same way. Returns the row number or -1, the number of
    words that both texts contain, the number that at least one of them contains, and ``found``.
    If ``pairs`` is not empty, all rows above p/q are written to ``pairs`` instead, starting at
    index ``found``. The returned row number is then -1, and the returned ``found`` is the new
    number of pairs.
    """
    row, common, either = -1, 0, 1
    for k in range(len(bands)):
        slot = _slot(keys, heads, bands[k])
        other = heads[slot]
        while other >= 0:
            if seen[other] != mark:
                seen[other] = mark
                theirs = words[offsets[other] : offsets[other + 1]]
                both, total = _common(ours, theirs, p, q), len(ours) + len(theirs)
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
    """Find each text's best match if ``look`` is true; append unmatched texts if ``put`` is true.

    ``row`` is the number of the next row. The arrays must have room for all texts. Fills ``best``
    of shape (texts, 3) with the number of the best matching row or -1, the number of words that
    both texts contain, and the number that at least one of them contains. If ``pairs`` of shape
    (capacity, 4) is not empty, every matching pair is written to ``pairs`` instead: the text, the
    row and the same two word counts. Returns the number of rows, the number of new slots in the
    hash table, and the number of pairs, including pairs for which ``pairs`` has no room.
    """
    new_slots, found = 0, 0
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
                new_slots += _insert(bands[i], row, keys, heads, chain)
            row += 1
    return row, new_slots, found
