"""What a command tells of its work while it works: one kind of event for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a command is.

    ``stage`` names what is done, ``done`` and ``total`` count its ``unit`` (``total`` where
    it is known). ``figures`` are numbers to show with it, by name; ``notes`` further lines.
    ``seconds_left`` is a guess.
    """

    stage: str
    done: int
    total: int | None = None
    unit: str = "rows"
    figures: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds_left: float | None = None


Watch = Callable[[Progress], None]
