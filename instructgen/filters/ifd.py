"""Rejects rows by how much the question helps a language model to predict the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from instructgen.filters import ScoringFilter
from instructgen.models.likelihood import language_model
from instructgen.schema.sample import Sample, Score


class IFD(ScoringFilter):
    """Score rows by instruction-following difficulty (Li et al. 2024, equations 3 to 5).

    The score is a language model's loss on the answer given its question, divided by its loss on
    the answer alone. A score above 1 means that the question does not help to predict the answer.
    A score far below 1 means that the answer follows from the question, so that a model has
    little to learn from the row.
    """

    name: ClassVar[str] = "ifd"

    model: str = Field(
        "smollm2",
        description="Language model for scoring: smollm2 (included), a folder, or a Hub name.",
    )
    min: float | None = Field(
        None, ge=0, description="Reject rows whose score is below this value."
    )
    max: float | None = Field(
        1.0, gt=0, description="Reject rows whose score is above this value; Li et al. 2024 use 1."
    )

    @property
    def score_name(self) -> str:
        """Return the name under which the score is stored, such as ``ifd/smollm2``."""
        return f"ifd/{self.model}"

    def scores(self, samples: Sequence[Sample]) -> list[Score]:
        """Return the score of each sample, in order."""
        if not samples:
            return []
        answers = [s.output for s in samples]
        model = language_model(self.model)
        conditional = model.losses([s.question for s in samples], answers)
        unconditional = model.losses([None] * len(samples), answers)
        scores = []
        for (with_question, error), (alone, _) in zip(conditional, unconditional, strict=True):
            if with_question is None or not alone:
                scores.append(
                    Score(self.score_name, None, error or "the loss on the answer alone is 0")
                )
            else:
                scores.append(Score(self.score_name, round(with_question / alone, 4)))
        return scores
