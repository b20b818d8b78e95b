"""Rejects instructions that contain certain words, or that begin in certain ways.

These rules are the heuristics of Self-Instruct: a text model cannot see images or open files, and
too many of the instructions that begin with "Write a program" are nearly identical.
"""

from __future__ import annotations

import unicodedata
from functools import cached_property

import regex
from pydantic import Field, field_validator

from instructgen.filters import Filter
from instructgen.resources import word_list
from instructgen.schema.sample import Rejection, Sample


class Wording(Filter):
    """Reject instructions that contain certain words, or begin with certain words or characters."""

    name = "wording"

    lists: tuple[str, ...] = Field(
        (),
        description="Names of word lists (filters/words/NAME.txt), such as not_for_text_models. "
        "Instructions with one of these words are rejected.",
    )
    words: tuple[str, ...] = Field(
        (), description="Words to reject in addition to those in the lists. Case is ignored."
    )
    starts: tuple[str, ...] = Field(
        (), description="Reject instructions that begin with one of these texts (case-sensitive)."
    )
    first_character: str = Field(
        "any",
        pattern="^(any|no_punctuation|ascii)$",
        description="Allowed first characters: any, no_punctuation, or ascii (as in the "
        "Self-Instruct paper: ASCII characters, but no punctuation).",
    )

    @field_validator("words", "starts")
    @classmethod
    def _check_not_empty(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        if "" in texts:
            raise ValueError("an empty text would reject all rows; remove it")
        return texts

    @field_validator("lists")
    @classmethod
    def _check_lists(cls, lists: tuple[str, ...]) -> tuple[str, ...]:
        for name in lists:
            word_list(name)
        return lists

    def reason(self, sample: Sample) -> Rejection | None:
        """Return a rejection (``word``, ``start`` or ``first_character``), or None."""
        text = sample.instruction
        match = self._pattern.search(text) if self._pattern else None
        if match:
            return self.reject("word", f"the instruction contains {match.group().lower()!r}")
        for start in self.starts:
            if text.startswith(start):
                return self.reject("start", f"the instruction begins with {start!r}")
        first = text[:1]
        if self.first_character != "any" and first:
            # Spanish questions and exclamations begin with an inverted mark.
            if unicodedata.category(first)[0] in "PS" and first not in "¿¡":
                detail = f"the instruction begins with the symbol {first!r}"
                return self.reject("first_character", detail)
            if self.first_character == "ascii" and not first.isascii():
                detail = f"the instruction begins with {first!r}, which is not ASCII"
                return self.reject("first_character", detail)
        return None

    @cached_property
    def _pattern(self) -> regex.Pattern[str] | None:
        words = [*self.words, *(w for name in self.lists for w in word_list(name))]
        joined = "|".join(regex.escape(w) for w in words)
        return regex.compile(rf"\b(?:{joined})\b", regex.IGNORECASE) if words else None
