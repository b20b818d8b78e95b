"""Rejects instructions by a word they hold or by how they begin.

The paper's heuristics: a text model cannot see images or open files, and
"Write a program" drew too many near-identical tasks.
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
    """Whole words, first words and first characters that rule an instruction out."""

    name = "wording"

    lists: tuple[str, ...] = Field((), description="word lists of filters/words/, by name")
    words: tuple[str, ...] = Field((), description="further words, whole and in any case")
    starts: tuple[str, ...] = Field((), description="beginnings, case as written")
    first_character: str = Field(
        "any",
        pattern="^(any|no_punctuation|ascii)$",
        description="ascii: no punctuation and no other script, as in the paper",
    )

    @field_validator("words", "starts")
    @classmethod
    def _not_empty(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        if "" in texts:
            raise ValueError("an empty text rejects all")
        return texts

    @field_validator("lists")
    @classmethod
    def _known(cls, lists: tuple[str, ...]) -> tuple[str, ...]:
        for name in lists:
            word_list(name)
        return lists

    def reason(self, sample: Sample) -> Rejection | None:
        """``word``, ``start`` or ``first_character``."""
        text = sample.instruction
        found = self._pattern.search(text) if self._pattern else None
        if found:
            return self.reject("word", f"holds the word {found.group().lower()!r}")
        for start in self.starts:
            if text.startswith(start):
                return self.reject("start", f"begins with {start!r}")
        first = text[:1]
        if self.first_character != "any" and first:
            # Spanish questions and exclamations open with a mark of their own.
            if unicodedata.category(first)[0] in "PS" and first not in "¿¡":
                return self.reject("first_character", f"begins with the mark {first!r}")
            if self.first_character == "ascii" and not first.isascii():
                return self.reject("first_character", f"begins with {first!r}, outside ASCII")
        return None

    @cached_property
    def _pattern(self) -> regex.Pattern[str] | None:
        words = [*self.words, *(w for name in self.lists for w in word_list(name))]
        joined = "|".join(regex.escape(w) for w in words)
        return regex.compile(rf"\b(?:{joined})\b", regex.IGNORECASE) if words else None
