"""Results of a search in an index: the best match of a text, or all pairs that match."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from instructgen.errors import InputError
from instructgen.similarity.blocks import Array

_MAX_PAIRS = 100_000_000


class Match(NamedTuple):
    """The row of an index that is most similar to a text: the score and the row number."""

    score: float
    row: int


class Pairs(NamedTuple):
    """Pairs of a text and a matching row. Entry k of each array belongs to the k-th pair."""

    text: Array
    row: Array
    score: Array


def joined(parts: Sequence[Pairs]) -> Pairs:
    """Return the pairs of all parts as one object, sorted by text and row."""
    empty = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    text, row, score = (np.concatenate(arrays) for arrays in zip(empty, *parts, strict=True))
    order = np.lexsort((row, text))
    return Pairs(text[order], row[order], score[order])


def check_count(pairs: int) -> None:
    """Check that there are not too many pairs to keep in memory.

    Raises:
        InputError: there are more than 100 million pairs.
    """
    if pairs > _MAX_PAIRS:
        raise InputError(
            f"more than {_MAX_PAIRS:,} pairs of texts are above the threshold.",
            hint="Raise the threshold.",
        )
