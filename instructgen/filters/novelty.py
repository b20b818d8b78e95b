"""Rejects instructions too similar to any seed or kept instruction (Self-Instruct, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from instructgen.filters import ComparingFilter, Matched
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity import RougeLIndex, Tokenizer


class Novelty(ComparingFilter):
    """ROUGE-L above the threshold to anything seen before."""

    name = "novelty"

    threshold: float = Field(0.7, gt=0, le=1, description="highest ROUGE-L F-measure kept")
    tokenizer: Tokenizer = Field(
        "unicode", description="ascii: the paper's, blind to other scripts"
    )

    compatible: Literal["rouge-score"] | None = Field(
        None, description="rouge-score: repeat its float comparison at exactly the threshold"
    )

    def index(self) -> RougeLIndex:
        """Of the texts seen."""
        return RougeLIndex(self.threshold, self.tokenizer, self.compatible)

    def thresholds(self) -> tuple[float, ...]:
        """The highest similarity kept."""
        return (self.threshold,)

    def decide(self, sample: Sample, matches: Sequence[Matched]) -> Rejection | None:
        """``too_similar``, with the F-measure and the id of the nearest instruction."""
        score, nearest = max(matches, key=lambda match: match.score)
        detail = f"ROUGE-L {score:.3f} to {nearest.id}, above {self.threshold}"
        return self.reject("too_similar", detail, score, nearest.id)
