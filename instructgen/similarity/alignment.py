"""How much of one text stands in another, in order and close together.

The share of a text's weight in its best local alignment (Smith and Waterman
1981) with another one: words of the text that are missing cost their own weight,
words between those found cost a part of the mean.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from instructgen.similarity.jit import jit

Numbers = npt.NDArray[np.int32]
Weights = npt.NDArray[np.float64]

# What a foreign word between two found ones costs, as a part of the mean weight.
_GAP = 0.25


def shares(wanted: Numbers, weights: Weights, text: Numbers) -> tuple[float, float]:
    """How much of ``wanted`` stands in ``text``: counted in words, and by weight.

    Args:
        wanted: (words,) the words looked for, as numbers above 0.
        weights: (words,) what each of them counts.
        text: (words,) where they are looked for.

    Returns:
        Both from 0 to 1.
    """
    if not len(wanted) or not len(text):
        return 0.0, 0.0
    equal = np.ones(len(wanted))
    return _share(wanted, equal, text), _share(wanted, weights, text)


def _share(wanted: Numbers, weights: Weights, text: Numbers) -> float:
    total = float(weights.sum())
    best = _best(wanted, weights, text, _GAP * total / len(wanted))
    return min(1.0, best / total) if total else 0.0


def _aligned(wanted: Any, weights: Any, text: Any, gap: float) -> float:
    row = np.zeros(len(text) + 1)
    best = 0.0
    for i in range(len(wanted)):
        word, weight = wanted[i], weights[i]
        diagonal = 0.0
        for j in range(1, len(text) + 1):
            # Without this word; after one more foreign word; with this word.
            above = row[j]
            value = above
            if row[j - 1] - gap > value:
                value = row[j - 1] - gap
            if text[j - 1] == word and diagonal + weight > value:
                value = diagonal + weight
            diagonal = above
            row[j] = value
            if value > best:
                best = value
    return best


_best = jit(_aligned)
