"""Rejects by a number that rows already carry: a judge's, a reviewer's, a reward model's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

from pydantic import Field, model_validator

from instructgen.filters import ScoringFilter
from instructgen.schema.sample import Sample, Score


class ScoreFilter(ScoringFilter):
    """Bounds on a score of this name, such as toxicity, quality or score_chosen."""

    name: ClassVar[str] = "score"

    of: str = Field(min_length=1, description="the score's name")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("give min or max")
        return self

    @property
    def score_name(self) -> str:
        """The name given."""
        return self.of

    def scores(self, samples: Sequence[Sample]) -> list[Score]:
        """None: what a row does not carry is not known."""
        return [Score(self.of, None, "the row carries no such score") for _ in samples]
