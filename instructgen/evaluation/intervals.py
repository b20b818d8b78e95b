"""Bootstrap intervals of means and ratios, of one model or of two on the same rows.

Rows are drawn with replacement (Efron 1979); a pair of models is always measured on
the same draw, so that what rows have in common cancels out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_DRAWS = 4_000
_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95% interval, and the rows it comes from."""

    value: float
    low: float
    high: float
    rows: int


def ratio(parts: Sequence[float], wholes: Sequence[float], seed: int = 0) -> Estimate:
    """The sum of parts over the sum of wholes, both by row; a mean where each whole is 1."""
    return _bootstrap([np.asarray(parts, float)], np.asarray(wholes, float), [1.0], seed)


def ratio_difference(
    after: Sequence[float], before: Sequence[float], wholes: Sequence[float], seed: int = 0
) -> Estimate:
    """How far one model's ratio lies from another's, on the same rows."""
    parts = [np.asarray(after, float), np.asarray(before, float)]
    return _bootstrap(parts, np.asarray(wholes, float), [1.0, -1.0], seed)


def _bootstrap(
    parts: Sequence[np.ndarray], wholes: np.ndarray, signs: Sequence[float], seed: int
) -> Estimate:
    count = len(wholes)
    if not count:
        raise ValueError("no rows to measure")
    signed = np.sum([s * p for s, p in zip(signs, parts, strict=True)], axis=0)
    rng = np.random.default_rng([seed, 1])
    found = []
    for _ in range(0, _DRAWS, _AT_ONCE):
        draws = rng.multinomial(count, np.full(count, 1 / count), size=_AT_ONCE)
        found.append((draws @ signed) / (draws @ wholes))
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975])
    return Estimate(float(signed.sum() / wholes.sum()), float(low), float(high), count)
