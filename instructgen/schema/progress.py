"""Defines the progress event that all commands report while they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a command.

    ``stage`` names the current work. ``done`` and ``total`` count ``unit``; ``total`` is None
    if unknown. ``figures`` are named numbers to show, ``notes`` further lines of text.
    ``seconds_left`` is an estimate.
    """

    stage: str
    done: int
    total: int | None = None
    unit: str = "rows"
    figures: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds_left: float | None = None


Watch = Callable[[Progress], None]
