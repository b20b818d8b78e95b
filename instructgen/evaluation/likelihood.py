"""Computes the likelihood of existing answers under a model, in bits, for any tokenizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from instructgen.models.likelihood import negative_log_likelihoods
from instructgen.training.encode import Encoded


@dataclass(frozen=True, slots=True)
class AnswerLikelihood:
    """The negative log2-likelihood of an answer's text, and its size in UTF-8 bytes and tokens.

    The end-of-turn token is not counted, because a base model has never seen such a token.
    """

    bits: float
    bytes: int
    tokens: int


def answer_likelihoods(
    model: Any, rows: Sequence[Encoded], answers: Sequence[str]
) -> list[AnswerLikelihood]:
    """Return the likelihood of each row's last answer, in row order.

    Args:
        model: a causal language model.
        rows: the rows as token ids.
        answers: the last answer of each row as text.
    """
    spans = [(row.prompt, row.said) for row in rows]
    nats = negative_log_likelihoods(model, [row.ids for row in rows], spans)
    return [
        AnswerLikelihood(value / math.log(2), len(text.encode("utf-8", "replace")), end - begin)
        for value, text, (begin, end) in zip(nats, answers, spans, strict=True)
    ]
