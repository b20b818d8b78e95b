"""Rejects instructions that are too short or too long (Self-Instruct, section 2.2)."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from instructgen.filters import Filter
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity import tokenize


class Length(Filter):
    """Bounds on the number of words of an instruction."""

    name = "length"

    min_words: int = Field(4, ge=0, description="fewest words kept")
    max_words: int = Field(150, ge=1, description="most words kept")
    words: str = Field(
        "unicode",
        pattern="^(unicode|whitespace)$",
        description="whitespace: as the paper counts; unicode: right for every script",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_words > self.max_words:
            raise ValueError(
                f"min_words = {self.min_words} above max_words = {self.max_words} rejects all"
            )
        return self

    def thresholds(self) -> tuple[float, ...]:
        """The fewest and the most words kept."""
        return (self.min_words, self.max_words)

    def value(self, sample: Sample) -> float:
        """The number of words."""
        text = sample.instruction
        return len(text.split() if self.words == "whitespace" else tokenize(text))

    def reason(self, sample: Sample) -> Rejection | None:
        """``too_short`` or ``too_long``; the score is the number of words."""
        count = self.value(sample)
        if count < self.min_words:
            return self.reject("too_short", f"{count} words, fewer than {self.min_words}", count)
        if count > self.max_words:
            return self.reject("too_long", f"{count} words, more than {self.max_words}", count)
        return None
