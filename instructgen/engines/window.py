"""Finds by measurement how many requests a server can work on at the same time.

The window is the number of requests in flight. It grows while the throughput rises, because a
server that still has free slots answers each request as fast as before: first by a factor of four,
then by two. It is halved when the server rejects requests or does not answer, and then grows
slowly, as in TCP (RFC 5681).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Literal

_START = 32
_MOST = 4_096
# A large server is almost idle until its window is found, so the first step is a large one.
_FIRST_GROWTH, _GROWTH = 4, 2
# A busy server answers the first requests that a doubled window adds half as fast as those before,
# an idle one as fast. In between, the throughput still rises, by a fifth.
_SLOWER = 2 / 1.2
# The completions of a window size from which its speed is estimated, and the least of them.
_SHARE, _LEAST = 16, 4
# The resolution of the clock, which may not show the time of a fast answer.
_LEAST_S = 1e-6


@dataclass(slots=True)
class MeasuredWindow:
    """The number of requests in flight; `sent` and `answered` report each request.

    The speed at a window size is the median of the seconds per output token of the requests that
    were sent at this size, so that long answers need not be awaited.
    """

    size: int = _START
    _phase: Literal["growing", "found", "recovering"] = "growing"
    _level: int = 0
    _size_before: int = 0
    # Seconds per output token at the last smaller size that the server had slots for, and at this.
    _before: list[float] = field(default_factory=list)
    _now: list[float] = field(default_factory=list)
    _sent: int = 0
    _successes: int = 0

    def sent(self) -> int:
        """Return the level of the window, to be passed to `answered` or `rejected` later."""
        self._sent += 1
        return self._level

    def answered(self, level: int, seconds: float, tokens: int) -> None:
        """Take in that a request of this level was answered after ``seconds``."""
        # A request alone at the start, as a check of the server, is answered faster than others.
        if self._phase == "found" or tokens < 1 or self._sent < _START:
            return
        if self._phase == "recovering":
            if level == self._level:
                self._recover()
            return
        speed = max(seconds, _LEAST_S) / tokens
        if level == 0 < self._level and len(self._before) < _LEAST:
            self._before.append(speed)
        elif level == self._level:
            self._now.append(speed)
            self._grow()

    def _grow(self) -> None:
        if not self._before:
            # Nothing to compare with yet: one answer shows that the server works.
            self._step(_FIRST_GROWTH)
        elif len(self._now) >= max(_LEAST, self.size // _SHARE):
            if median(self._now) <= _SLOWER * median(self._before):
                self._step(_GROWTH)
            elif self.size > _GROWTH * self._size_before:
                self.size = _GROWTH * self._size_before
                self._next_level()
            else:
                self.size, self._phase = self._size_before, "found"
                self._next_level()

    def _step(self, growth: int) -> None:
        """Grow the window, because the server has slots for the present one."""
        if self.size >= _MOST:
            self._phase = "found"
            return
        self._size_before, self._before = self.size, list(self._now)
        self.size = min(growth * self.size, _MOST)
        self._next_level()

    def _recover(self) -> None:
        """Grow by one request after a window of successful ones."""
        self._successes += 1
        if self._successes >= self.size < _MOST:
            self.size, self._successes = self.size + 1, 0

    def rejected(self, level: int) -> None:
        """Halve the window, because a request of this level was rejected or not answered."""
        # One overload rejects many requests, which were all sent before the window was halved.
        if level == self._level:
            self.size, self._phase = max(1, self.size // 2), "recovering"
            self._successes = 0
            self._next_level()

    def _next_level(self) -> None:
        self._level += 1
        self._now.clear()
