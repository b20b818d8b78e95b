"""Determine the writing system (script) of a text, such as Latin or Arabic."""

from __future__ import annotations

from collections import Counter

import regex

_SCRIPTS = (
    "Hiragana",
    "Katakana",
    "Hangul",
    "Han",
    "Arabic",
    "Hebrew",
    "Cyrillic",
    "Greek",
    "Devanagari",
    "Bengali",
    "Tamil",
    "Thai",
    "Latin",
)
_LETTER = regex.compile("|".join(rf"(?P<{name}>\p{{{name}}})" for name in _SCRIPTS))
# The scripts of these languages. Any script is accepted for other languages.
_WRITTEN_IN = {
    "ja": {"Hiragana", "Katakana", "Han"},
    "ko": {"Hangul"},
    "zh": {"Han"},
    "ar": {"Arabic"},
    "fa": {"Arabic"},
    "ur": {"Arabic"},
    "he": {"Hebrew"},
    "ru": {"Cyrillic"},
    "uk": {"Cyrillic"},
    "el": {"Greek"},
    "hi": {"Devanagari"},
    "th": {"Thai"},
    **{
        code: {"Latin"}
        for code in ("en", "de", "es", "fr", "id", "it", "ms", "nl", "pt", "tr", "vi")
    },
}


def main_script(text: str) -> str:
    """Return the most frequent script of the letters in ``text``, or "" if it is unknown."""
    if text.isascii():
        # A fast path, since most texts are ASCII and ASCII letters are all Latin.
        return "Latin" if any(map(str.isalpha, text)) else ""
    counts = Counter(match.lastgroup or "" for match in _LETTER.finditer(text))
    return max(counts, key=lambda name: counts[name], default="")


def fits_language(text: str, language: str) -> bool:
    """Return whether ``text`` is in a script of ``language``; True if this is unknown."""
    scripts, script = _WRITTEN_IN.get(language), main_script(text)
    return scripts is None or not script or script in scripts
