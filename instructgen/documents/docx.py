"""Reads Word documents (.docx) with mammoth."""

from __future__ import annotations

import io
import zipfile
from typing import Any

from instructgen.documents import DocumentFormat, DocumentLimits, DocumentText, Unreadable


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
            rows = [[_text(c) for c in row if c.tag in ("td", "th")] for row in child.iter("tr")]
            blocks.append("\n".join(f"| {' | '.join(cells)} |" for cells in rows))
        elif text := _text(child):
            level = int(tag[1]) if tag[:1] == "h" and tag[1:].isdigit() else 0
            blocks.append(f"{'#' * level} {text}" if level else text)
    return [block for block in blocks if block.strip()]


def _text(element: Any) -> str:
    """Return the text of an element on one line, without that of lists in it."""
    parts = [element.text or ""]
    for child in element:
        if child.tag not in ("ul", "ol"):
            parts.append(" " if child.tag == "br" else "".join(child.itertext()))
        parts.append(child.tail or "")
    return " ".join("".join(parts).split())
