"""A plug-in engine whose answers arrive in a random order, as those of real engines.

Environment variables set the file that gets a byte per request (CALLS; a file beside it, with the
name .numbers, gets the numbers of the requests), the seconds per answer
(PACE_S), whether the order is random (SHUFFLED), and whether the model is a chat model (CHAT).
"""

from __future__ import annotations

import json
import os
import queue
import random
import re
import time
from collections.abc import Callable
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
        for name, line in (("", "."), (".numbers", f"{number}\n")):
            with Path(os.environ["CALLS"] + name).open("ab", buffering=0) as file:
                file.write(line.encode())
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


def _words(rng: random.Random) -> str:
    return " ".join(f"{rng.choice('bdfgklmnprst')}a{rng.choice('bdfgklmnprst')}o" for _ in range(9))


def _quoted(rng: random.Random, prompt: str) -> str:
    """Return an answer with a sentence of the passage, or with one that is not there."""
    passage = prompt.split("=====\n")[1]
    quote = passage.split(". ")[0].strip() if rng.random() < 0.8 else _words(rng)
    return f"Evidence: {quote}\nAnswer: {_words(rng)}"


def _plan(rng: random.Random, prompt: str) -> str:
    book, member = rng.choice((204, 205, 207)), rng.choice((12, 15))
    arguments = {"member_id": member, "book_id": book}
    calls = [{"name": "lend", "arguments": arguments}]
    text = f"Lend book {book} to member {member}, {_words(rng)}."
    return json.dumps({"request": text, "actions": calls})


def _turn(rng: random.Random, prompt: str) -> str:
    """Lend the book that the user names; then say something."""
    asked = prompt.partition("[user]")[2]
    numbers = [int(n) for n in re.findall(r"\d+", asked)]
    book = next((n for n in numbers if n > 200), 201)
    member = next((n for n in numbers if n < 100), 11)
    if "lend: " in asked or rng.random() < 0.1:
        return f"It is done. {_words(rng)}"
    call = {"name": "lend", "arguments": {"member_id": member, "book_id": book}}
    return f"<tool_call>{json.dumps(call)}</tool_call>"


def _program(rng: random.Random, prompt: str) -> str:
    number = rng.randrange(9)
    tests = f"assert f(1) == {number + 1}\nassert f(2) == {number + 2 + (rng.random() < 0.3)}"
    return f"```python\ndef f(x):\n    return x + {number}\n```\n```python\n{tests}\n```"


# The answers of the methods document, tool_dialogue and code, by stage.
_OWN: dict[str, Callable[[random.Random, str], str]] = {
    "questions": lambda rng, prompt: f"1. What is {_words(rng)}?\n2. Who is {_words(rng)}?",
    "answer": lambda rng, prompt: _quoted(rng, prompt) if "=====" in prompt else _words(rng),
    "faithful": lambda rng, prompt: rng.choice(("It does.\nYes", "It does.\nYes", "No")),
    "plan": _plan,
    "assistant": lambda rng, prompt: _turn(rng, prompt) if "tool_call" in prompt else _words(rng),
    "concepts": lambda rng, prompt: _words(rng),
    "task": lambda rng, prompt: f"Write f(x) that returns {_words(rng)}.",
    "solutions": lambda rng, prompt: (
        _program(rng, prompt)
        if "block of code" in prompt
        else f"It is so. Answer: {rng.randrange(3)}"
    ),
}


def _reply(request: Request) -> Completion:
    """Return an answer that follows from the request alone."""
    rng = random.Random(f"{request.sampling.seed} {request.prompt_text()}")
    if request.stage in _OWN:
        text = _OWN[request.stage](rng, request.prompt_text())
    elif request.role == "judge":
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
