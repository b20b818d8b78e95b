"""Rejects instructions that are similar to an earlier one (Self-Instruct, section 2.2).

Earlier instructions include those of the seed tasks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

from pydantic import Field

from instructgen.filters import ComparingFilter, EarlierMatch
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity import Pairs, RougeLIndex, Tokenizer

# Up to this number of texts, comparing all pairs is faster than an index.
_FEW = 24


class Novelty(ComparingFilter):
    """Reject instructions that are too similar (by ROUGE-L) to an earlier one or a seed task."""

    name = "novelty"

    threshold: float = Field(
        0.7,
        gt=0,
        le=1,
        description="Maximum ROUGE-L similarity of a kept instruction to earlier instructions.",
    )
    tokenizer: Tokenizer = Field(
        "unicode",
        description="How to split texts into words: unicode (for any writing system), or ascii "
        "(words contain only a-z and 0-9, as in the Self-Instruct paper).",
    )

    compatible: Literal["rouge-score"] | None = Field(
        None,
        description="Set to rouge-score to compare in floating point like the package rouge-score. "
        "Rounding may then reject instructions whose similarity equals the threshold.",
    )

    def index(self) -> RougeLIndex:
        """Return a new, empty ROUGE-L index."""
        return RougeLIndex(self.threshold, self.tokenizer, self.compatible)

    def pairs_among(self, texts: Sequence[str]) -> Pairs:
        """Return the pairs of similar texts; the few of a completion need no index."""
        if len(texts) > _FEW:
            return super().pairs_among(texts)
        return self._empty_index.among(texts)

    @cached_property
    def _empty_index(self) -> RougeLIndex:
        return self.index()

    def thresholds(self) -> tuple[float, ...]:
        """Return the maximum ROUGE-L similarity of kept rows, as the only threshold."""
        return (self.threshold,)

    def decide(self, sample: Sample, matches: Sequence[EarlierMatch]) -> Rejection | None:
        """Return a rejection (``too_similar``) with the most similar row and its similarity."""
        score, nearest = max(matches, key=lambda match: match.score)
        detail = f"ROUGE-L {score:.3f} to row {nearest.id}, above {self.threshold}"
        return self.reject("too_similar", detail, score, nearest.id)
