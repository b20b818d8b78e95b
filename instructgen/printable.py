"""Text from models and files made safe to look at, on a terminal or a page."""

from __future__ import annotations

import unicodedata

# Joiners are letters' business in Persian, Hindi and emoji.
_JOINERS = "\u200c\u200d"


def printable(text: str) -> str:
    """The text without what controls a terminal or turns the reading direction.

    Control and format characters and lone surrogates become U+FFFD; new lines and tabs
    stay.
    """
    return "".join(
        c
        if c in "\n\t" or c in _JOINERS or unicodedata.category(c) not in ("Cc", "Cf", "Cs")
        else "\ufffd"
        for c in text
    )
