"""Reads Word documents (.docx) with mammoth."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import Any

from instructgen.documents import DocumentFormat, DocumentLimits, DocumentText, Unreadable

# The elements within a line that mammoth writes.
_IN_LINE = ("strong", "em", "b", "i", "u", "s", "a", "sup", "sub", "span", "code", "img")


class Docx(DocumentFormat):
    """Returns the text of a document, with its headings and lists as in Markdown."""

    name = "docx"
    suffixes = (".docx",)

    def read(self, data: bytes, limits: DocumentLimits) -> DocumentText:
        """Convert the document to HTML, and its elements to lines of text."""
        import lxml.html
        import mammoth

        if data.startswith(b"\xd0\xcf\x11\xe0"):
            # The container of the older format also holds documents with a password.
            raise Unreadable("encrypted", "the document has a password or is a .doc file")
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
        except zipfile.BadZipFile:
            raise Unreadable("broken", "the file is not a Word document") from None
        if size > 2 * limits.bytes:
            raise Unreadable("too_large", f"{size:,} bytes uncompressed")
        # Pictures are left out, not embedded.
        images = mammoth.images.img_element(lambda image: {"src": ""})
        html = mammoth.convert_to_html(io.BytesIO(data), convert_image=images).value
        if not html.strip():
            raise Unreadable("no_text", "the document has no text")
        root = lxml.html.fragment_fromstring(html, create_parent="div")
        return DocumentText("\n\n".join(_blocks(root)))


def _blocks(root: Any) -> list[str]:
    """Return the paragraphs, headings, lists and tables of an element as Markdown."""
    blocks: list[str] = []
    for child in root:
        tag = child.tag if isinstance(child.tag, str) else ""
        if tag in ("ul", "ol"):
            blocks.append("\n".join(f"- {_text(item)}" for item in child.iter("li")))
        elif tag == "table":
            # Only its own rows, and not those of a table in a cell.
            lines = [
                [_text(c) for c in row] for row in child.xpath("./tr | ./thead/tr | ./tbody/tr")
            ]
            blocks.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
        elif text := _text(child):
            level = int(tag[1]) if tag[:1] == "h" and tag[1:].isdigit() else 0
            blocks.append(f"{'#' * level} {text}" if level else text)
    return [block for block in blocks if block.strip()]


def _text(element: Any) -> str:
    """Return the text of an element on one line, of an item of a list without lists in it."""
    skipped = ("ul", "ol") if element.tag == "li" else ()
    return " ".join("".join(_parts(element, skipped)).split())


def _parts(element: Any, skipped: tuple[str, ...] = ()) -> Iterator[str]:
    yield element.text or ""
    for child in element:
        if child.tag not in skipped:
            # Text in the line continues a word; other elements end it.
            between = "" if child.tag in _IN_LINE else " "
            yield between
            yield from _parts(child)
            yield between
        yield child.tail or ""
