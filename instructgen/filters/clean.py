"""Takes out what is no part of a task: citation marks, phrases of chat, web addresses."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import regex
from pydantic import Field

from instructgen.filters import Transform
from instructgen.resources import word_list

# Wikipedia's [42], [a] and [citation needed], right behind a word or a stop.
_CITATION = regex.compile(
    r"(?<=[\p{L}\p{N}.,;:!?)\"'”’%])(?:\[(?:\d{1,3}|[a-z])\]| ?\[citation needed\])+"
)
# A text with code in it keeps its brackets.
_CODE = regex.compile(
    r"```|[;{}]\s*$|\)\s*:\s*$|\w\[\w+\]\s*[=.+*/(-]|\bdef\s|\breturn\s|=\s*\[", regex.M
)
_LINK = regex.compile(r"\[([^\]\n]{1,300})\]\(https?://[^\s)]{1,2000}\)")
_URL = regex.compile(
    r"https?://[^\s<>\"'）)\]]{1,2000}(?<![.,;:!?])|\bwww\.[^\s<>\"'）)\]]{1,2000}(?<![.,;:!?])"
)


class Clean(Transform):
    """Each kind can be left alone; what was changed is recorded in the row's edits."""

    name = "clean"

    citation_marks: bool = Field(True, description="take out [42] and [citation needed]")
    boilerplate: bool = Field(
        True, description="take out the first and last lines of filters/words/boilerplate.txt"
    )
    urls: Literal["keep", "mask", "remove"] = Field("keep", description="web addresses")

    def change(self, text: str, field: str) -> tuple[str, list[str]]:
        """See `Transform.change`."""
        said = []
        if self.citation_marks and "[" in text and not _CODE.search(text):
            text, count = _CITATION.subn("", text)
            if count:
                said.append(f"{count} citation marks were taken out")
        if self.boilerplate and field in ("output", "rejected_output"):
            shorter = self._without_phrases(text)
            if shorter != text:
                said.append(f"{len(text) - len(shorter)} characters of chat were taken out")
                text = shorter
        if self.urls != "keep":
            text, links = _LINK.subn(r"\1", text)
            text, bare = _URL.subn("[URL]" if self.urls == "mask" else "", text)
            if links + bare:
                done = "masked" if self.urls == "mask" else "taken out"
                said.append(f"{links + bare} web addresses were {done}")
        return text, said

    def _without_phrases(self, text: str) -> str:
        lines = text.split("\n")
        if len(lines) > 1 and self._phrases.match(lines[0].replace("’", "'")):
            del lines[0]
        while len(lines) > 1 and (
            not lines[-1].strip() or self._phrases.match(lines[-1].replace("’", "'"))
        ):
            del lines[-1]
        return "\n".join(lines).strip()

    @cached_property
    def _phrases(self) -> regex.Pattern[str]:
        joined = "|".join(regex.escape(p) for p in word_list("boilerplate"))
        return regex.compile(rf"\s*(?:{joined})", regex.IGNORECASE)
