"""Computes the loss of given texts under a local language model. No text is generated."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from instructgen.models.loading import load_for_inference

_TOKENS_AT_ONCE = 2_048


class Loss(NamedTuple):
    """The mean negative log-likelihood of an answer's tokens in nats, or why it is unknown."""

    value: float | None
    error: str | None = None


class LanguageModel:
    """A causal language model that computes the loss of answers. `language_model` creates it."""

    def __init__(self, name: str) -> None:
        self._tokenizer, self._model = load_for_inference(name)
        self._max_tokens = int(getattr(self._model.config, "max_position_embeddings", 2_048))

    def losses(self, questions: Sequence[str | None], answers: Sequence[str]) -> list[Loss]:
        """Return the loss of each answer given its question; None means that it has no question.

        The question and the answer are separated by a blank line. If an answer is empty, or the
        question and the answer together are too long for the model, the value of the loss is
        None, and ``error`` states the reason.
        """
        inputs: list[tuple[list[int], int]] = []
        result: list[Loss] = []
        for question, answer in zip(questions, answers, strict=True):
            before = self._ids(f"{question}\n\n") if question else []
            # The first token of a text can only be predicted from another token.
            before = before or [self._start]
            ids = [*before, *self._ids(answer)]
            inputs.append((ids, len(before)))
            if len(ids) == len(before):
                result.append(Loss(None, "the answer is empty"))
            elif len(ids) > self._max_tokens:
                result.append(
                    Loss(
                        None,
                        f"{len(ids)} tokens, but the model supports at most {self._max_tokens}",
                    )
                )
            else:
                result.append(Loss(0.0))
        valid = [i for i, loss in enumerate(result) if loss.error is None]
        spans = [(inputs[i][1], len(inputs[i][0])) for i in valid]
        sums = negative_log_likelihoods(self._model, [inputs[i][0] for i in valid], spans)
        for i, (begin, end), nats in zip(valid, spans, sums, strict=True):
            # Rounded, because the last bits depend on the other texts of the batch.
            result[i] = Loss(round(nats / (end - begin), 4))
        return result

    def _ids(self, text: str) -> list[int]:
        text = text.encode("utf-8", "replace").decode()
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    @property
    def _start(self) -> int:
        tokenizer = self._tokenizer
        for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        return 0


@cache
def language_model(name: str) -> LanguageModel:
    """Return the model for a name (``smollm2``, a folder or a Hub name); it is loaded only once.

    Raises:
        ConfigError: if the model cannot be loaded, or a package is missing.
        EngineError: if the included model ``smollm2`` is requested but not installed.
    """
    return LanguageModel(name)


def negative_log_likelihoods(
    model: Any, rows: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]]
) -> list[float]:
    """For each row, return the negative log-likelihood of a span of its tokens, in nats.

    Args:
        model: a causal language model from transformers.
        rows: the token ids of each row.
        spans: the start of the span in each row (at least 1), and its end (exclusive).
    """
    result = [0.0] * len(rows)
    for batch in _batches(rows):
        sums = _batch_sums(model, [rows[i] for i in batch], [spans[i] for i in batch])
        for i, nats in zip(batch, sums, strict=True):
            result[i] = nats
    return result


def _batch_sums(
    model: Any, rows: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]]
) -> list[float]:
    import torch

    device = next(model.parameters()).device
    padded = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.long, device=device)
    mask = torch.zeros_like(padded)
    for i, ids in enumerate(rows):
        padded[i, : len(ids)] = torch.tensor(list(ids), device=device)
        mask[i, : len(ids)] = 1
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        logits = model(input_ids=padded, attention_mask=mask).logits
    model.train(was_training)
    nats = []
    for i, (begin, end) in enumerate(spans):
        predictions = logits[i, begin - 1 : end - 1].float()
        targets = padded[i, begin:end]
        loss = torch.nn.functional.cross_entropy(predictions, targets, reduction="sum")
        nats.append(float(loss))
    return nats


def _batches(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Divide row indices into batches of rows with similar lengths, to reduce padding."""
    batches: list[list[int]] = [[]]
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if batches[-1] and (len(batches[-1]) + 1) * len(rows[i]) > _TOKENS_AT_ONCE:
            batches.append([])
        batches[-1].append(i)
    return [b for b in batches if b]
