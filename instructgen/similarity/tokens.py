"""Words of any script, for comparing texts. Not a model tokenizer.

``unicode`` (the default): NFC, lower case, then runs of letters, digits and
combining marks of any script are words; scripts written without spaces (Han,
kana, Thai, Lao, Khmer, Burmese) are cut into characters, each with its marks.
Everything else, the zero-width non-joiner included, separates words.

``ascii``: exactly rouge-score's tokenizer without stemming: lower case, words
are runs of [a-z0-9]. It sees nothing of a Persian or Chinese text.

On ASCII text both give the same words.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

import regex

Tokenizer = Literal["unicode", "ascii"]

_ASCII_WORD = re.compile(r"[a-z0-9]+")
_SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(
    rf"[{_SPACELESS}--\p{{M}}--\p{{N}}]\p{{M}}*|[\p{{L}}\p{{M}}\p{{N}}--[{_SPACELESS}--\p{{M}}--\p{{N}}]]+",
    regex.V1,
)


def tokenize(text: str, tokenizer: Tokenizer = "unicode") -> list[str]:
    """The words of ``text`` in order, lower-cased."""
    if tokenizer == "ascii" or text.isascii():
        return _ASCII_WORD.findall(text.lower())
    words: list[str] = _WORD.findall(unicodedata.normalize("NFC", text).lower())
    return words
