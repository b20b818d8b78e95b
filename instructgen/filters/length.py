"""Rejects instructions that are too short or too long (Self-Instruct, section 2.2)."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from instructgen.filters import Filter
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity import tokenize


class Length(Filter):
    """Reject instructions whose number of words is out of bounds."""

    name = "length"

    min_words: int = Field(4, ge=0, description="Minimum number of words in an instruction.")
    max_words: int = Field(150, ge=1, description="Maximum number of words in an instruction.")
    words: str = Field(
        "unicode",
        pattern="^(unicode|whitespace)$",
        description="How to count words: whitespace (split at white space, as in the Self-Instruct "
        "paper) or unicode (also for writing systems without spaces).",
    )

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.min_words > self.max_words:
            raise ValueError(f"min_words = {self.min_words} is above max_words = {self.max_words}")
        return self

    def thresholds(self) -> tuple[float, ...]:
        """Return the settings ``min_words`` and ``max_words``."""
        return (self.min_words, self.max_words)

    def value(self, sample: Sample) -> float:
        """Return the number of words in the instruction."""
        text = sample.instruction
        return len(text.split() if self.words == "whitespace" else tokenize(text))

    def reason(self, sample: Sample) -> Rejection | None:
        """Return a rejection for ``too_short`` or ``too_long``, or None to keep the sample.

        The score of a rejection is the number of words.
        """
        count = self.value(sample)
        if count < self.min_words:
            return self.reject("too_short", f"{count} words, fewer than {self.min_words}", count)
        if count > self.max_words:
            return self.reject("too_long", f"{count} words, more than {self.max_words}", count)
        return None
