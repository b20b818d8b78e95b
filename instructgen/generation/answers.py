"""Answers to instructions, and checks of them, which several methods share."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import regex

from instructgen.engines import Completion
from instructgen.resources import word_list
from instructgen.schema.sample import Sample
from instructgen.similarity import tokenize

# A short answer with an apology is a refusal (Evol-Instruct, section 3.2).
_SHORT_WORDS = 80


# A letter of a script with spaces between words.
_SPACED = regex.compile(
    r"[\p{L}\p{M}--\p{Han}--\p{Hiragana}--\p{Katakana}--\p{Thai}--\p{Lao}--\p{Khmer}--\p{Myanmar}]",
    regex.V1,
)


def find_text(text: str, whole: str, flags: int = 0) -> tuple[int, int] | None:
    """Return the first position of a text in another, whatever their white space; None if absent.

    The text begins and ends between words and numbers. In scripts without spaces, it may begin and
    end anywhere.
    """
    words = text.split()
    if not words:
        return None
    pattern = r"\s+".join(map(regex.escape, words))
    first, last = words[0][0], words[-1][-1]
    if first.isdecimal():
        pattern = rf"(?<!\d)(?<!\d[.,]){pattern}"
    elif _SPACED.match(first):
        pattern = rf"(?<![\p{{L}}\p{{M}}\p{{N}}]){pattern}"
    if last.isdecimal():
        pattern = rf"{pattern}(?![.,]?\d)"
    elif _SPACED.match(last):
        pattern = rf"{pattern}(?![\p{{L}}\p{{M}}\p{{N}}])"
    match = regex.search(pattern, whole, flags)
    return None if match is None else match.span()


def answered(sample: Sample, completion: Completion) -> Sample:
    """Return the sample with a completion as its answer, with the reasoning of the model."""
    text, reasoning = completion.text.strip(), completion.reasoning
    return replace(sample, output=text, reasoning_content=reasoning)


def answer_fault(text: str) -> tuple[str, str] | None:
    """Return the reason and a sentence if an answer is useless, or None.

    An answer is useless if it is empty, has only stop words, or is a short apology.
    """
    words = tokenize(text)
    if not words or set(words) <= _stop_words():
        return "empty_answer", "the answer has no content"
    if len(words) < _SHORT_WORDS and ("sorry" in words or "apologize" in words):
        return "apology", "the answer is an apology"
    return None


@cache
def _stop_words() -> frozenset[str]:
    return frozenset(word_list("stop_words"))
