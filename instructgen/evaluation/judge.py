"""A language model that compares two answers, asked in both orders.

It abstains rather than guesses: a verdict counts only where both orders agree, and
what cannot be read as a verdict never counts (position bias: Wang et al. 2023,
2305.17926).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import regex

from instructgen.engines import Completion, Request, Sampling
from instructgen.schema.sample import Message, Sample

_ASK = (
    "Two assistants answered the same request. Say which answer helps more: is right, does "
    "what was asked, and wastes no words. Length alone is no merit.\n\n"
    "[The request]\n{question}\n\n[Answer A]\n{first}\n\n[Answer B]\n{second}\n\n"
    "Reply with one line and nothing else: A, B or TIE."
)
_VERDICT = regex.compile(r"\W*(?:answer\s+|verdict\W+)?\b(A|B|TIE)\b\W*", regex.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Contest:
    """Two answers to a task."""

    task: Sample
    first: str
    second: str


def judge_requests(contests: Sequence[Contest]) -> list[Request]:
    """Two requests for each contest: as it stands, and with the answers swapped."""
    found = []
    for c in contests:
        question = "\n\n".join(m.content for m in c.task.prompt)
        for first, second in ((c.first, c.second), (c.second, c.first)):
            text = _ASK.format_map({"question": question, "first": first, "second": second})
            sampling = Sampling(temperature=0.0, max_tokens=16)
            found.append(Request((Message("user", text),), sampling, stage="judge"))
    return found


def verdicts(completions: Sequence[Completion]) -> tuple[list[float | None], dict[str, int]]:
    """What the judge's replies come to.

    Args:
        completions: of `judge_requests`, in its order.

    Returns:
        For each contest 1 where the first answer wins, 0 where the second does, 0.5 for
        a tie in both orders, and None where the judge abstains; and how often each.
    """
    found: list[float | None] = []
    counts: Counter[str] = Counter()
    for at in range(0, len(completions), 2):
        straight, swapped = (_read(c.text) for c in completions[at : at + 2])
        if straight is None or swapped is None:
            found.append(None)
            counts["unreadable"] += 1
        elif straight != 1 - swapped:
            found.append(None)
            counts["orders_disagree"] += 1
        else:
            found.append(straight)
            counts["tie" if straight == 0.5 else "decided"] += 1
    return found, dict(sorted(counts.items()))


def _read(text: str) -> float | None:
    """1 for A, 0 for B, 0.5 for a tie; None for anything that is not just that."""
    line = text.strip().split("\n")[0] if text.strip() else ""
    match = _VERDICT.fullmatch(line)
    return None if match is None else {"A": 1.0, "B": 0.0, "TIE": 0.5}[match.group(1).upper()]
