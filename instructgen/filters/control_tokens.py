"""Rejects rows that contain a chat model's control tokens.

Current tokenizers encode such text as the real control token, so that a row with
``<|im_end|>`` trains the model on a forged turn. The tokens are listed in
filters/words/control_tokens.txt.
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
    """Reject rows with special tokens or role markers of chat models in any field."""

    name = "control_tokens"
    scope = "both"

    words: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="Additional tokens, matched exactly."
    )

    def reason(self, sample: Sample) -> Rejection | None:
        """Return a rejection (``control_token``), or None."""
        for field in ("instruction", "input", "output", "context", "rejected_output"):
            match = self._pattern.search(getattr(sample, field) or "")
            if match:
                return self.reject("control_token", f"the {field} contains {match.group()!r}")
        return None

    @cached_property
    def _pattern(self) -> regex.Pattern[str]:
        tokens = [*word_list("control_tokens"), *self.words]
        return regex.compile("|".join([_SHAPE, *(regex.escape(t) for t in tokens)]))
