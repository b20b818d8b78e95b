"""Defines the progress events that all commands report while they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a command.

    ``stage`` is the name of the current stage. ``done`` is how many units, such as rows, are
    processed, and ``total`` how many there are, or None if unknown; ``unit`` is the plural name
    of the units. ``figures`` are numbers to display, by name, and ``notes`` are additional lines
    of text. ``seconds_left`` is the estimated remaining time, or None if it is unknown.
    """

    stage: str
    done: int
    total: int | None = None
    unit: str = "rows"
    figures: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds_left: float | None = None


Watch = Callable[[Progress], None]
