"""Checks whether an answer contains a match of the regular expression in its row."""

from __future__ import annotations

import random

import regex
from pydantic import Field

from instructgen.schema.sample import Sample
from instructgen.verifiers import Verifier, label

# Characters of a pattern.
_LONGEST = 10_000


class Regex(Verifier):
    """Score an answer 1 if it contains a match of the row's label ``pattern``, otherwise 0."""

    name = "regex"

    seconds: float = Field(
        1.0, gt=0, description="Time limit per answer, in seconds. If exceeded, the score is 0."
    )

    def task(self, sample: Sample, rng: random.Random) -> Sample | None:
        """Return the row if its label ``pattern`` is a valid regular expression, otherwise None."""
        pattern = label(sample, "pattern")
        if not pattern or len(pattern) > _LONGEST:
            return None
        try:
            regex.compile(pattern)
        except (regex.error, RecursionError):
            # The second is raised for groups that are nested very deeply.
            return None
        return sample

    def check(self, task: Sample, answer: str) -> float:
        """Return 1 if the pattern is found in the answer within the time limit, and otherwise 0."""
        pattern = label(task, "pattern") or ""
        try:
            return float(regex.search(pattern, answer, timeout=self.seconds) is not None)
        except (TimeoutError, MemoryError, RecursionError):
            # A pattern that contains itself, as with (?R), can fill the memory within the time.
            return 0.0
