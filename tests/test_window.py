"""Tests of the window of requests in flight, with simulated servers in virtual time."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgen.engines.window import MeasuredWindow

START, MOST = 32, 4096
TOKEN_S = 0.01
LENGTHS: dict[str, Callable[[random.Random], int]] = {
    "equal": lambda rng: 100,
    "uniform": lambda rng: rng.randint(20, 200),
    "exponential": lambda rng: 1 + int(rng.expovariate(1 / 100)),
}


class Sent(NamedTuple):
    """A request in flight: its time of sending, level and number of output tokens."""

    at: float
    level: int
    tokens: int


def simulate(slots: int, seed: int, lengths: str, answers: int) -> list[int]:
    """Keep the window full, and return its sizes in the order in which it had them.

    The server answers ``slots`` requests at the same time, all at the same speed; others wait.
    """
    rng, window = random.Random(seed), MeasuredWindow()
    sizes, now, order = [window.size], 0.0, 0
    waiting: deque[Sent] = deque()
    busy: list[tuple[float, int, Sent]] = []
    for _ in range(answers):
        while len(waiting) + len(busy) < window.size:
            waiting.append(Sent(now, window.sent(), LENGTHS[lengths](rng)))
        while waiting and len(busy) < slots:
            request, order = waiting.popleft(), order + 1
            heapq.heappush(busy, (now + request.tokens * TOKEN_S, order, request))
        now, _, request = heapq.heappop(busy)
        window.answered(request.level, now - request.at, request.tokens)
        if window.size != sizes[-1]:
            sizes.append(window.size)
    return sizes


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("slots", [8, 64, 256])
def test_the_window_uses_all_slots_and_few_requests_wait(slots: int, lengths: str) -> None:
    for seed in range(5):
        sizes = simulate(slots, seed, lengths, answers=2_000)
        assert slots <= sizes[-1] <= max(START, 2 * slots)
        # It has grown, gone back, and stayed there.
        grown = [START, 4 * START, 8 * START, 16 * START, 32 * START]
        top = grown.index(max(sizes))
        back = [2 * START, START] if top == 1 else [grown[top - 1]]
        assert sizes == [*grown[: top + 1], *back]


def test_the_window_does_not_grow_before_it_was_full() -> None:
    window = MeasuredWindow()
    for _ in range(START - 1):
        window.answered(window.sent(), 1.0, 10)
    assert window.size == START
    window.answered(window.sent(), 1.0, 10)
    assert window.size == 4 * START


@pytest.mark.parametrize(("slower", "size"), [(1.5, 4 * START), (1.9, START)])
def test_a_first_step_that_is_too_large_is_halved_before_the_search_ends(
    slower: float, size: int
) -> None:
    """A server is half as fast with 128 requests as with 32, and with 64 slower by this factor."""
    window = MeasuredWindow()
    for _ in range(START):
        window.sent()
    for _ in range(4):
        window.answered(0, 1.0, 10)
    for _ in range(8):
        window.answered(window.sent(), 2.0, 10)
    assert window.size == 2 * START
    for _ in range(4):
        window.answered(window.sent(), slower, 10)
    assert window.size == size


def test_a_server_without_a_limit_gets_the_largest_window() -> None:
    assert simulate(10 * MOST, 0, "equal", answers=3 * MOST)[-1] == MOST


def test_a_rejection_halves_the_window() -> None:
    window = MeasuredWindow()
    for size in (16, 8, 4, 2, 1, 1):
        window.rejected(window.sent())
        assert window.size == size


def test_many_rejections_by_one_overload_halve_the_window_once() -> None:
    window = MeasuredWindow()
    levels = [window.sent() for _ in range(START)]
    for level in levels:
        window.rejected(level)
    assert window.size == START // 2
    window.rejected(window.sent())
    assert window.size == START // 4


def test_after_a_rejection_the_window_grows_by_one_per_window_of_answers() -> None:
    window = MeasuredWindow()
    window.rejected(window.sent())
    for size in range(START // 2, START // 2 + 5):
        for _ in range(size):
            assert window.size == size
            window.answered(window.sent(), 1.0, 10)
    assert window.size == START // 2 + 5


def test_a_rejection_ends_the_growth_and_the_count_of_answers_begins_again() -> None:
    window = MeasuredWindow(size=8)
    window.rejected(window.sent())
    for _ in range(3):
        window.answered(window.sent(), 1.0, 10)
    window.rejected(window.sent())
    assert window.size == 2
    window.answered(window.sent(), 1.0, 10)
    assert window.size == 2
    window.answered(window.sent(), 1.0, 10)
    assert window.size == 3


def test_a_rejection_also_halves_a_window_that_was_found() -> None:
    window = MeasuredWindow()
    while window.size <= START:
        window.answered(window.sent(), 1.0, 10)
    while window.size > START:
        # Twice as many requests take twice as long.
        window.answered(window.sent(), 2.0, 10)
    for _ in range(10 * START):
        window.answered(window.sent(), 0.1, 10)
    assert window.size == START
    window.rejected(window.sent())
    assert window.size == START // 2


@pytest.mark.parametrize("seconds", [0.01, 100.0])
def test_answers_of_an_earlier_level_or_without_tokens_do_not_count(seconds: float) -> None:
    window = MeasuredWindow()
    old = window.sent()
    for _ in range(START):
        window.sent()
    for _ in range(4):
        window.answered(old, 1.0, 10)
    assert window.size == 4 * START
    for _ in range(1_000):
        window.answered(old, seconds, 10)
        window.answered(window.sent(), seconds, 0)
    assert window.size == 4 * START


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["answered", "answered", "rejected"]),
            st.integers(0, 3),
            st.floats(0, 1e6, allow_nan=False),
            st.integers(0, 5_000),
            st.integers(1, 300),
        ),
        max_size=30,
    ),
    st.sampled_from([1, 2, 3, START, MOST - 1, MOST]),
)
def test_the_size_stays_between_1_and_4096(
    events: list[tuple[str, int, float, int, int]], size: int
) -> None:
    window = MeasuredWindow(size=size)
    for kind, age, seconds, tokens, times in events:
        for _ in range(times):
            level = max(0, window.sent() - age)
            if kind == "rejected":
                window.rejected(level)
            else:
                window.answered(level, seconds, tokens)
            assert 1 <= window.size <= MOST
