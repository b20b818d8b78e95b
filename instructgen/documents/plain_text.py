"""Reads text files and Markdown."""

from __future__ import annotations

from instructgen.documents import DocumentFormat, DocumentLimits, DocumentText, Unreadable


class PlainText(DocumentFormat):
    """Returns the text as it is, with ``\\n`` at the ends of lines."""

    name = "text"
    suffixes = (".txt", ".text", ".md", ".markdown")

    def read(self, data: bytes, limits: DocumentLimits) -> DocumentText:
        """Decode UTF-8, or UTF-16 if the file begins with its byte-order mark."""
        utf_16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        try:
            text = data.decode("utf-16" if utf_16 else "utf-8-sig")
        except UnicodeDecodeError as error:
            raise Unreadable("encoding", f"the file is not UTF-8 ({error.reason})") from None
        if "\0" in text:
            raise Unreadable("broken", "the file contains bytes that are not text")
        return DocumentText(text.replace("\r\n", "\n").replace("\r", "\n"))
