"""Rejects rows whose answer has too low or too high a perplexity for a local language model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from instructgen.filters import ScoringFilter
from instructgen.models.likelihood import language_model
from instructgen.schema.sample import Sample, Score


class Perplexity(ScoringFilter):
    """Score rows by the perplexity of the answer given the question.

    Perplexity is the exponential of the mean loss (in nats) on the answer's tokens.
    """

    name: ClassVar[str] = "perplexity"

    model: str = Field(
        "smollm2",
        description="Language model: smollm2 (included), a folder, or the name of a model on the "
        "Hugging Face Hub.",
    )
    min: float | None = Field(
        None, ge=1, description="Reject rows with a perplexity below this value."
    )
    max: float | None = Field(
        None, ge=1, description="Reject rows with a perplexity above this value."
    )

    @property
    def score_name(self) -> str:
        """Return the name of the score, which includes the name of the model."""
        return f"perplexity/{self.model}"

    def scores(self, samples: Sequence[Sample]) -> list[Score]:
        """Return the perplexity of each sample's answer, in order."""
        if not samples:
            return []
        losses = language_model(self.model).losses(
            [s.question for s in samples], [s.output for s in samples]
        )
        return [
            Score(self.score_name, None if v is None else round(math.exp(min(v, 50)), 4), error)
            for v, error in losses
        ]
