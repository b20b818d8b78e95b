"""Shows a run's progress: a live line on a terminal, a log line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from instructgen.generation.runner import Progress, Watch

_LINE_EVERY_S = 10.0


@contextmanager
def watching(console: Console, *, show: bool) -> Iterator[Watch | None]:
    """A watcher for `generate`; None when nothing is to be shown."""
    with _watching(console, show, "loading the model ...", lines) as watch:
        yield watch


@contextmanager
def watching_stages(
    console: Console, *, show: bool, unit: str = "rows"
) -> Iterator[Callable[..., None] | None]:
    """A watcher for a stage's name, the rows done with, and all of them where that is known."""
    with _watching(console, show, "reading ...", partial(_stage_lines, unit)) as watch:
        yield watch


@contextmanager
def watching_training(console: Console, *, show: bool) -> Iterator[Callable[..., None] | None]:
    """A watcher for `train`: its progress, and a name to stand before it."""
    with _watching(console, show, "loading the model ...", _training_lines) as watch:
        yield watch


@contextmanager
def _watching(
    console: Console, show: bool, first: str, said: Callable[..., list[str]]
) -> Iterator[Callable[..., None] | None]:
    if not show:
        yield None
    elif console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            live.update(Text(first))
            yield lambda *state: live.update(Text("\n".join(said(*state))))
    else:
        last = time.monotonic()

        def log(*state: Any) -> None:
            nonlocal last
            if time.monotonic() - last >= _LINE_EVERY_S:
                last = time.monotonic()
                console.print("; ".join(said(*state)), markup=False)

        yield log


def _stage_lines(unit: str, stage: str, done: int, count: int | None) -> list[str]:
    if not count:
        return [f"{stage}: {done:,} {unit}"]
    filled = round(24 * done / count)
    return [f"{'━' * filled}{'╌' * (24 - filled)} {stage}: {done:,} of {count:,} {unit}"]


def lines(p: Progress) -> list[str]:
    """The state of a run in two lines: rows and speed, then what the filters did."""
    tally = p.loop.tally
    rows, done = tally.kept_rows, min(1.0, tally.kept_rows / p.target)
    bar = "━" * round(24 * done) + "╌" * (24 - round(24 * done))
    left = ""
    # The first rows come late, so that a guess from few of them is far too high.
    if 10 * rows >= p.target and p.engine_s and not p.replayed:
        left = f", {_clock(p.engine_s * (p.target - rows) / rows)} left"
    first = (
        f"{bar} {rows:,}/{p.target:,} rows, {tally.kept_instructions:,} instructions, "
        f"batch {p.loop.batches_committed}, "
        f"{p.tokens_per_s:,.0f} tokens/s, engine idle {p.idle_share:.0%}{left}"
    )
    reasons: Counter[str] = Counter()
    for (_, name, reason), count in tally.rejected.items():
        reasons[f"{name}/{reason}"] += count
    share = tally.kept / tally.candidates if tally.candidates else 0.0
    worst = ", ".join(f"{name} {count}" for name, count in reasons.most_common(4))
    second = f"{tally.candidates:,} candidates, {share:.0%} kept"
    return [first, f"{second}; rejected: {worst}" if worst else second]


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _training_lines(p: Any, name: str = "") -> list[str]:
    filled = round(24 * p.step / p.steps)
    before = f"{name}: " if name else ""
    parts = [f"{before}{'━' * filled}{'╌' * (24 - filled)} step {p.step:,} of {p.steps:,}"]
    parts += [f"{k} {p.entry[k]:.4f}" for k in ("loss", "reward", "accuracy") if k in p.entry]
    if p.tokens:
        parts.append(f"{p.tokens_per_s:,.0f} tokens/s")
    if p.seconds_left is not None and p.step < p.steps:
        parts.append(f"{_clock(p.seconds_left)} left")
    return [", ".join(parts)]
