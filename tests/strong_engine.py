"""A plug-in engine that plays a strong chat model for the methods of the guides.

It answers from the prompt, with some mistakes that its random seed decides. The commands of the
guides run with it in seconds; benchmarks/grounded.py runs them with a real model.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

from instructgen.engines import Completion, QueueEngine, Request

ROOT = Path(__file__).resolve().parent.parent
_TASKS = [json.loads(x) for x in (ROOT / "examples" / "desk" / "tasks.jsonl").open()]
_PROBLEMS = [json.loads(x) for x in (ROOT / "examples" / "problems.jsonl").open()]
_WORDS = (
    "bridge orange window candle silver meadow pocket anchor guitar velvet harbor tunnel ".split()
)
_WORDS += (
    "basket lantern copper garden thunder mirror saddle pepper island ribbon marble forest".split()
)
# Short, because `novelty` compares whole questions.
ASKED = "Explain what follows "


class StrongEngine(QueueEngine):
    """Answers the requests of document, tool_dialogue, solve and code."""

    name = "strong"

    def has_chat_template(self) -> bool:
        """Return True."""
        return True

    def at_once(self) -> int:
        """Return the number of requests that are answered together."""
        return 8

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer each request by the function of its stage."""
        return [Completion(_ANSWERS[r.stage](_rng(r), r), "stop", 50, 20) for r in requests]


def _rng(request: Request) -> random.Random:
    return random.Random(f"{request.sampling.seed} {request.prompt_text()}")


def sentences(prompt: str) -> list[str]:
    """Return the sentences of the passages in a prompt that may be evidence."""
    line = next(x for x in prompt.splitlines() if x and not x.strip("="))
    passages = prompt.split(f"\n{line}\n")[1:-1]
    found = [s for p in passages for s in re.split(r"(?<=[.:])\s+|\n\s*\n|\n(?=[-|#])", p)]
    return [s.strip() for s in found if len(s.split()) >= 8 and "`" not in s]


def _questions(rng: random.Random, request: Request) -> str:
    able = sentences(request.prompt_text())
    chosen = rng.sample(able, min(3, len(able))) or ["nothing at all"]
    if "does not answer" in request.prompt_text():
        words = " ".join(chosen[0].split()[:9])
        return f"1. What will the next edition of this page say instead of {words!r}?"
    return "\n".join(f"{i}. {ASKED}{' '.join(s.split()[:8])!r}?" for i, s in enumerate(chosen, 1))


def _answer(rng: random.Random, request: Request) -> str:
    prompt = request.prompt_text()
    begin = prompt.rsplit(ASKED, 1)[-1].split("?\n")[0].strip("'\"")
    quote = next((s for s in sentences(prompt) if " ".join(s.split()).startswith(begin)), "")
    if not quote or rng.random() < 0.1:
        return "Evidence: (none)\nAnswer: I am sorry, but the document does not say this."
    if rng.random() < 0.1:
        quote = f"{quote} And this was never written there."
    return f"Evidence: {quote}\nAnswer: It says this: {' '.join(quote.split())}"


def _plan(rng: random.Random, request: Request) -> str:
    member, book = rng.choice((11, 12, 15)), rng.choice((201, 204, 205, 207))
    actions = [{"name": "lend", "arguments": {"member_id": member, "book_id": book}}]
    text = f"{rng.choice(('Please', 'Could you', 'Kindly'))} lend number {book} to member {member}."
    return json.dumps({"request": text, "actions": actions})


def _turn(rng: random.Random, request: Request) -> str:
    asked = request.prompt_text().partition("[user]")[2]
    text = asked.strip().split("\n")[0]
    task = next((t for t in _TASKS if t["instruction"] == text), None)
    if task is None:
        book, member = map(int, re.findall(r"\d+", text)[:2])
        arguments = {"member_id": member, "book_id": book}
        task = {"actions": [{"name": "lend", "arguments": arguments}], "mentions": []}
    made = asked.count('"calls"')
    if made < len(task["actions"]) and rng.random() > 0.1:
        return f"<tool_call>{json.dumps(task['actions'][made])}</tool_call>"
    return f"It is done. {' '.join(task['mentions'])}"


def _solutions(rng: random.Random, request: Request) -> str:
    prompt = request.prompt_text()
    if "block of code" in prompt:
        number = rng.randrange(99)
        wrong = rng.random() < 0.2
        tests = f"assert f(1) == {number + 1 + wrong}\nassert f(2) == {number + 2}"
        program = f"def f(x: int) -> int:\n    return x + {number}"
        return f"```python\n{program}\n```\n```python\n{tests}\n```"
    problem = next(p for p in _PROBLEMS if p["instruction"] in prompt)
    steps, result = problem["output"].split("\n#### ")
    return f"{steps}\nAnswer: {result if rng.random() < 0.7 else '1'}"


_ANSWERS = {
    "questions": _questions,
    "answer": _answer,
    "faithful": lambda rng, request: "It does.\nYes" if rng.random() < 0.95 else "It adds.\nNo",
    "plan": _plan,
    "assistant": _turn,
    "solutions": _solutions,
    "concepts": lambda rng, request: f"arithmetic, numbers, {rng.randrange(99)}",
    "task": lambda rng, request: (
        f"Write f(x: int) -> int for the {' '.join(rng.sample(_WORDS, 9))}. It adds a number."
    ),
}
