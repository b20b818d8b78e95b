"""An append-only index that finds near duplicates by the words they have in common (MinHash).

The Jaccard similarity of two texts is the fraction of their distinct words (or word n-grams) that
both texts contain. Candidates are found with MinHash signatures that are divided into bands
(Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4). The exact similarity of each
candidate is then computed, so all reported matches are correct. A pair with a similarity above the
threshold is found with a probability of at least ``recall``.

The signatures are identical to those of the package datasketch (scheme ``affine32``, seed 1), so
datasketch can compare and store them.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence, Set
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from instructgen.similarity import files
from instructgen.similarity.blocks import Array, Growing, Texts
from instructgen.similarity.matches import Match, Pairs, check_count, joined
from instructgen.similarity.tokens import Tokenizer, Vocabulary, tokenize_all

if TYPE_CHECKING:
    from datasketch import MinHash, MinHashLSH

# The probability with which a similar pair is found, and the size of a signature.
RECALL, PERMUTATIONS = 0.99, 128
_TEXTS_AT_ONCE = 2048
_PAIRS_AT_FIRST = 2**15
_KIND = "MinHash index 1"
# Larger than the number of distinct words in a text, and small enough to multiply in 64 bits.
_MAX_DENOMINATOR = 2**24


def jaccard(a: Set[str], b: Set[str]) -> float:
    """Return the Jaccard similarity of two sets: intersection over union, 0 if both are empty."""
    return len(a & b) / max(len(a | b), 1)


def runs(words: Sequence[str], ngram: int) -> list[str]:
    """Return all n-grams of ``ngram`` words. A list with fewer words gives one shorter n-gram."""
    last = max(len(words) - ngram + 1, min(len(words), 1))
    return [" ".join(words[i : i + ngram]) for i in range(last)]


class Signer:
    """Computes word sets, MinHash signatures and the keys of their bands.

    The arguments are those of `MinHashIndex`. ``bands`` is the number of bands, and
    ``rows_per_band`` the number of signature values in each. ``exact`` is the threshold as a
    fraction, and ``hashes`` contains the hash of each word number.
    """

    def __init__(
        self, threshold: float, ngram: int, recall: float, permutations: int, tokenizer: Tokenizer
    ) -> None:
        self.bands, self.rows_per_band = bands_for(threshold, recall, permutations)
        self.exact = _simplified(Fraction(str(threshold)))
        self.ngram, self.tokenizer = ngram, tokenizer
        self.kernels = importlib.import_module("instructgen.similarity.minhash_kernels")
        self.a, self.b = _permutations(permutations)
        self.ngrams = Vocabulary()
        self.hashes = Growing(np.zeros(1, np.uint32))

    def encode(self, texts: Sequence[str]) -> Texts:
        """Return each text as the ids of its distinct n-grams, in ascending order."""
        if self.ngram == 1:
            numbers, offsets = self.ngrams.encode(texts, self.tokenizer)
        else:
            numbers, offsets = self._encode_ngrams(texts)
        new = self.ngrams.latest(len(self.ngrams) - len(self.hashes))
        self.hashes.extend(_hash_ngrams(new))
        text = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        # Sorting and comparing neighbors is ten times as fast as np.unique here.
        key = np.sort(text << 32 | numbers)
        key = key[np.diff(key, prepend=-1) != 0]
        counts = np.bincount(key >> 32, minlength=len(offsets) - 1)
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        return Texts((key & 0xFFFFFFFF).astype(np.int32), ends)

    def _encode_ngrams(self, texts: Sequence[str]) -> tuple[Array, Array]:
        numbers: list[int] = []
        ends = [0]
        for words in tokenize_all(texts, self.tokenizer):
            numbers += map(self.ngrams.__getitem__, runs(words, self.ngram))
            ends.append(len(numbers))
        return np.array(numbers, np.int32), np.array(ends, np.int64)

    def signatures(self, sets: Texts) -> Array:
        """Return the MinHash signatures of word sets: uint32, of shape (texts, permutations)."""
        signatures: Array = self.kernels.signatures(self.hashes.view, self.a, self.b, *sets)
        return signatures

    def keys(self, sets: Texts) -> Array:
        """Return an int64 key for each band of each set's signature; equal bands, equal keys."""
        shaped = self.signatures(sets)[:, : self.bands * self.rows_per_band].astype(np.uint64)
        shaped = shaped.reshape(-1, self.bands, self.rows_per_band)
        key = np.tile(np.arange(self.bands, dtype=np.uint64), (len(shaped), 1))
        for k in range(self.rows_per_band):
            key = (key ^ shaped[:, :, k]) * np.uint64(0x9E3779B97F4A7C15)
            key ^= key >> np.uint64(29)
        return key.view(np.int64)


class MinHashIndex:
    """Index of texts, called rows, that finds the rows that are near duplicates of a new text.

    Args:
        threshold: Jaccard similarity in (0, 1) above which a pair matches.
        ngram: number of words in the n-grams whose sets are compared. Use 1 for short texts,
            because a text of fewer than ``ngram`` words is a single n-gram.
        recall: minimum probability that a pair with a similarity above the threshold is found.
        permutations: number of hash values in a signature.
        tokenizer: ``unicode`` for words in any writing system, ``ascii`` to split texts like the
            package rouge-score.

    Raises:
        ValueError: an argument is out of range, or there are too few permutations for the recall.
    """

    def __init__(
        self,
        threshold: float = 0.7,
        ngram: int = 1,
        recall: float = RECALL,
        permutations: int = PERMUTATIONS,
        tokenizer: Tokenizer = "unicode",
    ) -> None:
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must be above 0 and below 1, but is {threshold}")
        if ngram < 1:
            raise ValueError(f"ngram must be at least 1, but is {ngram}")
        self.threshold, self.ngram, self.recall = threshold, ngram, recall
        self.permutations, self.tokenizer = permutations, tokenizer
        self._signer = Signer(threshold, ngram, recall, permutations, tokenizer)
        self.bands, self.rows_per_band = self._signer.bands, self._signer.rows_per_band
        self._sets, self._offsets = Growing(np.zeros(0, np.int32)), Growing(np.zeros(1, np.int64))
        self._chain = Growing(np.zeros((0, self.bands), np.int32))
        self._seen = Growing(np.zeros(0, np.int64))
        self._keys, self._heads = np.zeros(1024, np.int64), np.full(1024, -1, np.int32)
        self._used, self._mark = 0, 1

    def __len__(self) -> int:
        """Return the number of rows; the next text that is added gets this row number."""
        return len(self._offsets) - 1

    def add(self, texts: Sequence[str]) -> None:
        """Append the texts to the index as new rows."""
        self._look_up(texts, look=False, put=True)

    def nearest(self, texts: Sequence[str]) -> list[Match | None]:
        """For each text, return the best match that is found, or None if no match is found.

        Scores are exact. If several rows match equally well, the first of these rows is returned.
        A text without words matches nothing.
        """
        return self._look_up(texts, look=True, put=False)

    def pairs(self, texts: Sequence[str]) -> Pairs:
        """Return all found pairs of a text and a matching row, sorted by text and then by row.

        Raises:
            InputError: there are more than 100 million pairs.
        """
        results: list[Pairs] = []
        for at in range(0, len(texts), _TEXTS_AT_ONCE):
            sets = self._signer.encode(texts[at : at + _TEXTS_AT_ONCE])
            pairs = np.zeros((_PAIRS_AT_FIRST, 4), np.int64)
            count = self._run(sets, look=True, put=False, pairs=pairs)[1]
            if count > len(pairs):
                check_count(count)
                pairs = np.zeros((count, 4), np.int64)
                self._run(sets, look=True, put=False, pairs=pairs)
            text, row, common, either = pairs[:count].T
            results.append(Pairs(at + text, row, common / either))
            check_count(sum(len(p.text) for p in results))
        return joined(results)

    def gate(self, texts: Sequence[str]) -> tuple[list[int], list[tuple[int, Match]]]:
        """Append each text to the index, unless it matches a row or a text appended before it.

        Returns:
            The positions in ``texts`` of the appended texts, and (position, match) for each text
            that was not appended.
        """
        results = self._look_up(texts, look=True, put=True)
        kept = [i for i, match in enumerate(results) if match is None]
        return kept, [(i, match) for i, match in enumerate(results) if match is not None]

    def signatures(self, texts: Sequence[str]) -> Array:
        """Return MinHash signatures as in datasketch: uint32, of shape (texts, permutations)."""
        return self._signer.signatures(self._signer.encode(texts))

    def minhash(self, text: str) -> MinHash:
        """Return the signature of a text as a `MinHash`, to use in indexes of datasketch."""
        return self._as_minhash(self.signatures([text])[0])

    def lsh(self, storage_config: dict[str, Any] | None = None) -> MinHashLSH:
        """Return a datasketch index (`MinHashLSH`) that contains all rows and has the same bands.

        Args:
            storage_config: configuration of a storage back end of datasketch, such as Redis.
                Default: the datasketch index is kept in memory.
        """
        from datasketch import MinHashLSH

        bands = (self.bands, self.rows_per_band)
        lsh = MinHashLSH(num_perm=self.permutations, params=bands, storage_config=storage_config)
        signatures = self._signer.signatures(Texts(self._sets.view, self._offsets.view))
        with lsh.insertion_session() as session:
            for row, values in enumerate(signatures):
                session.insert(str(row), self._as_minhash(values))
        return lsh

    def save(self, path: str | Path) -> None:
        """Write the index to a single file, which `open` can read.

        Raises:
            OSError: the file cannot be written; an existing file stays unchanged.
        """
        settings = {
            "threshold": self.threshold,
            "ngram": self.ngram,
            "recall": self.recall,
            "permutations": self.permutations,
            "tokenizer": self.tokenizer,
        }
        arrays = (self._sets.view, self._offsets.view, self._signer.hashes.view, self._chain.view)
        files.write(
            path, _KIND, settings, [*arrays, self._keys, self._heads, self._signer.ngrams.packed()]
        )

    @classmethod
    def open(cls, path: str | Path) -> MinHashIndex:
        """Read an index that `save` wrote. Texts that are added later do not change the file.

        Raises:
            InputError: the file is not a MinHash index, or is damaged or truncated.
            OSError: the file cannot be read.
        """
        settings, arrays = files.read(path, _KIND)
        sets, offsets, hashes, chain, keys, heads, names = arrays
        index = cls(**settings)
        index._sets, index._offsets = Growing(sets), Growing(offsets)
        index._signer.hashes, index._chain = Growing(hashes), Growing(chain)
        index._seen = Growing(np.zeros(len(index), np.int64))
        index._keys, index._heads = keys, heads
        index._used = int((heads >= 0).sum())
        index._signer.ngrams = Vocabulary.unpacked(names)
        return index

    def _look_up(self, texts: Sequence[str], *, look: bool, put: bool) -> list[Match | None]:
        results: list[Match | None] = []
        for at in range(0, len(texts), _TEXTS_AT_ONCE):
            sets = self._signer.encode(texts[at : at + _TEXTS_AT_ONCE])
            best, _ = self._run(sets, look=look, put=put, pairs=np.zeros((0, 4), np.int64))
            results += [Match(c / e, r) if r >= 0 else None for r, c, e in best.tolist()]
        return results

    def _run(self, sets: Texts, *, look: bool, put: bool, pairs: Array) -> tuple[Array, int]:
        """Run the compiled search; return the best matches and the number of matching pairs."""
        count = len(sets.offsets) - 1
        best, rows = np.zeros((count, 3), np.int64), len(self)
        if put:
            self._make_room(count, len(sets.words))
        rows, used, pair_count = self._signer.kernels.run(
            look,
            put,
            self._signer.keys(sets),
            *sets,
            self._signer.exact.numerator,
            self._signer.exact.denominator,
            self._keys,
            self._heads,
            self._chain.view,
            self._sets.view,
            self._offsets.view,
            self._seen.view,
            self._mark,
            rows,
            best,
            pairs,
        )
        self._used += used
        self._mark += count
        if put:
            self._offsets.cut(rows + 1)
            self._chain.cut(rows)
            self._seen.cut(rows)
            self._sets.cut(int(self._offsets.view[-1]))
        return best, pair_count

    def _make_room(self, rows: int, words: int) -> None:
        self._offsets.reserve(rows)
        self._chain.reserve(rows)
        self._sets.reserve(words)
        self._seen.reserve(rows)
        size = len(self._keys)
        while 2 * (self._used + rows * self.bands) > size:
            size *= 4
        if size > len(self._keys):
            keys, heads = np.zeros(size, np.int64), np.full(size, -1, np.int32)
            self._signer.kernels.rehash(self._keys, self._heads, keys, heads)
            self._keys, self._heads = keys, heads

    def _as_minhash(self, signature: Array) -> MinHash:
        from datasketch import MinHash

        return MinHash(
            num_perm=self.permutations,
            hashvalues=signature,
            permutations=(self._signer.a, self._signer.b),
            scheme="affine32",
        )


def bands_for(threshold: float, recall: float, permutations: int) -> tuple[int, int]:
    """Return the number of bands, and the number of signature values (rows) in each band.

    Bands have as many rows as ``recall`` allows. Two texts with similarity s agree in at least one
    of b bands of r rows with probability 1 - (1 - s**r)**b.

    Raises:
        ValueError: there are too few permutations for this recall.
    """
    for rows in range(permutations, 0, -1):
        bands = permutations // rows
        if 1 - (1 - threshold**rows) ** bands >= recall:
            return bands, rows
    raise ValueError(
        f"the recall {recall} at the threshold {threshold} requires more than {permutations} "
        "permutations; pass more permutations or a lower recall"
    )


def _simplified(threshold: Fraction) -> Fraction:
    """Return the largest fraction not above the threshold whose denominator is at most 2**24.

    A similarity is above this fraction exactly if it is above the threshold, because no text has
    2**24 distinct words. The smaller numerator and denominator can be multiplied without overflow.
    """
    (p0, q0), (p1, q1) = (0, 1), (1, 0)
    n, d = threshold.numerator, threshold.denominator
    while d and q0 + n // d * q1 <= _MAX_DENOMINATOR:
        whole, rest = divmod(n, d)
        (p0, q0), (p1, q1) = (p1, q1), (p0 + whole * p1, q0 + whole * q1)
        n, d = d, rest
    k = (_MAX_DENOMINATOR - q0) // q1
    near = (Fraction(p1, q1), Fraction(p0 + k * p1, q0 + k * q1))
    return max(f for f in near if f <= threshold)


def _permutations(count: int) -> tuple[Array, Array]:
    from datasketch import MinHash

    a, b = MinHash(num_perm=count, seed=1, scheme="affine32").permutations
    return np.asarray(a, np.uint32), np.asarray(b, np.uint32)


def word_hashes(names: Sequence[str]) -> Array:
    """Return 64 bits of SHA-1 of each word as int64, the same in every process.

    Two of ten million different words are equal with a probability of 3e-6.
    """
    digests = [
        hashlib.sha1(name.encode("utf-8", "surrogatepass"), usedforsecurity=False).digest()[:8]
        for name in names
    ]
    return np.frombuffer(b"".join(digests), "<i8").astype(np.int64)


def _hash_ngrams(names: Sequence[str]) -> Array:
    """Hash n-grams like datasketch: four bytes of SHA-1, mixed by the finalizer of MurmurHash3."""
    digests = [
        hashlib.sha1(name.encode("utf-8", "surrogatepass"), usedforsecurity=False).digest()[:4]
        for name in names
    ]
    mixed = np.frombuffer(b"".join(digests), "<u4").astype(np.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> np.uint32(shift))) * np.uint32(factor)
    return mixed ^ (mixed >> np.uint32(16))
