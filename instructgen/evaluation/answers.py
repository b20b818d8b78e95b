"""Makes requests from prompts that a model is to answer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from instructgen.engines import Request, Sampling
from instructgen.schema.messages import Message

Prompt = str | tuple[Message, ...] | tuple[int, ...]


def requests_for(
    prompts: Sequence[Prompt],
    *,
    samples: int = 1,
    temperature: float = 0.0,
    max_tokens: int = 256,
    seed: int = 0,
) -> list[Request]:
    """Return ``samples`` requests for each prompt, in prompt order, with different random seeds."""
    requests = []
    for number, prompt in enumerate(prompts):
        for copy in range(samples):
            digest = hashlib.sha256(f"{seed} {number} {copy}".encode()).digest()
            sampling = Sampling(
                temperature=temperature,
                max_tokens=max_tokens,
                seed=int.from_bytes(digest[:4], "big") >> 1,
            )
            requests.append(Request(prompt, sampling, stage="answer"))
    return requests
