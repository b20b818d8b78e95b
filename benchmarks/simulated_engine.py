"""An engine for scale.py that answers like a model with a number of slots, without computing.

A slot makes a number of tokens per second. The length of an answer is drawn with the seed of the
request, from the distribution of model_server.py.
"""

from __future__ import annotations

import heapq
import math
import queue
import random
import time

from pydantic import Field, PrivateAttr

from instructgen.engines import Completion, Engine, Request

# As in model_server.py, which a plug-in cannot import.
MEDIAN, MOST = 120, 1024
SIGMA = math.log(MOST / MEDIAN) / 2.3263


def tokens(rng: random.Random) -> int:
    """Draw the number of tokens of an answer."""
    return max(4, min(MOST, round(MEDIAN * rng.lognormvariate(0, SIGMA))))


class SimulatedEngine(Engine):
    """Answers ``slots_`` requests at a time, each at ``rate`` tokens per second."""

    name = "simulated"

    slots_: int = Field(16, description="Number of requests that are answered at the same time.")
    rate: float = Field(50.0, description="Tokens per second of each slot.")

    _submitted: queue.SimpleQueue[tuple[int, Request]] = PrivateAttr(
        default_factory=queue.SimpleQueue
    )
    # The time at which each answer is complete, its request and its number of tokens.
    _active: list[tuple[float, int, int]] = PrivateAttr(default_factory=list)

    def has_chat_template(self) -> bool:
        """Return False."""
        return False

    def slots(self) -> int:
        """Return the number of slots."""
        return self.slots_

    def window(self) -> int:
        """Return the slots and a few more, as for vLLM."""
        return self.slots_ + max(1, self.slots_ // 8)

    def submit(self, number: int, request: Request) -> None:
        """Take a request."""
        self._submitted.put((number, request))

    def cancel(self, number: int) -> None:
        """Free the slot of a request."""
        self._active = [each for each in self._active if each[1] != number]
        heapq.heapify(self._active)

    def next(self, timeout_s: float = 60.0) -> tuple[int, Completion] | None:
        """Wait until an answer is complete."""
        deadline = time.monotonic() + timeout_s
        while (now := time.monotonic()) < deadline:
            if self._active and self._active[0][0] <= now:
                _, number, count = heapq.heappop(self._active)
                return number, Completion(f"answer {number}", "stop", 500, count)
            due = self._active[0][0] if self._active else deadline
            try:
                if len(self._active) >= self.slots_:
                    time.sleep(max(0.0, min(due, deadline) - now))
                    continue
                wait = max(0.0, min(due, deadline) - now)
                number, request = self._submitted.get(timeout=wait)
            except queue.Empty:
                continue
            count = tokens(random.Random(request.sampling.seed))
            heapq.heappush(self._active, (time.monotonic() + count / self.rate, number, count))
        return None
