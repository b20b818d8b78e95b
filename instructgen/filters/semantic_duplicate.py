"""Rejects instructions with nearly the same meaning as an earlier one, whatever the wording."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from instructgen.filters import ComparingFilter, EarlierMatch
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity import EmbeddingIndex, rouge_l, tokenize
from instructgen.similarity.encoders import MINILM


class SemanticDuplicate(ComparingFilter):
    """Reject instructions whose cosine similarity to an earlier one is above the threshold.

    The reason for a rejection is ``duplicate`` if the words are also similar, and otherwise
    ``paraphrase``. Instructions in languages that the embedding model does not support are kept.
    """

    name = "semantic_duplicate"
    needs = ("instruction",)

    threshold: float = Field(
        0.9,
        gt=0,
        lt=1,
        description="Reject an instruction if its cosine similarity to an earlier instruction is "
        "above this value.",
    )
    rouge_l: float = Field(
        0.7,
        gt=0,
        le=1,
        description="The reason for a rejection is duplicate if the ROUGE-L similarity of the two "
        "instructions is above this value, and paraphrase otherwise.",
    )
    model: str = Field(
        MINILM,
        description="Embedding model: minilm (included, for English), a folder, or a Hub name.",
    )
    first_pass: bool = Field(
        False,
        description="Search with static word vectors first, which is faster but finds only about "
        "98% of the similar instructions.",
    )

    def index(self) -> EmbeddingIndex:
        """Return a new, empty index of embeddings of instructions."""
        return EmbeddingIndex(self.threshold, self.model, self.first_pass)

    def thresholds(self) -> tuple[float, ...]:
        """Return the maximum cosine similarity to an earlier instruction."""
        return (self.threshold,)

    def decide(self, sample: Sample, matches: Sequence[EarlierMatch]) -> Rejection | None:
        """Return a rejection (``duplicate`` or ``paraphrase``) that names the most similar row."""
        score, nearest = max(matches, key=lambda match: match.score)
        lexical = rouge_l(tokenize(sample.instruction), tokenize(nearest.texts[0]))
        reason = "duplicate" if lexical > self.rouge_l else "paraphrase"
        detail = f"cosine similarity {score:.3f}, ROUGE-L {lexical:.3f} to row {nearest.id}"
        return self.reject(reason, detail, score, nearest.id)
