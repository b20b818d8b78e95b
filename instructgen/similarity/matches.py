"""Results of a search for similar texts in an index: the best match, or all matching pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from instructgen.errors import InputError
from instructgen.similarity.blocks import Array

MAX_PAIRS = 100_000_000


class Match(NamedTuple):
    """The best match of a text in an index: its similarity score and its row in the index."""

    score: float
    row: int


class Pairs(NamedTuple):
    """Pairs of similar texts: pair k is query ``text[k]`` and row ``row[k]`` of the index."""

    text: Array
    row: Array
    score: Array


def joined(parts: Sequence[Pairs]) -> Pairs:
    """Join several `Pairs` into one, sorted by text and then by row."""
    empty = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    if not parts:
        return empty
    text, row, score = (np.concatenate(arrays) for arrays in zip(empty, *parts, strict=True))
    order = np.lexsort((row, text))
    return Pairs(text[order], row[order], score[order])


def check_count(pairs: int) -> None:
    """Check that the number of pairs is small enough to keep them in memory.

    Raises:
        InputError: there are more than 100 million pairs.
    """
    if pairs > MAX_PAIRS:
        raise InputError(
            f"more than {MAX_PAIRS:,} pairs of texts have a similarity above the threshold.",
            hint="Raise the threshold.",
        )
