"""Measure how much of one text appears in another text, in order and close together.

The measure is the weight of the best local alignment (Smith and Waterman 1981), divided by the
total weight of the words to look for. The weight of an alignment is the sum of the weights of the
matched words, minus a fraction of the mean word weight for each extra word between two matches.
Texts are arrays of word numbers (integer ids of words); this module does not tokenize.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from instructgen.similarity.jit import jit

Numbers = npt.NDArray[np.int32]
Weights = npt.NDArray[np.float64]

# Cost of an extra word between two matched words, as a fraction of the mean word weight.
_GAP = 0.25


def shares(wanted: Numbers, weights: Weights, text: Numbers) -> tuple[float, float]:
    """Return the fraction of the words ``wanted`` found in ``text``, by count and by weight.

    Args:
        wanted: ids of the words to look for, in order, of shape (words,), all above 0.
        weights: weight of each of these words, of shape (words,).
        text: ids of the words of the text to search, in order, of shape (text words,).

    Returns:
        The fraction of the word count and the fraction of the total weight, each from 0 to 1.
    """
    if not len(wanted) or not len(text):
        return 0.0, 0.0
    equal = np.ones(len(wanted))
    return _share(wanted, equal, text), _share(wanted, weights, text)


def _share(wanted: Numbers, weights: Weights, text: Numbers) -> float:
    total = float(weights.sum())
    best = _compiled_alignment_weight(wanted, weights, text, _GAP * total / len(wanted))
    return min(1.0, best / total) if total else 0.0


def _alignment_weight(wanted: Any, weights: Any, text: Any, gap: float) -> float:
    row = np.zeros(len(text) + 1)
    best = 0.0
    for i in range(len(wanted)):
        word, weight = wanted[i], weights[i]
        diagonal = 0.0
        for j in range(1, len(text) + 1):
            # Skip the word of ``wanted``, skip the word of ``text``, or match them.
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


_compiled_alignment_weight = jit(_alignment_weight)
