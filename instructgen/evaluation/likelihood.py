"""How likely a model finds given answers, in bits: the measure that no tokenizer can flatter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from instructgen.training.encode import Encoded, Encoder

_TOKENS_AT_ONCE = 2_048


@dataclass(frozen=True, slots=True)
class AnswerLikelihood:
    """The negative log2-likelihood of an answer's text, its size in UTF-8 bytes and tokens.

    The end of turn does not count: a base model has never seen one.
    """

    bits: float
    bytes: int
    tokens: int


def answer_likelihoods(
    model: Any, encoder: Encoder, rows: Sequence[Encoded], answers: Sequence[str]
) -> list[AnswerLikelihood]:
    """The likelihood of the last answer of each row.

    Args:
        model: a causal language model.
        encoder: what made the rows.
        rows: encoded rows.
        answers: their answers as text.
    """
    spans = []
    for row in rows:
        end = len(row.ids)
        while end > row.prompt and row.ids[end - 1] in encoder.special_ids:
            end -= 1
        spans.append((row.prompt, end))
    found: list[AnswerLikelihood | None] = [None] * len(rows)
    for batch in _batches(rows):
        sums = _log_likelihoods(model, [rows[i].ids for i in batch], [spans[i] for i in batch])
        for i, nats in zip(batch, sums, strict=True):
            size = len(answers[i].encode("utf-8", "replace"))
            found[i] = AnswerLikelihood(-nats / math.log(2), size, spans[i][1] - spans[i][0])
    return [f for f in found if f is not None]


def _log_likelihoods(
    model: Any, rows: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]]
) -> list[float]:
    import torch

    device = next(model.parameters()).device
    longest = max(map(len, rows))
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    was = model.training
    model.eval()
    with torch.inference_mode():
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
    model.train(was)
    sums = []
    for i, (begin, end) in enumerate(spans):
        told = logits[i, begin - 1 : end - 1].float()
        wanted = ids[i, begin:end].to(device)
        sums.append(-float(torch.nn.functional.cross_entropy(told, wanted, reduction="sum")))
    return sums


def _batches(rows: Sequence[Encoded]) -> list[list[int]]:
    """Rows of like length together, so that little is padded."""
    batches: list[list[int]] = [[]]
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i].ids)):
        if batches[-1] and (len(batches[-1]) + 1) * len(rows[i].ids) > _TOKENS_AT_ONCE:
            batches.append([])
        batches[-1].append(i)
    return [b for b in batches if b]
