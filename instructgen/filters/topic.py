"""Rejects rows about topics that are not wanted, by meaning and in whatever words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from pydantic import Field

from instructgen.filters import Filter, Verdict
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity import EmbeddingIndex
from instructgen.similarity.encoders import MINILM, check_model


class Topic(Filter):
    """The cosine of the question to any of the topics above the threshold.

    Topics are texts: a phrase, or an instruction as an example of what to keep out.
    """

    name = "topic"
    scope = "row"

    topics: tuple[str, ...] = Field(min_length=1, description="what is kept out")
    threshold: float = Field(0.5, gt=0, lt=1, description="highest cosine kept")
    model: str = Field(MINILM, description="minilm (packaged, English), a folder, or a Hub name")

    def thresholds(self) -> tuple[float, ...]:
        """The highest cosine kept."""
        return (self.threshold,)

    def reason(self, sample: Sample) -> Rejection | None:
        """``unwanted_topic``, with the cosine and the topic."""
        return self.judge([sample])[0].rejection

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        """See `Filter.judge`."""
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
