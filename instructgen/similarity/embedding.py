"""An append-only index of texts that finds those which mean nearly the same.

Two texts match when the cosine of their vectors is above the threshold. Up to
50,000 rows are compared one by one, in blocks; with more, a graph (HNSW,
Malkov and Yashunin 2016, from usearch) finds the nearest, and those are decided
by their own cosine, which is known to four digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from instructgen.similarity.blocks import Array, Growing
from instructgen.similarity.encoders import MINILM, SentenceEncoder, check_model, encoder
from instructgen.similarity.matches import Match, Pairs, check_count, joined

_TEXTS_AT_ONCE = 2048
_ROWS_AT_ONCE = 16_384
_NEIGHBOURS = 64
_PAIRS_AT_ONCE = 65_536
_ROUNDED_BY = 0.0001
# Static vectors find 98 of 100 pairs of the model's when asked for this much
# less, at 0.8 as at 0.9 (benchmarks/embedding.json; docs/decisions/0007).
_FIRST_PASS_BELOW = 0.18


class EmbeddingIndex:
    """Texts seen so far, and the question whether a new one means nearly the same as any.

    Args:
        threshold: in (0, 1); a pair matches when its cosine is above it.
        model: ``minilm`` (packaged, for English), a folder, or a Hub name.
        first_pass: look with static word vectors first, and give the model only
            the texts that they bring near to others. Finds about 98 of 100
            pairs; worth it where few texts are near others.
        exact_rows: with more rows than this they are looked up in a graph.

    A text that the model cannot read, in a language it was not made for or
    without words, matches nothing; `unread` counts such rows.

    Raises:
        ValueError: the threshold is out of range.
        ConfigError: the packages or the model are missing.
    """

    def __init__(
        self,
        threshold: float = 0.9,
        model: str = MINILM,
        first_pass: bool = False,
        exact_rows: int = 50_000,
    ) -> None:
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must lie in (0, 1), not {threshold}")
        check_model(model)
        self.threshold, self.model, self.first_pass = threshold, model, first_pass
        self.unread = 0
        self._exact_rows = exact_rows
        self._rows: _Rows | None = None
        self._lazy: LazyVectors | None = None
        self._latest: tuple[list[str], Array] = ([], np.zeros((0, 0), np.float32))

    def __len__(self) -> int:
        """The number of rows, which is also the next text's row."""
        return 0 if self._rows is None else len(self._rows)

    def add(self, texts: Sequence[str]) -> None:
        """Append texts; each becomes the next row.

        Raises:
            ConfigError: the model cannot be loaded.
        """
        rows = self._opened()
        for at in range(0, len(texts), _TEXTS_AT_ONCE):
            part = texts[at : at + _TEXTS_AT_ONCE]
            vectors = self._encode(part)
            self.unread += int((~vectors.any(axis=1)).sum())
            rows.add(vectors)
            if self._lazy is not None:
                self._lazy.add(part)

    def nearest(self, texts: Sequence[str]) -> list[Match | None]:
        """For each text its best match above the threshold, or None.

        Of equally good matches the first row wins.

        Raises:
            ConfigError: the model cannot be loaded.
        """
        found: list[Match | None] = [None] * len(texts)
        for text, row, score in zip(*(a.tolist() for a in self.pairs(texts)), strict=True):
            best = found[text]
            if best is None or score > best.score:
                found[text] = Match(score, row)
        return found

    def pairs(self, texts: Sequence[str]) -> Pairs:
        """Every row that a text matches, with its cosine, in order of text and row.

        Raises:
            InputError: there are more than 100 million.
            ConfigError: the model cannot be loaded.
        """
        rows = self._opened()
        found: list[Pairs] = []
        for at in range(0, len(texts), _TEXTS_AT_ONCE):
            part = texts[at : at + _TEXTS_AT_ONCE]
            vectors = self._encode(part)
            if self._lazy is None:
                some = rows.above(vectors, self.threshold)
            else:
                guessed = rows.above(vectors, max(self.threshold - _FIRST_PASS_BELOW, _ROUNDED_BY))
                some = self._lazy.decide(part, guessed, self.threshold)
            found.append(some._replace(text=some.text + at))
            check_count(sum(len(p.text) for p in found))
        return joined(found)

    def vectors(self, rows: Array) -> Array:
        """(rows, width) of float32: the model's vectors of these rows, of length one or zero."""
        opened = self._opened()
        return opened.view[rows] if self._lazy is None else self._lazy.vectors(rows)

    # -- inside ---------------------------------------------------------------------------

    def _opened(self) -> _Rows:
        if self._rows is None:
            model = encoder(self.model)
            width = model.static.width if self.first_pass else model.width
            self._rows = _Rows(width, self._exact_rows)
            self._lazy = LazyVectors(model) if self.first_pass else None
        return self._rows

    def _encode(self, texts: Sequence[str]) -> Array:
        # What was looked up is often added next, and the other way round.
        known, vectors = self._latest
        if known != list(texts):
            model = encoder(self.model)
            vectors = (model.static if self.first_pass else model).encode(texts)
            self._latest = list(texts), vectors
        return vectors


class _Rows:
    """Vectors of length one, or zero, and which of them are near others."""

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
            # One thread: with more, the graph depends on who was first.
            self._graph.add(first + read, new[read], threads=1)

    def above(self, queries: Array, threshold: float) -> Pairs:
        if self._graph is None:
            parts = []
            for at in range(0, len(self._vectors), _ROWS_AT_ONCE):
                cosines = queries @ self._vectors.view[at : at + _ROWS_AT_ONCE].T
                text, row = np.nonzero(cosines > threshold - _ROUNDED_BY)
                parts.append(_above(text, at + row, cosines[text, row], threshold))
                check_count(sum(len(p.text) for p in parts))
            return joined(parts)
        found: list[Pairs] = []
        wanted, asked = _NEIGHBOURS, np.flatnonzero(queries.any(axis=1))
        while len(asked):
            near = self._graph.search(queries[asked], wanted, threads=1)
            # One query gives one list of what was found, more a table with unused ends.
            keys = np.atleast_2d(near.keys).astype(np.int64)
            counts = np.array(near.counts if len(asked) > 1 else [keys.shape[1]])
            place, column = np.nonzero(np.arange(keys.shape[1]) < counts[:, None])
            text, row = asked[place], keys[place, column]
            some = _decided(text, row, queries, self._vectors.view, threshold)
            # Where all that was found matches, there may be more.
            full = np.bincount(some.text, minlength=len(queries)) == wanted
            done = ~full[some.text]
            found.append(Pairs(*(array[done] for array in some)))
            asked, wanted = np.flatnonzero(full), 8 * wanted
            check_count(sum(len(p.text) for p in found))
        return joined(found)


class LazyVectors:
    """The model's own vectors of texts, made when they are first needed."""

    def __init__(self, model: SentenceEncoder) -> None:
        self._model = model
        self._texts: list[str] = []
        self._vectors = Growing(np.zeros((0, model.width), np.float32))
        self._known = Growing(np.zeros(0, np.bool_))

    def add(self, texts: Sequence[str]) -> None:
        """Append texts."""
        self._texts += texts
        self._vectors.reserve(len(texts))
        self._known.reserve(len(texts))

    def vectors(self, rows: Array) -> Array:
        """(rows, width) of the texts at these places."""
        self._know(rows)
        return self._vectors.view[rows]

    def decide(self, texts: Sequence[str], guessed: Pairs, threshold: float) -> Pairs:
        """Those of the guessed pairs of ``texts`` with the added ones that are above it."""
        asked = np.unique(guessed.text)
        ours = np.zeros((len(texts), self._vectors.view.shape[1]), np.float32)
        ours[asked] = self._model.encode([texts[t] for t in asked])
        self._know(guessed.row)
        return _decided(guessed.text, guessed.row, ours, self._vectors.view, threshold)

    def _know(self, rows: Array) -> None:
        new = np.unique(rows)
        new = new[~self._known.view[new]]
        self._vectors.view[new] = self._model.encode([self._texts[r] for r in new])
        self._known.view[new] = True


def cosines(text: Array, row: Array, ours: Array, theirs: Array) -> Array:
    """The cosine of ``ours[text]`` with ``theirs[row]``, rounded, for each pair."""
    parts = [np.zeros(0, np.float32)]
    for at in range(0, len(text), _PAIRS_AT_ONCE):
        part = slice(at, at + _PAIRS_AT_ONCE)
        parts.append(np.einsum("pw,pw->p", ours[text[part]], theirs[row[part]]))
    return _rounded(np.concatenate(parts))


def _graph(width: int) -> Any:
    from usearch.index import Index

    return Index(ndim=width, metric="cos", dtype="f16")


def _decided(text: Array, row: Array, ours: Array, theirs: Array, threshold: float) -> Pairs:
    return _above(text, row, cosines(text, row, ours, theirs), threshold)


def _above(text: Array, row: Array, cosine: Array, threshold: float) -> Pairs:
    cosine = _rounded(cosine)
    good = cosine > threshold
    return Pairs(text[good], row[good], cosine[good])


def _rounded(cosine: Array) -> Array:
    """To four digits: the last bits depend on what a text was embedded together with."""
    return np.round(np.minimum(cosine, 1).astype(np.float64), 4)
