"""Whether an answer ends in the right number."""

from __future__ import annotations

import random
from fractions import Fraction

import regex
from pydantic import Field

from instructgen.schema.sample import Sample
from instructgen.verifiers import Verifier

_NUMBER = r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?|-?\.\d+"
_MARKED = (
    # GSM8K's own mark, and how models say the same.
    regex.compile(rf"####\s*\$?({_NUMBER})"),
    regex.compile(r"\\boxed\{\$?([^{}]*)\}"),
    regex.compile(rf"(?i)answer(?: is|:)?\s*\$?({_NUMBER})"),
)
_ANY = regex.compile(_NUMBER)
_LONGEST = 60


class Math(Verifier):
    """1 for the right number, a little for any number where the answer should stand."""

    name = "math"

    form: float = Field(0.1, ge=0, lt=1, description="for a wrong number in the right place")

    def task(self, sample: Sample, rng: random.Random) -> Sample | None:
        """The row, where its own answer ends in a number."""
        return sample if final_number(sample.output) is not None else None

    def judge(self, task: Sample, answer: str) -> float:
        """Whether both end in the same number."""
        found = final_number(answer)
        if found is None:
            return 0.0
        if found == final_number(task.output):
            return 1.0
        return self.form if any(m.search(answer) for m in _MARKED) else 0.0


def final_number(text: str) -> Fraction | None:
    """The number an answer comes to: the last one marked as such, or else the last one."""
    for pattern in _MARKED:
        for found in reversed(pattern.findall(text)):
            if (value := _value(found)) is not None:
                return value
    for found in reversed(_ANY.findall(text)):
        if (value := _value(found)) is not None:
            return value
    return None


def _value(text: str) -> Fraction | None:
    text = text.replace("$", "").strip().rstrip(".")
    # A model's exponent is no number to work with: 1e999999999 would fill the memory.
    if len(text) > _LONGEST or _ANY.fullmatch(text) is None:
        return None
    try:
        return Fraction(text.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None
