"""Decides whether two texts with nearly the same words say the same.

Comparisons of words ignore signs, operators, order and Unicode variants: "5 - 3" has the same words
as "3 - 5". This module compares what such comparisons ignore. It does not find similar texts.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache
from typing import NamedTuple

import regex

from instructgen.resources import word_list

# Arabic letters that Persian and Urdu write with other code points, and digits of both scripts.
_LETTERS = str.maketrans("يىكأإآٱ٠١٢٣٤٥٦٧٨٩۰۱۲۳۴۵۶۷۸۹", "ییکاااا01234567890123456789")
# Zero-width characters, the Arabic lengthening mark, and vowel marks of Arabic and Hebrew.
_INVISIBLE = regex.compile(
    "[\u00ad\u200b-\u200f\u2060\u2066-\u2069\ufeff\u0640\u064b-\u0652\u0670\u0591-\u05c7]"
)
_RAISED = regex.compile("[⁰¹²³⁴-⁹]+")
_LOWERED = regex.compile("[₀-₉]+")
# Marks of lists at the beginning of a line, and HTML tags, are formatting.
_FORMATTING = regex.compile(
    r"(?m)^[ \t]*(?:(?:[-*+•#>]+|\d{1,3}[.)])[ \t]+)+|</?[A-Za-z][^<>\n]{0,100}>"
)
_SIGN = r"(?:!=|[-+−*/×÷·=<>≤≥≠±^%√$€£¥°&|])"
_OPERAND = r"[\p{N}()]|(?<!\p{L})\p{L}(?!\p{L})"
_TOKEN = regex.compile(
    rf"""
    (?P<number>\p{{N}}+(?:[.,:]\p{{N}}+)*)
    |(?P<sign>(?<=(?:{_OPERAND})[ \t]*){_SIGN}+|{_SIGN}+(?=[ \t]*(?:{_OPERAND})))
    |(?P<name>(?<![\p{{L}}\p{{N}}])\p{{L}}(?:\#|\+\+))
    |(?P<word>[\p{{L}}\p{{M}}]+(?:['’][\p{{L}}\p{{M}}]+)*)
    """,
    regex.VERBOSE,
)
_CJK = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]")


class Distinctions(NamedTuple):
    """What distinguishes a text from others with the same words.

    ``exact`` are its numbers, operators and names such as C++ in order, ``negations`` its number of
    negating words, and ``words`` its other words in order.
    """

    exact: tuple[str, ...]
    negations: int
    words: tuple[str, ...]


def fold(text: str) -> str:
    """Return a text in a form that is equal for texts that look the same.

    The text is converted to NFKC and lower case, with raised digits written as ``^2``. Arabic and
    Persian variants of letters and digits are unified, and zero-width characters and vowel marks
    are removed.
    """
    if text.isascii():
        return text.lower()
    text = _RAISED.sub(lambda m: "^" + unicodedata.normalize("NFKC", m[0]), text)
    text = _LOWERED.sub(lambda m: "_" + unicodedata.normalize("NFKC", m[0]), text)
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).translate(_LETTERS)
    return _INVISIBLE.sub("", text).lower()


def distinctions(text: str) -> Distinctions:
    """Return what distinguishes a text from others with the same words."""
    exact: list[str] = []
    words: list[str] = []
    negations = 0
    for match in _TOKEN.finditer(_FORMATTING.sub("", fold(text))):
        token = match.group()
        if match.lastgroup == "word":
            count = _negations(token)
            negations += count
            if not count:
                words.append(token)
        else:
            exact.append(token.replace("−", "-").rstrip(":,"))
    return Distinctions(tuple(exact), negations, tuple(words))


def may_be_duplicates(a: Distinctions, b: Distinctions, *, ordered: bool) -> bool:
    """Return whether two similar texts can be duplicates of each other.

    They cannot if they differ in their numbers, operators or negating words. If ``ordered``, they
    also cannot if they consist of the same words in a different order.
    """
    if a.exact != b.exact or a.negations != b.negations:
        return False
    return not ordered or a.words == b.words or Counter(a.words) != Counter(b.words)


def contains_exactly(prompt: Distinctions, text: Distinctions) -> bool:
    """Return whether a text contains the numbers, operators and negations of a prompt, in order."""
    size = len(prompt.exact)
    places = range(len(text.exact) - size + 1)
    if not any(text.exact[i : i + size] == prompt.exact for i in places):
        return False
    alike = len(text.words) <= 1.5 * len(prompt.words)
    return text.negations == prompt.negations if alike else text.negations >= prompt.negations


@cache
def _negating() -> tuple[frozenset[str], re.Pattern[str]]:
    """Return the negating words, and a pattern of those in scripts without spaces."""
    words = [fold(word) for word in word_list("negations")]
    inside = "|".join(re.escape(w) for w in words if _CJK.search(w))
    return frozenset(words), re.compile(inside)


def _negations(word: str) -> int:
    words, inside = _negating()
    if word in words or word.replace("’", "'").endswith("n't"):
        return 1
    return len(inside.findall(word)) if _CJK.search(word) else 0
