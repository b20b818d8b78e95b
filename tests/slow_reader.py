"""A plug-in with a type of document that exceeds limits."""

from __future__ import annotations

import os
import time

from instructgen.documents import DocumentFormat, DocumentLimits, DocumentText


class Slow(DocumentFormat):
    """Does what the text of the document says."""

    name = "slow_for_tests"
    suffixes = (".slow",)

    def read(self, data: bytes, limits: DocumentLimits) -> DocumentText:
        """Sleep, use memory, end the process, or return a text."""
        if data == b"sleep":
            time.sleep(60)
        if data == b"memory":
            return DocumentText("x" * 2**33)
        if data == b"die":
            os._exit(1)
        if data == b"long":
            return DocumentText("word " * 1_000)
        return DocumentText(data.decode())
