"""Rejects rows about unwanted topics, by meaning and in any wording."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from pydantic import Field

from instructgen.filters import Filter, Verdict
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity import EmbeddingIndex
from instructgen.similarity.encoders import MINILM, check_model


class Topic(Filter):
    """Reject rows whose question has a cosine above the threshold to a topic.

    A topic is a text: a phrase, or an example of an unwanted instruction.
    """

    name = "topic"
    scope = "row"

    topics: tuple[str, ...] = Field(min_length=1, description="Unwanted topics.")
    threshold: float = Field(0.5, gt=0, lt=1, description="Maximum cosine.")
    model: str = Field(
        MINILM, description="Embedding model: minilm (packaged, English), a folder, or a Hub name."
    )

    def thresholds(self) -> tuple[float, ...]:
        """Return the maximum cosine."""
        return (self.threshold,)

    def reason(self, sample: Sample) -> Rejection | None:
        """Return a rejection (``unwanted_topic``) with the cosine and the topic, or None."""
        return self.evaluate([sample])[0].rejection

    def evaluate(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Return one verdict for each sample, in order."""
        matches = self._index.nearest([s.question for s in samples])
        verdicts = []
        for sample, match in zip(samples, matches, strict=True):
            rejection = None
            if match is not None:
                topic = self.topics[match.row]
                detail = f"cosine {match.score:.3f} to {topic[:60]!r}, above {self.threshold}"
                rejection = self.reject("unwanted_topic", detail, match.score)
            verdicts.append(Verdict(sample, rejection, None if match is None else match.score))
        return verdicts

    @cached_property
    def _index(self) -> EmbeddingIndex:
        check_model(self.model)
        index = EmbeddingIndex(self.threshold, self.model)
        index.add(self.topics)
        return index
