"""Rejects rows that contain control tokens of chat models.

A control token, such as ``<|im_end|>``, marks where a message of a conversation begins or ends.
Tokenizers encode its text as the token itself, so a row that contains this text would train the
model on a forged message. The tokens are listed in ``filters/words/control_tokens.txt``.
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
_FIELDS = ("instruction", "input", "output", "context", "rejected_output", "calls", "tools")


class ControlTokens(Filter):
    """Reject rows with a control token or role marker of a chat model, such as [INST]."""

    name = "control_tokens"
    scope = "both"

    words: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="Additional strings that no field of a row may contain (case-sensitive)."
    )

    def reason(self, sample: Sample) -> Rejection | None:
        """Return a rejection with the reason ``control_token``, or None to keep the sample."""
        texts = [getattr(sample, field) or "" for field in _FIELDS]
        # One search of all texts is faster. A match across two texts is not found in either.
        joined = "\0".join(texts)
        if not any(first in joined for first in self._first) or not self._pattern.search(joined):
            return None
        for field, text in zip(_FIELDS, texts, strict=True):
            match = self._pattern.search(text)
            if match:
                return self.reject("control_token", f"the {field} contains {match.group()!r}")
        return None

    @cached_property
    def _tokens(self) -> tuple[str, ...]:
        return (*word_list("control_tokens"), *self.words)

    @cached_property
    def _first(self) -> frozenset[str]:
        """The first characters of all tokens; most texts contain none of them."""
        return frozenset({"<", *(t[0] for t in self._tokens)})

    @cached_property
    def _pattern(self) -> regex.Pattern[str]:
        # The search skips characters that begin no token, which is ten times faster.
        first = regex.escape("".join(sorted(self._first)))
        any_token = "|".join([_SHAPE, *(regex.escape(t) for t in self._tokens)])
        return regex.compile(f"(?=[{first}])(?:{any_token})")
