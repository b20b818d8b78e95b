"""Keeps the rows whose question helps with the answer, but does not give it away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from instructgen.filters import ScoringFilter
from instructgen.models.likelihood import language_model
from instructgen.schema.sample import Sample, Score


class IFD(ScoringFilter):
    """Instruction-following difficulty (Li et al. 2024, equations 3 to 5).

    The loss of the answer after its question, divided by that of the answer by
    itself. Above 1 the question is of no help; far below, the row teaches little.
    """

    name: ClassVar[str] = "ifd"

    model: str = Field("smollm2", description="smollm2 (embedded), a folder, or a Hub name")
    min: float | None = Field(None, ge=0, description="lowest kept")
    max: float | None = Field(1.0, gt=0, description="highest kept; the paper's is 1")

    @property
    def score_name(self) -> str:
        """With the model."""
        return f"ifd/{self.model}"

    def scores(self, samples: Sequence[Sample]) -> list[Score]:
        """See `ScoringFilter.scores`."""
        if not samples:
            return []
        answers = [s.output for s in samples]
        model = language_model(self.model)
        after = model.losses([s.question for s in samples], answers)
        alone = model.losses([None] * len(samples), answers)
        scores = []
        for (told, error), (untold, _) in zip(after, alone, strict=True):
            if told is None or not untold:
                scores.append(Score(self.score_name, None, error or "the answer is certain"))
            else:
                scores.append(Score(self.score_name, round(told / untold, 4)))
        return scores
