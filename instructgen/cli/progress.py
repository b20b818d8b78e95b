"""Shows the progress of a command: a live line on a terminal, otherwise a log line every 10 s."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from instructgen.printable import printable
from instructgen.schema.progress import Progress, Watch

_LINE_EVERY_S = 10.0
_BAR = 24


@contextmanager
def watching(console: Console, *, show: bool, first: str = "reading ...") -> Iterator[Watch | None]:
    """Yield a callback that shows progress, or None if ``show`` is false.

    Args:
        console: the console to print on.
        show: whether to show anything.
        first: the text that a terminal shows until the command first reports progress.
    """
    if not show:
        yield None
    elif console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            live.update(Text(first))
            yield lambda progress: live.update(Text("\n".join(lines(progress))))
    else:
        last = time.monotonic()

        def log(progress: Progress) -> None:
            nonlocal last
            if time.monotonic() - last >= _LINE_EVERY_S:
                last = time.monotonic()
                console.print("; ".join(lines(progress)), markup=False)

        yield log


def lines(p: Progress) -> list[str]:
    """Return lines that show progress: one with a bar, counts and the time left, then any notes."""
    counted = f"{p.done:,} {p.unit}"
    bar = ""
    if p.total:
        filled = round(_BAR * min(1.0, p.done / p.total))
        bar = f"{'━' * filled}{'╌' * (_BAR - filled)} "
        counted = f"{p.done:,} of {p.total:,} {p.unit}"
    parts = [f"{bar}{p.stage}: {counted}"]
    parts += [
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.4g}"
        for name, value in p.figures.items()
    ]
    if p.seconds_left is not None:
        parts.append(f"{_clock(p.seconds_left)} left")
    return [printable(line) for line in (", ".join(parts), *p.notes)]


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
