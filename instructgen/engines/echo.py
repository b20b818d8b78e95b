"""The echo engine: generates text from the words of the prompt with a Markov chain, not a model.

This engine is fast and deterministic. It continues a few-shot prompt with words from that
prompt. This is enough for tests and for trying out a recipe, but the generated rows make no sense.
"""

from __future__ import annotations

import random
import re
import time
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate, pairwise

from instructgen.engines import Completion, QueueEngine, Request, operational

_TOKEN = re.compile(r"\n|[^\s]+")


class EchoEngine(QueueEngine):
    """Generates meaningless text without a model, for tests and for trying out recipes.

    Each word is drawn at random from the words that follow the previous word in the prompt. Each
    line break ends the text with probability 1/8.
    """

    name = "echo"
    # The rows of a run then depend on no timing, so that tests can compare them.
    commit_order = "issued"

    delay_s: float = operational(
        0.0,
        "Delay per completion in seconds, to try out progress bars or interrupting a run.",
        ge=0,
    )

    def has_chat_template(self) -> bool:
        """Return False: this engine does not have a chat template."""
        return False

    def window(self) -> int:
        """Return 4, because each completion takes little time."""
        return 4

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Complete requests in order; only the parameters seed, max_tokens and stop are used."""
        if self.delay_s:
            time.sleep(self.delay_s * len(requests))
        return [_continue(request) for request in requests]


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
    word, count, text = words[-1], 0, ""
    while count < request.sampling.max_tokens:
        # The last word of the prompt may have no follower: continue from the start of a line.
        choices = followers.get(word) or followers.get("\n") or {words[0]: 1}
        totals = list(accumulate(choices.values()))
        word = list(choices)[bisect(totals, rng.randrange(totals[-1]))]
        count += 1
        text += "\n" if word == "\n" else f" {word}"
        ends = [at for stop in request.sampling.stop if (at := text.find(stop)) >= 0]
        if ends:
            return Completion(text[: min(ends)], "stop", len(words), count)
        if word == "\n" and rng.randrange(8) == 0:
            return Completion(text, "stop", len(words), count)
    return Completion(text, "length", len(words), count)
