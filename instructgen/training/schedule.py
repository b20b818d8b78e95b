"""Which rows make up which step: known beforehand, so that a resumed run counts right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Schedule:
    """The rows in the order in which they are trained.

    ``last`` is how many tokens of the last one count, where a budget ends in it.
    """

    order: list[int]
    batch_size: int
    last: int | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps; the last one may have fewer rows."""
        return -(-len(self.order) // self.batch_size)


def schedule(
    count: int,
    batch_size: int,
    seed: int,
    *,
    epochs: float,
    steps: int | None = None,
    whole: bool = False,
) -> Schedule:
    """Rows for so many passes or steps, each pass in an order of its own.

    With ``whole`` the last step has as many rows as the others.
    """
    wanted = steps * batch_size if steps is not None else max(1, round(epochs * count))
    if whole:
        wanted = -(-wanted // batch_size) * batch_size
    rng = np.random.default_rng([seed, 0])
    order: list[int] = []
    while len(order) < wanted:
        order += rng.permutation(count).tolist()
    return Schedule(order[:wanted], batch_size)


def schedule_tokens(tokens: Sequence[int], budget: int, batch_size: int, seed: int) -> Schedule:
    """Rows until their tokens come to a budget, exactly.

    Args:
        tokens: the supervised tokens of each row, at least one in all.
        budget: how many to train on.
        batch_size: rows per step.
        seed: of the order.
    """
    rng = np.random.default_rng([seed, 0])
    order: list[int] = []
    left = budget
    while True:
        for row in rng.permutation(len(tokens)).tolist():
            if tokens[row] == 0:
                continue
            order.append(row)
            if tokens[row] >= left:
                return Schedule(order, batch_size, left)
            left -= tokens[row]


def micro_batch(
    batch_size: int, asked: int | None, processes: int, most: int = 4
) -> tuple[int, int]:
    """Rows at a time on a device, and how many times before a step.

    Args:
        batch_size: rows per step, on all devices together.
        asked: rows at a time; None for as many as divide their share, ``most`` at most.
        processes: devices.
        most: see above.

    Raises:
        ValueError: the batch cannot be divided so.
    """
    share, rest = divmod(batch_size, processes)
    if rest or not share:
        raise ValueError(f"batch_size {batch_size} cannot be shared by {processes} processes")
    if asked is None:
        asked = max(n for n in range(1, most + 1) if share % n == 0)
    if share % asked:
        raise ValueError(f"batch_size {share} per device is no multiple of {asked}")
    return asked, share // asked
