"""Finds by measurement how many requests a server can work on at the same time.

The window is the number of requests in flight. It grows while the throughput rises, because a
server that still has free slots answers each request as fast as before: to 128 requests after the
first answer, then by a factor of two. It is halved when the server rejects requests or does not
answer, and then grows slowly, as in TCP (RFC 5681).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Literal

_START = 32
_MOST = 4_096
# A large server is almost idle until its window is found, so the first step is a large one. What
# follows from the first answer, and leads to the first rows, is sent before the requests that this
# step adds. On a small server, what follows from later answers waits for these.
_FIRST_STEP = 128
# A busy server answers the first requests that a doubled window adds half as fast as those before,
# an idle one as fast. In between, the throughput still rises, by a fifth.
_SLOWER = 2 / 1.2
# Four answers are enough to grow. To stop, a sixteenth of the window is needed too.
_LEAST_ANSWERS, _SHARE = 4, 16
# The resolution of the clock, which may not show the time of a fast answer.
_LEAST_S = 1e-6


@dataclass(slots=True)
class MeasuredWindow:
    """The number of requests in flight; `sent` and `answered` report each request.

    Window sizes are compared by the median of the seconds per output token of the requests that
    were sent at each size, so that long answers need not be awaited.
    """

    size: int = _START
    _phase: Literal["growing", "found", "recovering"] = "growing"
    _level: int = 0
    _size_before: int = _START
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
        if self._phase == "found" or tokens < 1:
            return
        if self._phase == "recovering":
            if level == self._level:
                self._recover()
            return
        if self._sent < _START:
            # A request alone, such as one that checks the server, is answered faster than others.
            return
        token_s = max(seconds, _LEAST_S) / tokens
        if level == 0:
            if len(self._before) < _LEAST_ANSWERS:
                self._before.append(token_s)
            if self._level == 0:
                self.size = _FIRST_STEP
                self._next_level()
        elif level == self._level:
            self._now.append(token_s)
            if len(self._now) >= _LEAST_ANSWERS:
                self._compare()

    def _compare(self) -> None:
        """Grow if the server is as fast as at the smaller size; go back if enough are slow."""
        if median(self._now) <= _SLOWER * median(self._before):
            if self.size >= _MOST:
                self._phase = "found"
                return
            self._size_before, self._before = self.size, list(self._now)
            self.size = min(2 * self.size, _MOST)
        elif len(self._now) < self.size // _SHARE:
            return
        elif self.size > 2 * self._size_before:
            # The first step was too large, but a smaller one may not be.
            self.size = 2 * self._size_before
        else:
            self.size, self._phase = self._size_before, "found"
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
