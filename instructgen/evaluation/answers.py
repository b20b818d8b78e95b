"""Answers of a model to given tasks, through the engines that generate data too."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from instructgen.engines import Completion, Engine, Request, Sampling, Supervisor
from instructgen.schema.sample import Message

Prompt = str | tuple[Message, ...] | tuple[int, ...]


def requests_for(
    prompts: Sequence[Prompt],
    *,
    samples: int = 1,
    temperature: float = 0.0,
    max_tokens: int = 256,
    seed: int = 0,
) -> list[Request]:
    """So many requests for each prompt, one prompt after the other, each with its own seed."""
    found = []
    for number, prompt in enumerate(prompts):
        for copy in range(samples):
            digest = hashlib.sha256(f"{seed} {number} {copy}".encode()).digest()
            sampling = Sampling(
                temperature=temperature,
                max_tokens=max_tokens,
                seed=int.from_bytes(digest[:4], "big") >> 1,
            )
            found.append(Request(prompt, sampling, stage="answer", task=number))
    return found


def completions(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    """A completion of each request, in order."""
    found: list[Completion | None] = [None] * len(requests)
    for i, completion in Supervisor(engine).complete(requests):
        found[i] = completion
    return [c for c in found if c is not None]
