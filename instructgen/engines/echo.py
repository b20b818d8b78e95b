"""A Markov chain over the prompt: instant, deterministic, no model.

It continues a few-shot prompt in the prompt's own words, which is enough to try
the loop, the filters and a crash, and for tests. Its rows are nonsense.
"""

from __future__ import annotations

import random
import re
from bisect import bisect
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

from instructgen.engines import Completion, Engine, Request, operational

_TOKEN = re.compile(r"\n|[^\s]+")


class EchoEngine(Engine):
    """Word by word, each drawn from what followed that word in the prompt.

    A chain has no end of its own: one line end in eight is taken for it.
    """

    name = "echo"

    delay_s: float = operational(
        0.0, "time per completion, to try out progress and interruption", ge=0
    )

    def chats(self) -> bool:
        """No chat template."""
        return False

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """In order. The seed alone decides; sampling parameters but the stops are ignored."""
        import time

        for position, request in enumerate(requests):
            if self.delay_s:
                time.sleep(self.delay_s)
            yield position, _continue(request)


def _continue(request: Request) -> Completion:
    prompt = request.prompt_text()
    words = _TOKEN.findall(prompt)
    if not words:
        return Completion.failed("the prompt is empty")
    followers: dict[str, dict[str, int]] = {}
    for word, after in pairwise(words):
        counts = followers.setdefault(word, {})
        counts[after] = counts.get(after, 0) + 1
    rng = random.Random(request.sampling.seed)
    word, made, text = words[-1], 0, ""
    while made < request.sampling.max_tokens:
        # The prompt's last word may stand there once only: go on from a line start.
        choices = followers.get(word) or followers.get("\n") or {words[0]: 1}
        totals = list(accumulate(choices.values()))
        word = list(choices)[bisect(totals, rng.randrange(totals[-1]))]
        made += 1
        text += "\n" if word == "\n" else f" {word}"
        ends = [at for stop in request.sampling.stop if (at := text.find(stop)) >= 0]
        if ends:
            return Completion(text[: min(ends)], "stop", len(words), made)
        if word == "\n" and rng.randrange(8) == 0:
            return Completion(text, "stop", len(words), made)
    return Completion(text, "length", len(words), made)
