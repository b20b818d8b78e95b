"""Which script a text is written in. Not language identification."""

from __future__ import annotations

from collections import Counter

import regex

# Script, and the language it suggests when nothing better is known. Latin comes
# last: it stands in texts of every language.
_SCRIPTS = {
    "Hiragana": "ja",
    "Katakana": "ja",
    "Hangul": "ko",
    "Han": "zh",
    "Arabic": "ar",
    "Hebrew": "he",
    "Cyrillic": "ru",
    "Greek": "el",
    "Devanagari": "hi",
    "Bengali": "bn",
    "Tamil": "ta",
    "Thai": "th",
    "Latin": "en",
}
_LETTER = regex.compile("|".join(rf"(?P<{name}>\p{{{name}}})" for name in _SCRIPTS))
_PERSIAN = regex.compile("[پچژگکی]")
# The scripts a text in these languages is written in; a language not named
# here may use any.
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
    """The script of most letters of ``text``, or "" where none is known."""
    if text.isascii():
        # Which most texts are, and these have no other letters.
        return "Latin" if any(map(str.isalpha, text)) else ""
    counts = Counter(match.lastgroup or "" for match in _LETTER.finditer(text))
    return max(counts, key=lambda name: counts[name], default="")


def language_of_script(text: str) -> str:
    """A guess at the language from the script alone: ISO 639, or ``und``."""
    script = main_script(text)
    if script == "Arabic" and _PERSIAN.search(text):
        return "fa"
    return _SCRIPTS.get(script, "und")


def fits_language(text: str, language: str) -> bool:
    """Whether ``text`` is mostly in a script that ``language`` is written in."""
    scripts, script = _WRITTEN_IN.get(language), main_script(text)
    return scripts is None or not script or script in scripts
