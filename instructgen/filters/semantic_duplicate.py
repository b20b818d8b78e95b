"""Rejects instructions that mean nearly the same as an earlier one, in whatever words."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from instructgen.filters import ComparingFilter, Matched
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity import EmbeddingIndex, rouge_l, tokenize
from instructgen.similarity.encoders import MINILM


class SemanticDuplicate(ComparingFilter):
    """Cosine of the embeddings above the threshold to anything seen before.

    Near in words too, the instruction is a duplicate; near in meaning alone, a
    paraphrase. Instructions in languages that the model cannot read pass.
    """

    name = "semantic_duplicate"
    needs = ("instruction",)

    threshold: float = Field(0.9, gt=0, lt=1, description="highest cosine kept")
    rouge_l: float = Field(
        0.7, gt=0, le=1, description="ROUGE-L above this makes a paraphrase a duplicate"
    )
    model: str = Field(
        MINILM, description="minilm (packaged, for English), a folder, or a Hub name"
    )
    first_pass: bool = Field(
        False, description="look with static word vectors first; finds about 98 of 100"
    )

    def index(self) -> EmbeddingIndex:
        """Of the texts seen."""
        return EmbeddingIndex(self.threshold, self.model, self.first_pass)

    def thresholds(self) -> tuple[float, ...]:
        """The highest cosine kept."""
        return (self.threshold,)

    def decide(self, sample: Sample, matches: Sequence[Matched]) -> Rejection | None:
        """``duplicate`` or ``paraphrase``, with the cosine and the id of the nearest."""
        score, nearest = max(matches, key=lambda match: match.score)
        lexical = rouge_l(tokenize(sample.instruction), tokenize(nearest.texts[0]))
        reason = "duplicate" if lexical > self.rouge_l else "paraphrase"
        detail = f"cosine {score:.3f}, ROUGE-L {lexical:.3f} to {nearest.id}"
        return self.reject(reason, detail, score, nearest.id)
