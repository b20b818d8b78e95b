"""Bootstrap intervals compared with intervals known from statistics, and what uses them."""

from __future__ import annotations

import numpy as np
import pytest

from instructgen.evaluation.intervals import Estimate, ratio, ratio_difference
from instructgen.evaluation.measures import MeasuredRows, compared, pair_accuracy
from instructgen.evaluation.suites.winrate import length_controlled


def mean(values: list[float]) -> Estimate:
    return ratio(values, [1.0] * len(values))


def test_interval_of_a_mean_equals_the_normal_interval() -> None:
    values = np.random.default_rng(3).normal(5, 2, 400)
    estimate = mean(values.tolist())
    error = 1.96 * values.std() / np.sqrt(len(values))
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - error, abs=0.03)
    assert estimate.high == pytest.approx(values.mean() + error, abs=0.03)


def test_intervals_cover_the_true_mean_about_95_percent_of_the_time() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(150):
        estimate = mean(rng.exponential(1.0, 120).tolist())
        covered += estimate.low <= 1.0 <= estimate.high
    assert 0.88 <= covered / 150 <= 0.99


def test_pairing_cancels_the_variation_between_rows() -> None:
    rng = np.random.default_rng(5)
    rows = rng.normal(0, 10, 200)
    better = rows - 0.1 + rng.normal(0, 0.05, 200)
    paired = ratio_difference(better.tolist(), rows.tolist(), [1.0] * 200)
    assert paired.low < 0
    assert paired.high < 0
    alone = mean(better.tolist())
    assert alone.high - alone.low > 20 * (paired.high - paired.low)


def test_ratios_weight_rows_by_their_wholes() -> None:
    estimate = ratio([1.0, 100.0], [1.0, 1000.0])
    assert estimate.value == pytest.approx(101 / 1001)
    both = ratio_difference([2.0, 4.0], [1.0, 2.0], [1.0, 1.0])
    assert both.value == pytest.approx(1.5)


def test_the_same_rows_give_the_same_interval() -> None:
    assert mean([1.0, 2.0, 4.0]) == mean([1.0, 2.0, 4.0])


def test_measures_are_compared_on_their_shared_rows() -> None:
    after = MeasuredRows("m", [1.0, 2.0, 9.0], [1.0, 1.0, 1.0], ["a", "b", "c"])
    before = MeasuredRows("m", [3.0, 1.0], [1.0, 1.0], ["b", "a"])
    measure = compared(after, before)
    assert measure.difference is not None
    assert measure.difference.value == pytest.approx(-0.5)
    assert measure.difference.rows == 2


def test_a_tie_counts_half() -> None:
    accuracy = pair_accuracy({"a": 1.0, "b": 0.0, "c": -1.0})
    assert accuracy.estimate.value == pytest.approx(0.5)


@pytest.mark.parametrize(("seeds", "most"), [(2, 0.09), (3, 0.09), (5, 0.09)])
def test_ablation_rarely_reports_a_difference_between_equal_arms(seeds: int, most: float) -> None:
    """Equal arms that differ only by seed: few 95% intervals exclude 0."""
    from instructgen.commands.ablate import _interval

    rng = np.random.default_rng(9)
    bytes_ = rng.integers(50, 200, 60).astype(float)
    significant = 0
    for _ in range(250):
        one, other = (
            bytes_ * (1 + rng.normal(0, 0.01, (seeds, 1)) + rng.normal(0, 0.02, (seeds, 60)))
            for _ in range(2)
        )
        low, high = _interval(one, other, bytes_)
        significant += low > 0 or high < 0
    assert significant / 250 <= most


def test_length_control_removes_wins_that_length_explains() -> None:
    rng = np.random.default_rng(6)
    lengths = [(int(a), int(b)) for a, b in rng.integers(10, 400, (400, 2))]
    longer = [float(a > b) for a, b in lengths]
    # Every first answer wins and is much longer, so the effect of length cannot be separated.
    padded = [(a + 500, b) for a, b in lengths]
    assert np.mean(longer) == pytest.approx(0.5, abs=0.1)
    assert length_controlled(longer, lengths) == pytest.approx(0.5, abs=0.1)
    assert length_controlled([1.0] * 400, padded) > 0.9
    honest = [float(rng.random() < 0.8) for _ in lengths]
    assert length_controlled(honest, lengths) == pytest.approx(0.8, abs=0.06)
