"""Rejects rows that hold a chat model's control tokens.

Today's tokenizers turn such text into the real control token, so that one row
with ``<|im_end|>`` trains a forged turn. The list is filters/words/
control_tokens.txt.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

import regex
from pydantic import Field

from instructgen.filters import Filter
from instructgen.resources import word_list
from instructgen.schema.sample import Rejection, Sample

# <|anything|> and its full-width form are control tokens in most families.
_SHAPE = r"<[|｜][^|｜<>\s]{1,40}[|｜]>"


class ControlTokens(Filter):
    """Special tokens and role markers of chat models, anywhere in the row."""

    name = "control_tokens"
    scope = "both"

    words: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="further tokens, as written"
    )

    def reason(self, sample: Sample) -> Rejection | None:
        """``control_token``."""
        for field in ("instruction", "input", "output", "context", "rejected_output"):
            found = self._pattern.search(getattr(sample, field) or "")
            if found:
                return self.reject("control_token", f"the {field} holds {found.group()!r}")
        return None

    @cached_property
    def _pattern(self) -> regex.Pattern[str]:
        tokens = [*word_list("control_tokens"), *self.words]
        return regex.compile("|".join([_SHAPE, *(regex.escape(t) for t in tokens)]))
