"""Reads web pages with trafilatura, which leaves out menus, advertisements and footers."""

from __future__ import annotations

from instructgen.documents import DocumentFormat, DocumentLimits, DocumentText, Unreadable


class Html(DocumentFormat):
    """Returns the main text of a page as Markdown."""

    name = "html"
    suffixes = (".html", ".htm", ".xhtml")

    def read(self, data: bytes, limits: DocumentLimits) -> DocumentText:
        """Extract the main text, with its headings, lists and tables."""
        import trafilatura

        text = trafilatura.extract(
            data, output_format="markdown", include_comments=False, favor_recall=True
        )
        if not text:
            raise Unreadable("no_text", "the page has no main text")
        return DocumentText(text)
