"""Rejects rows that share most words with an earlier one, whatever their order."""

from __future__ import annotations

from pydantic import Field

from instructgen.filters import ComparingFilter
from instructgen.sample import Rejection, Sample
from instructgen.similarity import MinHashIndex, Tokenizer


class NearDuplicate(ComparingFilter):
    """Jaccard similarity of instruction, input and output together above the threshold.

    Candidates by MinHash, each decided exactly.
    """

    name = "near_duplicate"
    scope = "row"

    threshold: float = Field(0.7, ge=0.05, lt=1, description="highest Jaccard similarity kept")
    ngram: int = Field(1, ge=1, description="words in a run; 1 is right for short texts")
    tokenizer: Tokenizer = Field("unicode", description="ascii: blind to other scripts")

    def index(self) -> MinHashIndex:
        """Of the texts seen."""
        return MinHashIndex(self.threshold, self.ngram, tokenizer=self.tokenizer)

    def text(self, sample: Sample) -> str:
        """Instruction, input and output."""
        return f"{sample.instruction}\n{sample.input}\n{sample.output}"

    def reason(self, sample: Sample) -> Rejection | None:
        """``near_duplicate``, with the similarity and the id of the nearest row."""
        found = self.nearest(sample)
        if found is None:
            return None
        score, nearest = found
        detail = f"Jaccard {score:.3f} to {nearest.id}, above {self.threshold}"
        return self.reject("near_duplicate", detail, score, nearest.id)
