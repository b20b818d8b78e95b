"""Bootstrap intervals against what statistics says they should be."""

from __future__ import annotations

import numpy as np
import pytest

from instructgen.evaluation.intervals import Estimate, ratio, ratio_difference
from instructgen.evaluation.measures import Measured, compared, pair_accuracy
from instructgen.evaluation.suites.winrate import length_controlled


def mean(values: list[float]) -> Estimate:
    return ratio(values, [1.0] * len(values))


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(3).normal(5, 2, 400)
    found = mean(values.tolist())
    error = 1.96 * values.std() / np.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - error, abs=0.03)
    assert found.high == pytest.approx(values.mean() + error, abs=0.03)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(150):
        found = mean(rng.exponential(1.0, 120).tolist())
        covered += found.low <= 1.0 <= found.high
    assert 0.88 <= covered / 150 <= 0.99


def test_pairing_removes_what_rows_have_in_common() -> None:
    rng = np.random.default_rng(5)
    rows = rng.normal(0, 10, 200)
    better = rows - 0.1 + rng.normal(0, 0.05, 200)
    paired = ratio_difference(better.tolist(), rows.tolist(), [1.0] * 200)
    assert paired.low < 0
    assert paired.high < 0
    alone = mean(better.tolist())
    assert alone.high - alone.low > 20 * (paired.high - paired.low)


def test_ratios_weigh_rows_by_their_size() -> None:
    found = ratio([1.0, 100.0], [1.0, 1000.0])
    assert found.value == pytest.approx(101 / 1001)
    both = ratio_difference([2.0, 4.0], [1.0, 2.0], [1.0, 1.0])
    assert both.value == pytest.approx(1.5)


def test_the_same_rows_give_the_same_interval() -> None:
    assert mean([1.0, 2.0, 4.0]) == mean([1.0, 2.0, 4.0])


def test_measures_are_compared_on_the_rows_that_both_have() -> None:
    after = Measured("m", [1.0, 2.0, 9.0], [1.0, 1.0, 1.0], ["a", "b", "c"])
    before = Measured("m", [3.0, 1.0], [1.0, 1.0], ["b", "a"])
    found = compared(after, before)
    assert found["difference"]["value"] == pytest.approx(-0.5)
    assert found["difference"]["rows"] == 2


def test_a_tie_counts_half() -> None:
    found = pair_accuracy({"a": 1.0, "b": 0.0, "c": -1.0})
    assert found.estimate.value == pytest.approx(0.5)


@pytest.mark.parametrize(("seeds", "most"), [(2, 0.09), (3, 0.09), (5, 0.09)])
def test_an_ablation_seldom_finds_what_is_not_there(seeds: int, most: float) -> None:
    """Equal arms whose seeds differ: the interval excludes 0 about as often as it says."""
    from instructgen.commands.ablate import _interval

    rng = np.random.default_rng(9)
    bytes_ = rng.integers(50, 200, 60).astype(float)
    found = 0
    for _ in range(250):
        one, other = (
            bytes_ * (1 + rng.normal(0, 0.01, (seeds, 1)) + rng.normal(0, 0.02, (seeds, 60)))
            for _ in range(2)
        )
        low, high = _interval(one, other, bytes_)
        found += low > 0 or high < 0
    assert found / 250 <= most


def test_wins_by_length_alone_vanish_at_equal_lengths() -> None:
    rng = np.random.default_rng(6)
    lengths = [(int(a), int(b)) for a, b in rng.integers(10, 400, (400, 2))]
    longer = [float(a > b) for a, b in lengths]
    # Every answer is longer by a lot: all its wins come from that.
    padded = [(a + 500, b) for a, b in lengths]
    assert np.mean(longer) == pytest.approx(0.5, abs=0.1)
    assert length_controlled(longer, lengths) == pytest.approx(0.5, abs=0.1)
    assert length_controlled([1.0] * 400, padded) > 0.9
    honest = [float(rng.random() < 0.8) for _ in lengths]
    assert length_controlled(honest, lengths) == pytest.approx(0.8, abs=0.06)
