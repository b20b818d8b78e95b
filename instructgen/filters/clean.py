"""Removes text that does not belong to the task: citation marks, chat phrases, web addresses."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import regex
from pydantic import Field

from instructgen.filters import Transform
from instructgen.resources import word_list

# Wikipedia's [42], [a] and [citation needed], directly after a word or punctuation mark.
_CITATION = regex.compile(
    r"(?<=[\p{L}\p{N}.,;:!?)\"'”’%])(?:\[(?:\d{1,3}|[a-z])\]| ?\[citation needed\])+"
)
# Text that contains code keeps its brackets, which may be array indices.
_CODE = regex.compile(
    r"```|[;{}]\s*$|\)\s*:\s*$|\w\[\w+\]\s*[=.+*/(-]|\bdef\s|\breturn\s|=\s*\[", regex.M
)
_LINK = regex.compile(r"\[([^\]\n]{1,300})\]\(https?://[^\s)]{1,2000}\)")
_URL = regex.compile(
    r"https?://[^\s<>\"'）)\]]{1,2000}(?<![.,;:!?])|\bwww\.[^\s<>\"'）)\]]{1,2000}(?<![.,;:!?])"
)


class Clean(Transform):
    """Remove citation marks and chat phrases; optionally mask or remove web addresses.

    Chat phrases are lines that belong to the chat and not to the task, such as "Sure! Here is".
    Each of these steps can be turned off. The row's field ``edits`` lists the changes.
    """

    name = "clean"

    citation_marks: bool = Field(
        True, description="Remove citation marks such as [42] and [citation needed]."
    )
    boilerplate: bool = Field(
        True,
        description="Remove the first line and the last lines of an output if they begin with a "
        'chat phrase, such as "Sure, here" (list: filters/words/boilerplate.txt).',
    )
    urls: Literal["keep", "mask", "remove"] = Field(
        "keep", description="Keep web addresses, replace them with [URL] (mask), or remove them."
    )

    def change(self, text: str, field: str) -> tuple[str, list[str]]:
        """Return the cleaned text, and a list of descriptions: one for each kind of change."""
        details = []
        if self.citation_marks and "[" in text and not _CODE.search(text):
            text, count = _CITATION.subn("", text)
            if count:
                details.append(f"citation marks removed: {count}")
        if self.boilerplate and field in ("output", "rejected_output"):
            shorter = self._without_phrases(text)
            if shorter != text:
                details.append(f"chat phrases removed: {len(text) - len(shorter)} characters")
                text = shorter
        if self.urls != "keep":
            text, links = _LINK.subn(r"\1", text)
            text, bare = _URL.subn("[URL]" if self.urls == "mask" else "", text)
            if links + bare:
                action = "masked" if self.urls == "mask" else "removed"
                details.append(f"web addresses {action}: {links + bare}")
        return text, details

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
