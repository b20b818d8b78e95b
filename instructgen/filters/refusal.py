"""Rejects rows whose output refuses to answer or calls its author a language model."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

import regex
from pydantic import Field

from instructgen.filters import Filter
from instructgen.resources import word_list
from instructgen.schema.sample import Rejection, Sample


class Refusal(Filter):
    """Reject rows with a phrase from filters/words/refusals.txt near the start of the output."""

    name = "refusal"
    scope = "row"

    within: int = Field(
        200, ge=1, description="Number of characters to search at the start of the output."
    )
    phrases: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (),
        description="More phrases to reject, in addition to those in filters/words/refusals.txt. "
        "Case is ignored.",
    )

    def reason(self, sample: Sample) -> Rejection | None:
        """Return a rejection (``refusal``), or None to keep the row."""
        # Texts have straight or curly apostrophes; the word list has straight ones.
        match = self._pattern.search(sample.output[: self.within].replace("’", "'"))
        return self.reject("refusal", f"the output says {match.group()!r}") if match else None

    @cached_property
    def _pattern(self) -> regex.Pattern[str]:
        phrases = [*word_list("refusals"), *self.phrases]
        joined = "|".join(regex.escape(p) for p in phrases)
        return regex.compile(rf"\b(?:{joined})", regex.IGNORECASE)
