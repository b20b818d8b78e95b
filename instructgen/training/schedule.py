"""Decide before training which rows each step uses, so that resumed runs use the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Schedule:
    """Row numbers in training order.

    ``last`` is the number of supervised tokens (tokens that the loss covers) to use from the last
    row, if a token budget ends within that row.
    """

    order: list[int]
    batch_size: int
    last: int | None = None

    @property
    def steps(self) -> int:
        """Number of optimizer steps; the last step may have fewer rows."""
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
    """Schedule ``count`` rows for a number of epochs or steps, in a new order in every epoch.

    ``steps`` overrides ``epochs``. If ``whole`` is true, rows are added until the last batch is
    full.
    """
    needed = steps * batch_size if steps is not None else max(1, round(epochs * count))
    if whole:
        needed = -(-needed // batch_size) * batch_size
    rng = np.random.default_rng([seed, 0])
    order: list[int] = []
    while len(order) < needed:
        order += rng.permutation(count).tolist()
    return Schedule(order[:needed], batch_size)


def schedule_tokens(tokens: Sequence[int], budget: int, batch_size: int, seed: int) -> Schedule:
    """Schedule rows up to an exact number of supervised tokens (tokens that the loss covers).

    Args:
        tokens: number of supervised tokens in each row; at least one must be positive.
        budget: number of supervised tokens to train on.
        batch_size: number of rows per optimizer step.
        seed: random seed for the row order.
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
    batch_size: int, requested: int | None, processes: int, most: int = 4
) -> tuple[int, int]:
    """Return the micro-batch size per device and the number of gradient accumulation steps.

    Args:
        batch_size: number of rows per optimizer step, over all devices.
        requested: requested micro-batch size; None for the largest divisor of the rows per device
            that is at most ``most``.
        processes: number of processes, one per device.
        most: maximum micro-batch size if none is requested.

    Raises:
        ValueError: the batch cannot be divided evenly into micro-batches.
    """
    share, rest = divmod(batch_size, processes)
    if rest or not share:
        raise ValueError(
            f"batch_size {batch_size} cannot be divided evenly among {processes} processes"
        )
    if requested is None:
        requested = max(n for n in range(1, most + 1) if share % n == 0)
    if share % requested:
        raise ValueError(
            f"batch_size {share} per device is not a multiple of micro_batch_size {requested}"
        )
    return requested, share // requested
