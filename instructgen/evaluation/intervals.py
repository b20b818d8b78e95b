"""Bootstrap confidence intervals for a measure of a model, or for the difference of two models.

A measure is the ratio of two sums over rows, such as the bits of all answers divided by their
bytes. Rows are resampled with replacement (Efron 1979). Two models are always measured on the
same resamples, so that variation between rows that affects both models cancels out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from instructgen.schema.measures import Estimate

_RESAMPLES = 4_000
_RESAMPLES_PER_BATCH = 200


def ratio(parts: Sequence[float], wholes: Sequence[float], seed: int = 0) -> Estimate:
    """Return the sum of ``parts`` divided by that of ``wholes``, with a 95% confidence interval.

    Both sequences have one value per row. Raises ValueError if they are empty.
    """
    return _bootstrap([np.asarray(parts, float)], np.asarray(wholes, float), [1.0], seed)


def ratio_difference(
    after: Sequence[float], before: Sequence[float], wholes: Sequence[float], seed: int = 0
) -> Estimate:
    """Return ``ratio(after, wholes) - ratio(before, wholes)`` with its interval; see `ratio`."""
    parts = [np.asarray(after, float), np.asarray(before, float)]
    return _bootstrap(parts, np.asarray(wholes, float), [1.0, -1.0], seed)


def _bootstrap(
    parts: Sequence[np.ndarray], wholes: np.ndarray, signs: Sequence[float], seed: int
) -> Estimate:
    count = len(wholes)
    if not count:
        raise ValueError("a confidence interval requires at least one row")
    signed = np.sum([s * p for s, p in zip(signs, parts, strict=True)], axis=0)
    rng = np.random.default_rng([seed, 1])
    ratios = []
    for _ in range(0, _RESAMPLES, _RESAMPLES_PER_BATCH):
        draws = rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES_PER_BATCH)
        ratios.append((draws @ signed) / (draws @ wholes))
    low, high = np.quantile(np.concatenate(ratios), [0.025, 0.975])
    return Estimate(float(signed.sum() / wholes.sum()), float(low), float(high), count)
