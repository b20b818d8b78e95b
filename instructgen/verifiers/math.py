"""Checks whether an answer ends in the correct number."""

from __future__ import annotations

import random
from fractions import Fraction

import regex
from pydantic import Field

from instructgen.schema.sample import Sample
from instructgen.verifiers import Verifier

_NUMBER = r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?|-?\.\d+"
_MARKED = (
    # The mark of GSM8K, and the forms that models use instead.
    regex.compile(rf"####\s*\$?({_NUMBER})"),
    regex.compile(r"\\boxed\{\$?([^{}]*)\}"),
    regex.compile(rf"(?i)answer(?: is|:)?\s*\$?({_NUMBER})"),
)
_ANY = regex.compile(_NUMBER)
_MAX_LENGTH = 60


class Math(Verifier):
    """Score 1 for the correct final number, and ``form`` for a wrong one marked as final."""

    name = "math"

    form: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Score for a wrong number that is marked as the final answer, as in '#### 42'.",
    )

    def task(self, sample: Sample, rng: random.Random) -> Sample | None:
        """Return the row if its output contains a number, or None."""
        return sample if final_number(sample.output) is not None else None

    def check(self, task: Sample, answer: str) -> float:
        """Return 1 if the final number is correct, ``form`` if it is wrong but marked, else 0."""
        number = final_number(answer)
        if number is None:
            return 0.0
        if number == final_number(task.output):
            return 1.0
        return self.form if any(m.search(answer) for m in _MARKED) else 0.0


def final_number(text: str) -> Fraction | None:
    """Return the last number that is marked as final or, if none is marked, the last number."""
    for pattern in _MARKED:
        for match in reversed(pattern.findall(text)):
            if (value := _value(match)) is not None:
                return value
    for match in reversed(_ANY.findall(text)):
        if (value := _value(match)) is not None:
            return value
    return None


def _value(text: str) -> Fraction | None:
    text = text.replace("$", "").strip().rstrip(".")
    # Exponents are not accepted: the value of 1e999999999 would fill the memory.
    if len(text) > _MAX_LENGTH or _ANY.fullmatch(text) is None:
        return None
    try:
        return Fraction(text.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None
