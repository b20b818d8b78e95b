"""Checks whether an answer equals the output of its row.

Case, white space, Unicode form (NFKC) and periods at the end are ignored.
"""

from __future__ import annotations

import random
import unicodedata

from instructgen.schema.sample import Sample
from instructgen.verifiers import Verifier


class Exact(Verifier):
    """Score an answer 1 if it equals the row's output after normalization, and otherwise 0."""

    name = "exact"

    def task(self, sample: Sample, rng: random.Random) -> Sample | None:
        """Return the row if it has an output to compare with, or None."""
        return sample if _normalized(sample.output) else None

    def check(self, task: Sample, answer: str) -> float:
        """Return 1 if the answer equals the row's output after normalization, and otherwise 0."""
        return float(_normalized(answer) == _normalized(task.output))


def _normalized(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split()).rstrip(".").strip()
