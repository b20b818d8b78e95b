"""Rejects rows about unwanted topics, which are recognized by meaning and not by keywords."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from pydantic import Field

from instructgen.filters import Filter, Verdict
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity import EmbeddingIndex
from instructgen.similarity.encoders import MINILM, check_model

_ANY_SIMILARITY = 1e-6


class Topic(Filter):
    """Reject rows whose question is too similar in meaning to an unwanted topic.

    The question is the instruction followed by the input. A topic is any text: a phrase, or an
    example of an unwanted instruction. The similarity is the cosine of the embeddings of the topic
    and the question.
    """

    name = "topic"
    scope = "row"

    topics: tuple[str, ...] = Field(
        min_length=1, description="Unwanted topics: phrases or example instructions."
    )
    threshold: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Maximum cosine similarity of a kept row's question to any topic.",
    )
    model: str = Field(
        MINILM,
        description="Embedding model: minilm (included, for English), a folder, or a Hub name.",
    )

    def thresholds(self) -> tuple[float, ...]:
        """Return the maximum cosine similarity of kept rows, as the only threshold."""
        return (self.threshold,)

    def reason(self, sample: Sample) -> Rejection | None:
        """Return a rejection (``unwanted_topic``) that names the topic, or None to keep the row."""
        return self.evaluate([sample])[0].rejection

    def evaluate(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Return one verdict for each sample, in order."""
        matches = self._index.nearest([s.question for s in samples])
        verdicts = []
        for sample, match in zip(samples, matches, strict=True):
            rejection = None
            if match is not None and match.score > self.threshold:
                topic = self.topics[match.row]
                detail = (
                    f"cosine similarity {match.score:.3f} to {topic[:60]!r}, above {self.threshold}"
                )
                rejection = self.reject("unwanted_topic", detail, match.score)
            verdicts.append(Verdict(sample, rejection, None if match is None else match.score))
        return verdicts

    @cached_property
    def _index(self) -> EmbeddingIndex:
        check_model(self.model)
        # Kept rows store their similarity, so it is needed below the threshold, too.
        index = EmbeddingIndex(_ANY_SIMILARITY, self.model, decided_at=self.threshold)
        index.add(self.topics)
        return index
