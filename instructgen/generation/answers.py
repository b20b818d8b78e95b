"""Answers to instructions, and checks of them, which several methods share."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from instructgen.engines import Completion
from instructgen.resources import word_list
from instructgen.schema.sample import Sample
from instructgen.similarity import tokenize

# A short answer with an apology is a refusal (Evol-Instruct, section 3.2).
_SHORT_WORDS = 80


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
