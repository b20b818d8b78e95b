"""Reads PDF files with pypdf."""

from __future__ import annotations

import io

from instructgen.documents import DocumentFormat, DocumentLimits, DocumentText, Unreadable


class Pdf(DocumentFormat):
    """Returns the text of the pages; a page begins a new paragraph."""

    name = "pdf"
    suffixes = (".pdf",)

    def read(self, data: bytes, limits: DocumentLimits) -> DocumentText:
        """Extract the text of each page."""
        from pypdf import PasswordType, PdfReader

        reader = PdfReader(io.BytesIO(data))
        # Many files are encrypted with an empty password, which only forbids to print them.
        if reader.is_encrypted and reader.decrypt("") == PasswordType.NOT_DECRYPTED:
            raise Unreadable("encrypted", "the document has a password")
        if (count := len(reader.pages)) > limits.pages:
            raise Unreadable("too_many_pages", f"{count:,} pages, more than {limits.pages:,}")
        parts: list[str] = []
        pages: list[int] = []
        at = 0
        for page in reader.pages:
            text = page.extract_text().strip()
            pages.append(at)
            parts.append(text)
            at += len(text) + 2
            if at > limits.characters:
                break
        text = "\n\n".join(parts)
        if count and not text.strip():
            raise Unreadable("no_text", f"none of the {count:,} pages has text, as in a scan")
        return DocumentText(text, tuple(pages))
