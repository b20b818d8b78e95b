"""Rejects answers that refuse, or that talk about being a language model."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

import regex
from pydantic import Field

from instructgen.filters import Filter
from instructgen.resources import word_list
from instructgen.schema.sample import Rejection, Sample


class Refusal(Filter):
    """Phrases of filters/words/refusals.txt near the beginning of the output."""

    name = "refusal"
    scope = "row"

    within: int = Field(200, ge=1, description="characters of the output looked at")
    phrases: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="further phrases, in any case"
    )

    def reason(self, sample: Sample) -> Rejection | None:
        """``refusal``."""
        # Apostrophes come straight or curly; the list has them straight.
        found = self._pattern.search(sample.output[: self.within].replace("’", "'"))
        return self.reject("refusal", f"the output says {found.group()!r}") if found else None

    @cached_property
    def _pattern(self) -> regex.Pattern[str]:
        phrases = [*word_list("refusals"), *self.phrases]
        joined = "|".join(regex.escape(p) for p in phrases)
        return regex.compile(rf"\b(?:{joined})", regex.IGNORECASE)
