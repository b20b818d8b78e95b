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
# A title is repeated in each row of its section.
_LONGEST_HEADING = 200
_HEADING = re.compile(r"(#{1,6})[ \t]+(.*)$")
# A segment has at most this many characters for each word that it may have.
_LONGEST_WORD = 100
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
    """A paragraph or a part of one, with the lines of headings directly before it.

    ``start`` is the position of the first of these headings, and ``body`` that of the paragraph.
    ``headings`` are all headings above the paragraph.
    """

    start: int
    body: int
    end: int
    headings: tuple[str, ...]


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
        text, most = document.text, _LONGEST_WORD * self._words
        positions = word_positions(text)

        def count(start: int, end: int) -> int:
            return bisect_left(positions, end) - bisect_left(positions, start)

        begin, end, heading = -1, -1, ""

        def segment() -> Segment:
            page = bisect_right(document.pages, begin) if document.pages else None
            return Segment(begin, end, heading, page)

        for unit in self._units(text, positions):
            begins_section = unit.start < unit.body
            if begin >= 0:
                is_short = count(begin, end) < self._words / _SHORT_SECTION
                full = count(begin, unit.end) > self._words or unit.end - begin > most
                if full or (begins_section and not is_short):
                    yield segment()
                    repeats = full and not begins_section
                    begin = self._repeated(text, positions, begin, end) if repeats else unit.start
                    heading = " > ".join(unit.headings)
            else:
                begin, heading = unit.start, " > ".join(unit.headings)
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
            start, body = unit.start, unit.body
            first = bisect_left(positions, start)
            longest = _LONGEST_WORD * most
            while bisect_left(positions, unit.end) - first > most or unit.end - start > longest:
                limit = min([*positions[first + most : first + most + 1], start + longest])
                # Not directly after the headings.
                ends = [m.end() for m in _SENTENCE.finditer(text, start, limit) if m.end() > body]
                end = ends[-1] if ends else limit
                yield _Unit(start, max(start, body), _trimmed(text, start, end), unit.headings)
                start = body = end
                first = bisect_left(positions, start)
            yield _Unit(start, max(start, body), unit.end, unit.headings)


def _paragraphs(text: str) -> Iterator[_Unit]:
    """Yield the paragraphs of a text with the headings before them; a block of code is one."""
    titles: list[tuple[int, str]] = []
    # Where the headings before the paragraph begin, where it begins and where it ends.
    lead, body, end, fence = -1, -1, -1, ""

    def unit() -> _Unit:
        return _Unit(body if lead < 0 else lead, body, end, tuple(title for _, title in titles))

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
            if body >= 0:
                yield unit()
                lead = body = -1
            if bare and found:
                level = len(found[1])
                titles = [title for title in titles if title[0] < level]
                titles.append((level, _title(found[2])[:_LONGEST_HEADING]))
                lead = begins + line.index(bare) if lead < 0 else lead
                end = begins + line.index(bare) + len(bare)
            continue
        if bare:
            inner = begins + line.index(bare)
            body = inner if body < 0 else body
            end = inner + len(bare)
    if lead >= 0 or body >= 0:
        # Headings at the end have no paragraph.
        body = end if body < 0 else body
        yield unit()


def _title(text: str) -> str:
    """Return a heading without the number signs that may close it."""
    bare = text.strip().rstrip("#")
    return bare.strip() if not bare or bare[-1] in " \t" else text.strip()


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _trimmed(text: str, start: int, end: int) -> int:
    """Return the end of a part of a text without the white space at its end."""
    while end > start and text[end - 1].isspace():
        end -= 1
    return end
