"""Rejects answers that a local model finds too likely, or too unlikely, after their question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from instructgen.filters import ScoringFilter
from instructgen.models.likelihood import language_model
from instructgen.schema.sample import Sample, Score


class Perplexity(ScoringFilter):
    """The exponential of the mean loss of the answer's tokens, given the question."""

    name: ClassVar[str] = "perplexity"

    model: str = Field("smollm2", description="smollm2 (embedded), a folder, or a Hub name")
    min: float | None = Field(None, ge=1, description="lowest kept")
    max: float | None = Field(None, ge=1, description="highest kept")

    @property
    def score_name(self) -> str:
        """With the model."""
        return f"perplexity/{self.model}"

    def scores(self, samples: Sequence[Sample]) -> list[Score]:
        """See `ScoringFilter.scores`."""
        if not samples:
            return []
        losses = language_model(self.model).losses(
            [s.question for s in samples], [s.output for s in samples]
        )
        return [
            Score(self.score_name, None if v is None else round(math.exp(min(v, 50)), 4), error)
            for v, error in losses
        ]
