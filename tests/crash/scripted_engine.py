"""A plug-in engine whose answers arrive in a random order, as those of real engines.

Environment variables set the file that gets a byte per request (CALLS), the seconds per answer
(PACE_S), and whether the order is random (SHUFFLED).
"""

from __future__ import annotations

import os
import queue
import random
import time
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr

from instructgen.engines import Completion, Engine, Request
from instructgen.engines.echo import EchoEngine


class ScriptedEngine(Engine):
    """Gives the answers of the engine echo, one at a time."""

    name = "scripted"

    _submitted: Any = PrivateAttr(default_factory=queue.SimpleQueue)
    _open: dict[int, Request] = PrivateAttr(default_factory=dict)

    def has_chat_template(self) -> bool:
        """Return False, as the engine echo does."""
        return False

    def submit(self, number: int, request: Request) -> None:
        """Count the request, and append it to the queue."""
        with Path(os.environ["CALLS"]).open("ab", buffering=0) as file:
            file.write(b".")
        self._submitted.put((number, request))

    def cancel(self, number: int) -> None:
        """Append the cancellation to the queue."""
        self._submitted.put((number, None))

    def next(self, timeout_s: float = 60.0) -> tuple[int, Completion] | None:
        """Answer one of the requests."""
        try:
            while not self._open or not self._submitted.empty():
                number, request = self._submitted.get(timeout=timeout_s)
                if request is None:
                    self._open.pop(number, None)
                else:
                    self._open[number] = request
        except queue.Empty:
            return None
        time.sleep(float(os.environ["PACE_S"]))
        numbers = list(self._open)
        number = random.choice(numbers) if os.environ["SHUFFLED"] else min(numbers)
        (completion,) = EchoEngine().complete([self._open.pop(number)])
        return number, completion
