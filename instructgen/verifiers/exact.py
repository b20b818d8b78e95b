"""Whether an answer is the row's own, but for case, spaces and a last full stop."""

from __future__ import annotations

import random
import unicodedata

from instructgen.schema.sample import Sample
from instructgen.verifiers import Verifier


class Exact(Verifier):
    """1 for the same text, 0 for another."""

    name = "exact"

    def task(self, sample: Sample, rng: random.Random) -> Sample | None:
        """The row, where it has an answer to compare with."""
        return sample if _plain(sample.output) else None

    def judge(self, task: Sample, answer: str) -> float:
        """Whether both say the same."""
        return float(_plain(answer) == _plain(task.output))


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split()).rstrip(".").strip()
