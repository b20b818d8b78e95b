"""Divides the text of a document into segments, at headings, paragraphs and sentences.

A segment is a part of the text, so its positions lead back to the place in the document.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from instructgen.documents import DocumentText
from instructgen.similarity.tokens import word_positions

# A section with fewer words than this fraction of a segment is joined with the next one.
_SHORT_SECTION = 8
_HEADING = re.compile(r"(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")
_FENCE = re.compile(r"[ \t]{0,3}(`{3,}|~{3,})")
# The position after the end of a sentence. In scripts without spaces none follows it.
_SENTENCE = re.compile(r"[.!?؟۔।…][\"'”’»)\]]*\s+|[。！？][」』”’）]*\s*|\n[ \t]*\n\s*")


class Segment(NamedTuple):
    """A part of a text: its positions, the headings above it, and the page where it begins."""

    start: int
    end: int
    heading: str
    page: int | None


class _Unit(NamedTuple):
    """A paragraph, a sentence or a heading, with the headings above it."""

    start: int
    end: int
    headings: tuple[str, ...]
    is_heading: bool


class Splitter:
    """Divides texts into segments of at most ``words`` words.

    A heading begins a new segment, unless the section before it is short. A paragraph that is
    longer than a segment is divided after sentences, and a sentence that is, after words.

    Args:
        words: the maximum number of words of a segment.
        overlap: the number of words of a segment that the next one repeats, if no heading is
            between them. It is less if a sentence begins within these words.
    """

    def __init__(self, words: int, overlap: int = 0) -> None:
        self._words, self._overlap = words, overlap

    def segments(self, document: DocumentText) -> Iterator[Segment]:
        """Yield the segments of a document, in order."""
        text = document.text
        positions = word_positions(text)

        def count(start: int, end: int) -> int:
            return bisect_left(positions, end) - bisect_left(positions, start)

        begin, end, heading, has_text = -1, -1, "", False

        def segment() -> Segment:
            page = bisect_right(document.pages, begin) if document.pages else None
            return Segment(begin, end, heading, page)

        for unit in self._units(text, positions):
            if begin >= 0:
                is_short = count(begin, end) < self._words / _SHORT_SECTION
                full = count(begin, unit.end) > self._words
                if full or (unit.is_heading and has_text and not is_short):
                    yield segment()
                    repeats = full and not unit.is_heading
                    begin = self._repeated(text, positions, begin, end) if repeats else unit.start
                    has_text = False
            if begin < 0:
                begin = unit.start
            if not has_text:
                heading = " > ".join(unit.headings)
            has_text |= not unit.is_heading
            end = unit.end
        if begin >= 0:
            yield segment()

    def _repeated(self, text: str, positions: list[int], begin: int, end: int) -> int:
        """Return where the segment after the one from ``begin`` to ``end`` begins."""
        last = bisect_left(positions, end)
        first = max(bisect_left(positions, begin) + 1, last - self._overlap)
        if first >= last:
            return _skip_space(text, end)
        sentences = [m.end() for m in _SENTENCE.finditer(text, positions[first - 1], end)]
        starts = [at for at in sentences if positions[first] <= at < end]
        return starts[0] if starts else positions[first]

    def _units(self, text: str, positions: list[int]) -> Iterator[_Unit]:
        # The words that a segment repeats must fit in beside the next unit.
        most = self._words - self._overlap
        for unit in _paragraphs(text):
            start = unit.start
            first = bisect_left(positions, start)
            while bisect_left(positions, unit.end) - first > most:
                limit = positions[first + most]
                ends = [m.end() for m in _SENTENCE.finditer(text, start, limit)]
                end = ends[-1] if ends and ends[-1] > start else limit
                yield unit._replace(start=start, end=_trimmed(text, start, end))
                start = end
                first = bisect_left(positions, start)
            yield unit._replace(start=start)


def _paragraphs(text: str) -> Iterator[_Unit]:
    """Yield the paragraphs and headings of a text; a block of code is one paragraph."""
    headings: list[tuple[int, str]] = []
    start, end, fence = -1, -1, ""

    def titles() -> tuple[str, ...]:
        return tuple(title for _, title in headings)

    at = 0
    for line in text.splitlines(keepends=True):
        begins, at = at, at + len(line)
        bare = line.strip()
        match = _FENCE.match(line)
        if fence:
            if match and match[1].startswith(fence) and not bare.strip(fence[0]):
                fence = ""
        elif match:
            fence = match[1]
        elif not bare or (found := _HEADING.match(bare)):
            if start >= 0:
                yield _Unit(start, end, titles(), is_heading=False)
                start = -1
            if bare and found:
                level = len(found[1])
                headings = [h for h in headings if h[0] < level]
                headings.append((level, found[2]))
                inner = begins + line.index(bare)
                yield _Unit(inner, inner + len(bare), titles(), is_heading=True)
            continue
        if bare:
            inner = begins + line.index(bare)
            start = inner if start < 0 else start
            end = inner + len(bare)
    if start >= 0:
        yield _Unit(start, end, titles(), is_heading=False)


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _trimmed(text: str, start: int, end: int) -> int:
    """Return the end of a part of a text without the white space at its end."""
    while end > start and text[end - 1].isspace():
        end -= 1
    return end
