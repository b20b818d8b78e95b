"""Rejects instructions with nearly the same meaning as an earlier one, in any wording."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from instructgen.filters import ComparingFilter, EarlierMatch
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity import EmbeddingIndex, rouge_l, tokenize
from instructgen.similarity.encoders import MINILM


class SemanticDuplicate(ComparingFilter):
    """Reject instructions whose embedding has a cosine above the threshold to an earlier one.

    If the words are also similar, the instruction is a duplicate; otherwise it is a
    paraphrase. Instructions in languages that the model cannot read pass.
    """

    name = "semantic_duplicate"
    needs = ("instruction",)

    threshold: float = Field(0.9, gt=0, lt=1, description="Maximum cosine.")
    rouge_l: float = Field(
        0.7, gt=0, le=1, description="ROUGE-L above which a paraphrase is a duplicate."
    )
    model: str = Field(
        MINILM, description="Embedding model: minilm (packaged, English), a folder, or a Hub name."
    )
    first_pass: bool = Field(
        False,
        description="Search by static word vectors first: faster, finds about 98% of the pairs.",
    )

    def index(self) -> EmbeddingIndex:
        """Return a new, empty embedding index."""
        return EmbeddingIndex(self.threshold, self.model, self.first_pass)

    def thresholds(self) -> tuple[float, ...]:
        """Return the maximum cosine."""
        return (self.threshold,)

    def decide(self, sample: Sample, matches: Sequence[EarlierMatch]) -> Rejection | None:
        """Return a rejection (``duplicate`` or ``paraphrase``) with cosine and nearest row."""
        score, nearest = max(matches, key=lambda match: match.score)
        lexical = rouge_l(tokenize(sample.instruction), tokenize(nearest.texts[0]))
        reason = "duplicate" if lexical > self.rouge_l else "paraphrase"
        detail = f"cosine {score:.3f}, ROUGE-L {lexical:.3f} to {nearest.id}"
        return self.reject(reason, detail, score, nearest.id)
