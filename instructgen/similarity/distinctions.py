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
_DIGIT = regex.compile(r"(?![0-9])\p{Nd}")
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
# Signs that are operators wherever they are, and those that are only next to an operand or between
# spaces. A run of signs is one token, so that a long line of them is read once.
_OPERATORS = (
    r"==|!=|<=|>=|\+=|-=|\*=|/=|&&|\|\||<<|>>|\+\+|//|->|=>|[≤≥≠≈±√∞∑∏∫∂∈∉∪∩⊂⊃⊆⊇∧∨¬∀∃→⇒⇔↔]|°[CF]|"
    r"\\(?:leq?|geq?|neq?|lt|gt|times|div|cdot|pm|cup|cap|in|notin|forall|exists|neg|land|lor)\b"
)
_MAX_SIGNS = 3
_SIGN = r"[-+*/·=<>^%$€£¥°&|~!]"
_OPERAND = r"[\p{N}()\[\]]|(?<!\p{L})\p{L}(?!\p{L})"
_TOKEN = regex.compile(
    rf"""
    (?P<number>\.?\p{{N}}+(?:[.,:]\p{{N}}+)*)
    |(?P<operator>(?<!{_SIGN})(?:{_OPERATORS})(?!{_SIGN}))
    |(?P<sign>(?<!{_SIGN}){_SIGN}++)
    |(?P<name>(?<![\p{{L}}\p{{N}}])\p{{L}}(?:\#|\+\+))
    |(?P<word>[\p{{L}}\p{{M}}]+(?:['’][\p{{L}}\p{{M}}]+)*)
    """,
    regex.VERBOSE,
)
_BEFORE = regex.compile(rf"(?:{_OPERAND})[ \t]*$")
_AFTER = regex.compile(rf"[ \t]*(?:{_OPERAND})")
# Words that change a task as a number or an operator does.
_EXACT_WORDS = frozenset(
    {"true", "false", "plus", "minus", "times", "divided", "or", "even", "odd", "two", "three"}
    | {"four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"}
)
_THOUSANDS = regex.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_SAME_SIGNS = str.maketrans("×∗⋅−–‐‑÷", "***----/")
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
    text = _DIGIT.sub(lambda m: str(unicodedata.decimal(m[0], m[0])), text)
    return _INVISIBLE.sub("", text).lower()


def distinctions(text: str) -> Distinctions:
    """Return what distinguishes a text from others with the same words."""
    exact: list[str] = []
    words: list[str] = []
    negations = 0
    text = _FORMATTING.sub("", fold(text)).translate(_SAME_SIGNS)
    text = _THOUSANDS.sub("", text)
    for match in _TOKEN.finditer(text):
        token, kind = match.group(), match.lastgroup
        if kind == "word":
            count = _negations(token)
            negations += count
            if token in _EXACT_WORDS:
                exact.append(token)
            elif not count:
                words.append(token)
        elif kind != "sign" or _is_operator(text, match.start(), match.end()):
            exact.append(token.rstrip(":,"))
    return Distinctions(tuple(exact), negations, tuple(words))


def _is_operator(text: str, begin: int, end: int) -> bool:
    """Return whether a sign is next to an operand, or between spaces and not a dash.

    Longer runs of signs are rulers or drawings.
    """
    if end - begin > _MAX_SIGNS:
        return False
    before, after = text[max(0, begin - 4) : begin], text[end : end + 4]
    if _BEFORE.search(before) or _AFTER.match(after):
        return True
    spaced = before[-1:] in (" ", "\t") and after[:1] in (" ", "\t")
    return spaced and text[begin:end] in ("+", "*", "=", "<", ">", "&", "%", "^")


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
