"""Rejects rows by a score that they already have, from a judge, a reviewer or a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from instructgen.filters import ScoringFilter
from instructgen.schema.sample import Sample, Score


class ScoreFilter(ScoringFilter):
    """Reject rows whose stored score, such as ``toxicity``, is below ``min`` or above ``max``."""

    name: ClassVar[str] = "score"

    of: str = Field(
        min_length=1, description="Name of the score to compare with min and max, such as toxicity."
    )

    required: bool = Field(
        True, description="Whether it is an error if no row of the dataset has the score."
    )

    @model_validator(mode="after")
    def _require_bound(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError(
                "neither the option min nor the option max is set; set at least one of them"
            )
        return self

    def named(self) -> tuple[Literal["score", "label"], str] | None:
        """Return the name of the score, if rows must have it."""
        return ("score", self.of) if self.required else None

    @property
    def score_name(self) -> str:
        """Return the name of the score."""
        return self.of

    def scores(self, samples: Sequence[Sample]) -> list[Score]:
        """For each sample, return a score without a value, because this filter computes none."""
        return [Score(self.of, None, "the row does not have this score") for _ in samples]
