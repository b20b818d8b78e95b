"""An append-only index that uses embeddings to find texts with nearly the same meaning.

Two texts match when the cosine of their vectors, rounded to four digits, is above the threshold.
A cosine so close to the threshold that its last bits decide is computed again with 64-bit numbers,
so that the decision is the same on every machine.
If an index has up to 50,000 rows, a text is compared with every row. In a larger index, a graph
(HNSW, Malkov and Yashunin 2016, implemented by usearch) finds the rows nearest to the text, and
then the exact cosines of these rows are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from instructgen.similarity.blocks import Array, Growing
from instructgen.similarity.encoders import MINILM, SentenceEncoder, check_model, encoder
from instructgen.similarity.matches import Match, Pairs, check_count, joined

_TEXTS_AT_ONCE = 2048
_ROWS_AT_ONCE = 16_384
_NEIGHBORS = 64
_PAIRS_AT_ONCE = 65_536
_ROUNDED_BY = 0.0001
# On a CPU, 32-bit cosines of the same texts differ by less than 1e-6 (docs/decisions/0007).
_UNCERTAIN = 2e-5
# With a threshold lowered by this much, static vectors find 98 of 100 pairs that the model finds,
# both at 0.8 and at 0.9 (benchmarks/embedding.json; docs/decisions/0007).
_FIRST_PASS_BELOW = 0.18


class EmbeddingIndex:
    """Index of texts that finds the rows with nearly the same meaning as a new text.

    Args:
        threshold: cosine in (0, 1) above which a pair matches.
        model: the embedding model: ``minilm`` (for English, installed as a package), a folder, or
            a Hub name.
        first_pass: whether to search with static word vectors first, and to run the model only on
            texts that are similar to another text by these vectors. This finds about 98 of 100
            pairs that the model alone finds, and saves time if few texts are similar to another.
        exact_rows: maximum number of rows of an index in which a text is compared with every row.
            A larger index is searched with a graph.
        decided_at: the cosine that decides, if it is not the threshold.
        texts: the texts of the rows, if they are stored elsewhere; None to store them in the index.

    The model cannot encode a text that has no words, or whose language it does not support. Such
    a text never matches; the attribute ``unread`` is the number of rows with such a text.

    Raises:
        ValueError: the threshold is out of range.
        ConfigError: a required package or the model is missing.
    """

    def __init__(
        self,
        threshold: float = 0.9,
        model: str = MINILM,
        first_pass: bool = False,
        exact_rows: int = 50_000,
        decided_at: float | None = None,
        texts: Sequence[str] | None = None,
    ) -> None:
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must be in (0, 1), but is {threshold}")
        check_model(model)
        self.threshold, self.model, self.first_pass = threshold, model, first_pass
        self.unread = 0
        self._exact_rows = exact_rows
        self._decided_at = threshold if decided_at is None else decided_at
        self._texts = texts
        self._added: list[str] = []
        self._rows: _Rows | None = None
        self._lazy: LazyVectors | None = None
        self._last_encoded: tuple[list[str], Array] = ([], np.zeros((0, 0), np.float32))

    def __len__(self) -> int:
        """Return the number of rows, which is also the row number of the next added text."""
        return 0 if self._rows is None else len(self._rows)

    def add(self, texts: Sequence[str]) -> None:
        """Append the texts to the index as new rows.

        Raises:
            ConfigError: the model cannot be loaded.
        """
        rows = self._open_rows()
        for at in range(0, len(texts), _TEXTS_AT_ONCE):
            part = texts[at : at + _TEXTS_AT_ONCE]
            vectors = self._encode(part)
            self.unread += int((~vectors.any(axis=1)).sum())
            rows.add(vectors)
            if self._texts is None:
                self._added += part
            if self._lazy is not None:
                self._lazy.add(part)

    def nearest(self, texts: Sequence[str]) -> list[Match | None]:
        """For each text, return the most similar row, or None if no cosine is above the threshold.

        If several rows match equally well, the first of these rows is returned.

        Raises:
            ConfigError: the model cannot be loaded.
        """
        results: list[Match | None] = [None] * len(texts)
        for text, row, score in zip(*(a.tolist() for a in self.pairs(texts)), strict=True):
            best = results[text]
            if best is None or score > best.score:
                results[text] = Match(score, row)
        return results

    def pairs(self, texts: Sequence[str]) -> Pairs:
        """Return all pairs of a text and a matching row, with cosines, sorted by text and row.

        Raises:
            InputError: there are more than 100 million pairs.
            ConfigError: the model cannot be loaded.
        """
        rows = self._open_rows()
        results: list[Pairs] = []
        for at in range(0, len(texts), _TEXTS_AT_ONCE):
            part = texts[at : at + _TEXTS_AT_ONCE]
            vectors = self._encode(part)
            if self._lazy is None:
                near = rows.near(vectors, self.threshold)
            else:
                guessed = rows.near(vectors, max(self.threshold - _FIRST_PASS_BELOW, _ROUNDED_BY))
                near = self._lazy.computed(part, guessed)
            matched = _above(self._settled(part, near), self.threshold)
            results.append(matched._replace(text=matched.text + at))
            check_count(sum(len(p.text) for p in results))
        return joined(results)

    def vectors(self, rows: Array) -> Array:
        """Return the rows' vectors: float32, shape (rows, width), norm 1 (0 for an unread text)."""
        opened = self._open_rows()
        return opened.view[rows] if self._lazy is None else self._lazy.vectors(rows)

    def _settled(self, texts: Sequence[str], near: Pairs) -> Pairs:
        """Return the pairs with an exact cosine where a rounding error could decide."""
        rows = self._added if self._texts is None else self._texts

        def pair(place: int) -> tuple[str, str]:
            return texts[int(near.text[place])], rows[int(near.row[place])]

        return near._replace(score=settled(near.score, self._decided_at, self.model, pair))

    def _open_rows(self) -> _Rows:
        if self._rows is None:
            model = encoder(self.model)
            width = model.static.width if self.first_pass else model.width
            self._rows = _Rows(width, self._exact_rows)
            self._lazy = LazyVectors(model) if self.first_pass else None
        return self._rows

    def _encode(self, texts: Sequence[str]) -> Array:
        # The same texts are often passed twice: first to search for them, then to add them.
        known, vectors = self._last_encoded
        if known != list(texts):
            model = encoder(self.model)
            vectors = (model.static if self.first_pass else model).encode(texts)
            self._last_encoded = list(texts), vectors
        return vectors


class _Rows:
    """Stores the vectors of all rows of an index, and finds rows similar to a query vector."""

    def __init__(self, width: int, exact: int) -> None:
        self._vectors = Growing(np.zeros((0, width), np.float32))
        self._exact, self._graph = exact, None

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def view(self) -> Array:
        return self._vectors.view

    def add(self, vectors: Array) -> None:
        first = len(self._vectors)
        self._vectors.extend(vectors)
        if self._graph is None and len(self._vectors) > self._exact:
            self._graph, first = _graph(self._vectors.view.shape[1]), 0
        if self._graph is not None:
            new = self._vectors.view[first:]
            read = np.flatnonzero(new.any(axis=1))
            # With more than one thread, the graph would depend on their timing.
            self._graph.add(first + read, new[read], threads=1)

    def near(self, queries: Array, threshold: float) -> Pairs:
        """Return the pairs with cosines above the threshold, and some just below it, unrounded."""
        lowest = threshold - _ROUNDED_BY
        if self._graph is None:
            parts = []
            for at in range(0, len(self._vectors), _ROWS_AT_ONCE):
                cosines = queries @ self._vectors.view[at : at + _ROWS_AT_ONCE].T
                text, row = np.nonzero(cosines > lowest)
                parts.append(Pairs(text, at + row, cosines[text, row]))
                check_count(sum(len(p.text) for p in parts))
            return joined(parts)
        results: list[Pairs] = []
        limit, queried = _NEIGHBORS, np.flatnonzero(queries.any(axis=1))
        while len(queried):
            near = self._graph.search(queries[queried], limit, threads=1)
            # For one query usearch returns a list, for several a table with padded rows.
            keys = np.atleast_2d(near.keys).astype(np.int64)
            counts = np.array(near.counts if len(queried) > 1 else [keys.shape[1]])
            place, column = np.nonzero(np.arange(keys.shape[1]) < counts[:, None])
            text, row = queried[place], keys[place, column]
            matched = _scored(text, row, queries, self._vectors.view)
            matched = Pairs(*(array[matched.score > lowest] for array in matched))
            # If all rows that the graph returned match, there may be more.
            full = np.bincount(matched.text, minlength=len(queries)) == limit
            done = ~full[matched.text]
            results.append(Pairs(*(array[done] for array in matched)))
            queried, limit = np.flatnonzero(full), 8 * limit
            check_count(sum(len(p.text) for p in results))
        return joined(results)


class LazyVectors:
    """The embedding vectors of texts. The model computes each vector when it is first needed."""

    def __init__(self, model: SentenceEncoder) -> None:
        self._model = model
        self._texts: list[str] = []
        self._vectors = Growing(np.zeros((0, model.width), np.float32))
        self._known = Growing(np.zeros(0, np.bool_))

    def add(self, texts: Sequence[str]) -> None:
        """Append these texts. Their vectors are not computed yet."""
        self._texts += texts
        self._vectors.reserve(len(texts))
        self._known.reserve(len(texts))

    def vectors(self, rows: Array) -> Array:
        """Return the vectors of the texts at these positions, with shape (rows, width)."""
        self._embed(rows)
        return self._vectors.view[rows]

    def computed(self, texts: Sequence[str], guessed: Pairs) -> Pairs:
        """Return the pairs of the first pass, ``guessed``, with the cosines of the model."""
        queried = np.unique(guessed.text)
        ours = np.zeros((len(texts), self._vectors.view.shape[1]), np.float32)
        ours[queried] = self._model.encode([texts[t] for t in queried])
        self._embed(guessed.row)
        return _scored(guessed.text, guessed.row, ours, self._vectors.view)

    def _embed(self, rows: Array) -> None:
        new = np.unique(rows)
        new = new[~self._known.view[new]]
        self._vectors.view[new] = self._model.encode([self._texts[r] for r in new])
        self._known.view[new] = True


def cosines(text: Array, row: Array, ours: Array, theirs: Array) -> Array:
    """Return the cosine of ``ours[text[k]]`` and ``theirs[row[k]]`` for each k, to four digits."""
    return _rounded(_scored(text, row, ours, theirs).score)


def settled(
    cosine: Array, threshold: float, model: str, pair: Callable[[int], tuple[str, str]]
) -> Array:
    """Return cosines to four digits; those that a rounding error could decide are computed again.

    Args:
        cosine: 32-bit cosines.
        threshold: the cosine that decides.
        model: the embedding model.
        pair: returns the two texts of the cosine at a place.

    Raises:
        ConfigError: the model cannot be loaded.
    """
    exact = cosine.astype(np.float64)
    # Cosines above this one are rounded to one above the threshold.
    boundary = (np.floor(np.round(threshold / _ROUNDED_BY, 6)) + 0.5) * _ROUNDED_BY
    uncertain = np.flatnonzero(np.abs(exact - boundary) < _UNCERTAIN)
    if len(uncertain):
        pairs = [pair(place) for place in uncertain.tolist()]
        exact[uncertain] = encoder(model).exact_cosines(pairs)
    return _rounded(exact)


def _graph(width: int) -> Any:
    from usearch.index import Index

    return Index(ndim=width, metric="cos", dtype="f16")


def _scored(text: Array, row: Array, ours: Array, theirs: Array) -> Pairs:
    parts = [np.zeros(0, np.float32)]
    for at in range(0, len(text), _PAIRS_AT_ONCE):
        part = slice(at, at + _PAIRS_AT_ONCE)
        parts.append(np.einsum("pw,pw->p", ours[text[part]], theirs[row[part]]))
    return Pairs(text, row, np.concatenate(parts))


def _above(pairs: Pairs, threshold: float) -> Pairs:
    matching = pairs.score > threshold
    return Pairs(*(array[matching] for array in pairs))


def _rounded(cosine: Array) -> Array:
    """Round cosines to four digits, as later digits depend on the other texts in the batch."""
    return np.asarray(np.round(np.minimum(cosine, 1).astype(np.float64), 4))
