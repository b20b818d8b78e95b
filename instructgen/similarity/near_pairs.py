"""Find all pairs of similar texts, by each measure that deduplication uses.

The complete texts of a pair are compared, and also the parts that the caller passes, such as the
instructions. The lowest of these similarities is the score of the pair. This module does not
decide which rows are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from instructgen.schema.progress import Progress, Watch
from instructgen.similarity.blocks import Array
from instructgen.similarity.embedding import EmbeddingIndex, LazyVectors, cosines
from instructgen.similarity.encoders import encoder
from instructgen.similarity.matches import Pairs, check_count, joined
from instructgen.similarity.rouge import RougeLIndex, rouge_l
from instructgen.similarity.tokens import tokenize

THRESHOLDS = {"minhash": 0.7, "rouge_l": 0.7, "semantic": 0.9}
_TEXTS_AT_ONCE = 2048
# Texts of which the words are held in memory, where the texts are in a file.
TEXTS_KNOWN = 1_000


@dataclass(frozen=True, slots=True)
class Table:
    """Pairs of similar texts, and their scores.

    Pair k consists of the texts with the indices ``text[k]`` and ``row[k]``. Texts are sorted by
    priority, and ``row[k] < text[k]``. The stage ``two_key`` of deduplication compares texts by two
    measures; if it is used, ``other`` contains the scores by the second measure.
    """

    text: Array
    row: Array
    score: Array
    other: Array | None = None


def measures(how: Sequence[str]) -> list[str]:
    """Return the similarity measures that the deduplication stages in ``how`` use."""
    needed = {"rouge_l", "semantic"} if "two_key" in how else set()
    return [stage for stage in THRESHOLDS if stage in how or stage in needed]


class _Index(Protocol):
    def add(self, texts: Sequence[str], /) -> None: ...

    def pairs(self, texts: Sequence[str], /) -> Pairs: ...


def tables_of(
    texts: Sequence[str],
    keys: Sequence[Sequence[str]],
    how: Sequence[str],
    floors: dict[str, float],
    model: str,
    minhash: Callable[[float], Pairs],
    watch: Watch | None,
) -> tuple[dict[str, Table], int]:
    """Return similar pairs for each measure, and the number of texts in unsupported languages.

    Each sequence in ``keys`` contains one part of every text, such as its instruction. The
    similarity of these parts must be above the threshold too. ``floors`` maps each measure to its
    threshold. The function ``minhash`` returns the pairs of this measure above a threshold.
    """
    whole, parts = _PairScorer(texts, model), [_PairScorer(key, model) for key in keys]
    tables: dict[str, Table] = {}
    unread = np.zeros(len(texts), np.bool_)
    for stage in measures(how):
        if stage == "minhash":
            tables[stage] = Table(*minhash(floors[stage]))
            continue
        if stage == "rouge_l":
            pairs = _pairs_with_earlier(RougeLIndex(floors[stage]), texts, stage, watch)
        else:
            index = EmbeddingIndex(floors[stage], model, texts=texts)
            pairs = _pairs_with_earlier(index, texts, stage, watch)
            whole.vectors = index.vectors
            unread = np.logical_or.reduce([c.unread() for c in (whole, *parts)])
        score = np.minimum.reduce([pairs.score, *(c.scores(stage, pairs) for c in parts)])
        tables[stage] = above(Table(pairs.text, pairs.row, score), floors[stage])
    if "two_key" in how:
        for stage, other in (("rouge_l", "semantic"), ("semantic", "rouge_l")):
            table = tables[stage]
            scores = np.minimum.reduce([c.scores(other, table) for c in (whole, *parts)])
            tables[stage] = Table(table.text, table.row, table.score, scores)
    return tables, int(unread.sum())


def _pairs_with_earlier(
    index: _Index, texts: Sequence[str], stage: str, watch: Watch | None
) -> Pairs:
    """Return all pairs of a text and a similar text before it in the list."""
    parts: list[Pairs] = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        chunk = texts[start : start + _TEXTS_AT_ONCE]
        index.add(chunk)
        text, row, score = index.pairs(chunk)
        text = text + start
        before = row < text
        parts.append(Pairs(text[before], row[before], score[before]))
        check_count(sum(len(p.text) for p in parts))
        if watch is not None:
            watch(Progress(stage, start + len(chunk), len(texts), "texts"))
    return joined(parts)


class _PairScorer:
    """Computes the similarity of pairs of texts by any measure."""

    def __init__(self, texts: Sequence[str], model: str) -> None:
        self._texts, self._model = texts, model
        # The texts may be in a file, so only the words of the last pairs are held in memory.
        self._words_of = lru_cache(TEXTS_KNOWN)(lambda place: tokenize(texts[place]))
        self.vectors: Callable[[Array], Array] = self._embedded

    def scores(self, stage: str, pairs: Pairs | Table) -> Array:
        """Return the similarity of each pair. It is 1 if the texts are equal or both lack words."""
        text, row = pairs.text.tolist(), pairs.row.tolist()
        differ = [self._differ(a, b) for a, b in zip(text, row, strict=True)]
        result = np.ones(len(text))
        other = np.flatnonzero(np.array(differ, np.bool_))
        ours, theirs = pairs.text[other], pairs.row[other]
        if stage == "semantic":
            used, places = np.unique(np.concatenate([ours, theirs]), return_inverse=True)
            vectors = self.vectors(used)
            a, b = np.split(places, 2)
            result[other] = cosines(a, b, vectors, vectors)
        else:
            result[other] = [self._rouge_l(text[k], row[k]) for k in other.tolist()]
        return result

    def unread(self) -> Array:
        """Return which texts have words but are in a language that the model does not support."""
        filled = np.array([bool(self._words_of(i)) for i in range(len(self._texts))], np.bool_)
        return filled & ~encoder(self._model).reads(list(self._texts))

    def _differ(self, a: int, b: int) -> bool:
        """Return whether two texts are unequal and at least one of them has words."""
        return self._texts[a] != self._texts[b] and bool(self._words_of(a) or self._words_of(b))

    def _rouge_l(self, a: int, b: int) -> float:
        return rouge_l(self._words_of(a), self._words_of(b))

    def _embedded(self, rows: Array) -> Array:
        lazy = LazyVectors(encoder(self._model))
        lazy.add(list(self._texts))
        self.vectors = lazy.vectors
        return self.vectors(rows)


def above(table: Table, threshold: float) -> Table:
    """Return the pairs of a table whose score is above the threshold."""
    matching = table.score > threshold
    other = None if table.other is None else table.other[matching]
    return Table(table.text[matching], table.row[matching], table.score[matching], other)
