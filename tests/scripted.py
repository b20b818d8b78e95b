"""Runs the generation loop with a scripted model: a function from requests to texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from instructgen.engines import Completion, Request
from instructgen.engines.echo import EchoEngine
from instructgen.filters import Filter
from instructgen.generation.loop import Ended, Loop
from instructgen.generation.methods import Method, PromptSetup
from instructgen.generation.options import Config
from instructgen.generation.settings import RunSettings
from instructgen.schema.sample import Sample

Answer = Callable[[Request], "str | Completion"]
CHAT = PromptSetup("chat", True, (1, 2, 3), "<|end|>", judge_structured=True)
PLAIN = PromptSetup("chat", False, (1, 2, 3), "<|end|>")


@dataclass
class Played:
    """A finished run: its rows, rejections and counts, its requests, and its loop."""

    ended: Ended
    requests: list[Request]
    loop: Loop

    @property
    def rows(self) -> list[Sample]:
        return self.ended.rows

    def reasons(self) -> list[str]:
        """Return the reason of each rejection, in order."""
        return [r.rejection.reason for r in self.ended.rejected]

    def stages(self) -> list[str]:
        return [r.stage for r in self.requests]


def play(
    method: Method,
    seeds: Sequence[Sample],
    answer: Answer,
    *,
    target: int | str = "all",
    filters: Sequence[Filter] = (),
    form: PromptSetup = CHAT,
    window: int = 1,
    most: int = 500,
    **generate: Any,
) -> Played:
    """Run a method until it stops; check that each candidate ends once.

    Args:
        answer: the model. A text is a complete answer. Executors are real.
        window: the number of requests in flight.
        most: the maximum number of requests.
    """
    config = Config(
        generate=RunSettings(target=target, acceptance_floor=0, **generate),
        method=method,
        engine=EchoEngine(model="writer"),
        filters=tuple(filters),
        judge=EchoEngine(model="critic"),
    )
    loop = Loop(config, form, seeds, "run")
    executor = method.executor()
    requests: list[Request] = []
    flying: list[int] = []
    while loop.stopped is None:
        while len(flying) < window and len(requests) < most:
            choice = loop.choose(lambda role: True)
            if choice is None:
                break
            flying.append(len(requests))
            requests.append(loop.issue(len(requests), choice))
        if not flying or loop.stopped is not None:
            break
        number = flying.pop(0)
        if executor is not None and requests[number].role == "executor":
            (text,) = executor.complete([requests[number]])  # type: ignore[attr-defined]
        else:
            text = answer(requests[number])
        loop.commit(number, Completion(text, "stop", 9, 5) if isinstance(text, str) else text)
    # It raises an error if a candidate is missing or counted twice.
    return Played(loop.finish(), requests, loop)
