"""Finds by measurement how many requests a server can work on at the same time.

The window is the number of requests in flight. It doubles while the throughput rises, because a
server that still has free slots answers each request as fast as before. It is halved when the
server rejects requests or does not answer, and then grows slowly, as in TCP (RFC 5681).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Literal

_START = 32
_MOST = 4_096
# A doubled window of a busy server gives the same throughput; of an idle one, twice as much.
_RISE = 1.2
# The completions of a window size from which its throughput is estimated, at least four.
_SHARE = 16
# The resolution of the clock, which may not show the time of a fast answer.
_LEAST_S = 1e-6


@dataclass(slots=True)
class MeasuredWindow:
    """The number of requests in flight; `sent` and `answered` report each request.

    The throughput of a window size is estimated as the size divided by the median seconds per
    output token of requests sent at this size, so that long answers need not be awaited.
    """

    size: int = _START
    _phase: Literal["doubling", "found", "recovering"] = "doubling"
    _level: int = 0
    _before: float = 0.0
    _rates: list[float] = field(default_factory=list)
    _successes: int = 0

    def sent(self) -> int:
        """Return the level of the window, to be passed to `answered` or `rejected` later."""
        return self._level

    def answered(self, level: int, seconds: float, tokens: int) -> None:
        """Take in that a request of this level was answered after ``seconds``."""
        if level != self._level or self._phase == "found" or tokens < 1:
            return
        if self._phase == "recovering":
            self._successes += 1
            if self._successes >= self.size < _MOST:
                self.size, self._successes = self.size + 1, 0
            return
        self._rates.append(max(seconds, _LEAST_S) / tokens)
        if len(self._rates) < max(4, self.size // _SHARE):
            return
        throughput = self.size / median(self._rates)
        if throughput < _RISE * self._before:
            # The larger window gave nothing: go back to the one before.
            self.size, self._phase = self.size // 2, "found"
        elif self.size >= _MOST:
            self._phase = "found"
        else:
            self.size = min(2 * self.size, _MOST)
        self._before = throughput
        self._next_level()

    def rejected(self, level: int) -> None:
        """Halve the window, because a request of this level was rejected or not answered."""
        # One overload rejects many requests, which were all sent before the window was halved.
        if level == self._level:
            self.size, self._phase = max(1, self.size // 2), "recovering"
            self._successes = 0
            self._next_level()

    def _next_level(self) -> None:
        self._level += 1
        self._rates.clear()
