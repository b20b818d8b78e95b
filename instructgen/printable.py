"""Makes text from models and files safe to display in a terminal or on a web page."""

from __future__ import annotations

import unicodedata

# Zero-width joiners are needed for Persian and Hindi words and for emoji.
_JOINERS = "\u200c\u200d"


def printable(text: str) -> str:
    """Return the text without characters that control a terminal or the reading direction.

    Control and format characters and lone surrogates are replaced with U+FFFD. Newlines, tabs and
    zero-width joiners are kept.
    """
    return "".join(
        c
        if c in "\n\t" or c in _JOINERS or unicodedata.category(c) not in ("Cc", "Cf", "Cs")
        else "\ufffd"
        for c in text
    )
