"""Whether an answer matches the regular expression of its row."""

from __future__ import annotations

import random

import regex
from pydantic import Field

from instructgen.schema.sample import Sample
from instructgen.verifiers import Verifier, label


class Regex(Verifier):
    """1 where the label ``pattern`` is found in the answer."""

    name = "regex"

    seconds: float = Field(1.0, gt=0, description="after which a pattern is given up")

    def task(self, sample: Sample, rng: random.Random) -> Sample | None:
        """The row, where it has a pattern that compiles."""
        pattern = label(sample, "pattern")
        if not pattern:
            return None
        try:
            regex.compile(pattern)
        except regex.error:
            return None
        return sample

    def judge(self, task: Sample, answer: str) -> float:
        """Whether the pattern is found in time."""
        try:
            return float(
                regex.search(label(task, "pattern") or "", answer, timeout=self.seconds) is not None
            )
        except TimeoutError:
            return 0.0
