"""What an index finds: the best match of a text, or every pair above the threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from instructgen.errors import InputError
from instructgen.similarity.blocks import Array

_MOST_PAIRS = 100_000_000


class Match(NamedTuple):
    """The best match of a text: its score and the row it was found in."""

    score: float
    row: int


class Pairs(NamedTuple):
    """Texts and the rows that they match: entry k of each array is one pair and its score."""

    text: Array
    row: Array
    score: Array


def joined(parts: Sequence[Pairs]) -> Pairs:
    """All of them, in order of text and row."""
    none = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    text, row, score = (np.concatenate(arrays) for arrays in zip(none, *parts, strict=True))
    order = np.lexsort((row, text))
    return Pairs(text[order], row[order], score[order])


def check_count(pairs: int) -> None:
    """Refuse more pairs than memory holds.

    Raises:
        InputError: they are more than 100 million.
    """
    if pairs > _MOST_PAIRS:
        raise InputError(
            f"more than {_MOST_PAIRS:,} pairs of texts are above the threshold.", hint="Raise it."
        )
