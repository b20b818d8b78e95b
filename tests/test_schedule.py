"""Which rows each step trains on, and how a batch is divided."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgen.training.schedule import micro_batch, schedule, schedule_tokens


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 5), st.floats(0.1, 4))
def test_every_row_is_used_equally_often(count: int, batch: int, seed: int, epochs: float) -> None:
    plan = schedule(count, batch, seed, epochs=epochs)
    assert len(plan.order) == max(1, round(epochs * count))
    seen = Counter(plan.order)
    assert max(seen.values()) - min(seen.get(i, 0) for i in range(count)) <= 1
    assert plan.steps == -(-len(plan.order) // batch)
    assert plan == schedule(count, batch, seed, epochs=epochs)


def test_steps_are_full_batches() -> None:
    plan = schedule(5, 4, 0, epochs=1, steps=7)
    assert (plan.steps, len(plan.order)) == (7, 28)


def test_different_seeds_give_different_orders() -> None:
    assert schedule(50, 1, 0, epochs=1).order != schedule(50, 1, 1, epochs=1).order


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=30).filter(any),
    st.integers(1, 2_000),
    st.integers(0, 3),
)
def test_a_token_budget_is_met_exactly(tokens: list[int], budget: int, seed: int) -> None:
    plan = schedule_tokens(tokens, budget, 4, seed)
    *before, last = plan.order
    assert sum(tokens[i] for i in before) + plan.last == budget
    assert 0 < plan.last <= tokens[last]


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 8))
def test_batches_are_divided_evenly(batch: int, processes: int, most: int) -> None:
    if batch % processes:
        with pytest.raises(ValueError, match=rf"\b{batch}\b.*\b{processes}\b"):
            micro_batch(batch, None, processes, most)
        return
    at_once, times = micro_batch(batch, None, processes, most)
    assert at_once * times * processes == batch
    assert at_once <= most


def test_a_micro_batch_that_does_not_divide_the_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\b8\b.*micro_batch_size 3\b"):
        micro_batch(8, 3, 1)
