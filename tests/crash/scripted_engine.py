"""A plug-in engine whose answers arrive in a random order, as those of real engines.

Environment variables set the file that gets a byte per request (CALLS), the seconds per answer
(PACE_S), whether the order is random (SHUFFLED), and whether the model is a chat model (CHAT).
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
        """Return whether the model is a chat model."""
        return bool(os.environ["CHAT"])

    def user_turn(self, system: str = "") -> tuple[tuple[int, ...], str]:
        """Return some tokens, and no end."""
        return (11, 12, 13), ""

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
        request = self._open.pop(number)
        if os.environ["CHAT"]:
            return number, _reply(request)
        (completion,) = EchoEngine().complete([request])
        return number, completion


def _reply(request: Request) -> Completion:
    """Return an answer that follows from the request alone."""
    rng = random.Random(f"{request.sampling.seed} {request.prompt_text()}")
    if request.role == "judge":
        text = rng.choice(["Equal", "Different", "Different", "It fits. 5", "It does not fit. 2"])
    elif request.stage == "reasons":
        text = f"It is so. Answer: {rng.randrange(3)}"
    else:
        text = " ".join(
            f"{rng.choice('bdfgklmnprst')}a{rng.choice('bdfgklmnprst')}o" for _ in range(12)
        )
        if request.stage == "triples":
            text = f"1. Instruction: {text}\n1. Input: x\n1. Output: {text[9:]}"
        elif request.stage in ("instructions", "instances"):
            text = f"1. {text}\nInput: {text[:9]}\nOutput: {text[9:]}"
    if rng.randrange(12) == 0:
        return Completion(text[:20], "length", 5, 9)
    return Completion(text, "stop", 5, 9)
