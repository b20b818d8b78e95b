"""Rejects rows whose output refuses to answer or says that a language model wrote it."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

import regex
from pydantic import Field

from instructgen.filters import Filter
from instructgen.resources import word_list
from instructgen.schema.sample import Rejection, Sample


class Refusal(Filter):
    """Reject rows with a refusal, such as "I cannot help with", near the start of the output.

    The phrases that count as a refusal are listed in filters/words/refusals.txt.
    """

    name = "refusal"
    scope = "row"

    within: int = Field(
        200,
        ge=1,
        description="Number of characters at the start of the output to search.",
    )
    phrases: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (),
        description="Phrases that cause a rejection, in addition to those in "
        "filters/words/refusals.txt. Case is ignored.",
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
