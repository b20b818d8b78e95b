"""Rejects rows by a score that they already have, from a judge, a reviewer or a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

from pydantic import Field, model_validator

from instructgen.filters import ScoringFilter
from instructgen.schema.sample import Sample, Score


class ScoreFilter(ScoringFilter):
    """Reject rows in which a score, such as ``toxicity`` or ``score_chosen``, is out of bounds."""

    name: ClassVar[str] = "score"

    of: str = Field(min_length=1, description="Name of the score to check.")

    @model_validator(mode="after")
    def _require_bound(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError(
                "neither the option min nor the option max is set; set at least one of them"
            )
        return self

    @property
    def score_name(self) -> str:
        """Return the name of the score."""
        return self.of

    def scores(self, samples: Sequence[Sample]) -> list[Score]:
        """Return a score without a value for each sample; this filter does not compute scores."""
        return [Score(self.of, None, "the row does not have this score") for _ in samples]
