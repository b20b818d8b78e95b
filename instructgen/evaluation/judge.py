"""An LLM judge that compares two answers twice, the second time with the answers swapped.

The judge abstains if its two verdicts differ or a reply cannot be parsed, because a judge may
prefer an answer because of its position (Wang et al. 2023, arXiv 2305.17926).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import regex

from instructgen.engines import Completion, Request, Sampling
from instructgen.schema.messages import Message, texts_of
from instructgen.schema.sample import Sample

_JUDGE_PROMPT = (
    "Two assistants answered the same request. Say which answer helps more: is right, does "
    "what was asked, and wastes no words. Length alone does not count.\n\n"
    "[The request]\n{question}\n\n[Answer A]\n{first}\n\n[Answer B]\n{second}\n\n"
    "Reply with one line and nothing else: A, B or TIE."
)
_VERDICT = regex.compile(r"\W*(?:answer\s+|verdict\W+)?\b(A|B|TIE)\b\W*", regex.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Contest:
    """Two answers to the same task, to be compared by a judge."""

    task: Sample
    first: str
    second: str


def judge_requests(contests: Sequence[Contest]) -> list[Request]:
    """Return two requests per contest: with the two answers in order, and with them swapped."""
    requests = []
    for c in contests:
        question = "\n\n".join(texts_of([m]) for m in c.task.prompt)
        for first, second in ((c.first, c.second), (c.second, c.first)):
            text = _JUDGE_PROMPT.format_map(
                {"question": question, "first": first, "second": second}
            )
            sampling = Sampling(temperature=0.0, max_tokens=16)
            message = Message("user", text)
            requests.append(Request((message,), sampling, stage="judge", role="judge"))
    return requests


def verdicts(completions: Sequence[Completion]) -> tuple[list[float | None], dict[str, int]]:
    """Combine the judge's two replies to each contest into one verdict.

    Args:
        completions: the replies to `judge_requests`, in the same order.

    Returns:
        Two values. The first is a list with a verdict per contest: 1 if the first answer wins,
        0 if the second wins, 0.5 for a tie in both orders, None if the judge abstains. The second
        is the number of contests by outcome: decided, tie, orders_disagree or unreadable.
    """
    results: list[float | None] = []
    counts: Counter[str] = Counter()
    for at in range(0, len(completions), 2):
        original, swapped = (_parse_verdict(c.text) for c in completions[at : at + 2])
        if original is None or swapped is None:
            results.append(None)
            counts["unreadable"] += 1
        elif original != 1 - swapped:
            results.append(None)
            counts["orders_disagree"] += 1
        else:
            results.append(original)
            counts["tie" if original == 0.5 else "decided"] += 1
    return results, dict(sorted(counts.items()))


def _parse_verdict(text: str) -> float | None:
    """Return the verdict in the first line: 1 for A, 0 for B, 0.5 for a tie, otherwise None."""
    line = text.strip().split("\n")[0] if text.strip() else ""
    match = _VERDICT.fullmatch(line)
    return None if match is None else {"A": 1.0, "B": 0.0, "TIE": 0.5}[match.group(1).upper()]
