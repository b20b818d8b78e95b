"""How likely a local language model finds given text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from instructgen.models.loading import load_for_inference

_TOKENS_AT_ONCE = 2_048


class Loss(NamedTuple):
    """The mean negative log-likelihood of an answer's tokens, in nats, or why there is none."""

    value: float | None
    error: str | None = None


class LanguageModel:
    """A causal model that reads questions and answers; made by `language_model`."""

    def __init__(self, name: str) -> None:
        self._tokenizer, self._model = load_for_inference(name)
        self._most = int(getattr(self._model.config, "max_position_embeddings", 2_048))

    def losses(self, questions: Sequence[str | None], answers: Sequence[str]) -> list[Loss]:
        """The loss of each answer after its question; None for an answer by itself.

        The question and its answer are parted by a blank line. An answer too long
        for the model, or empty, has none.
        """
        inputs: list[tuple[list[int], int]] = []
        result: list[Loss] = []
        for question, answer in zip(questions, answers, strict=True):
            before = self._ids(f"{question}\n\n") if question else []
            # A first token has nothing to be told from.
            before = before or [self._start]
            ids = [*before, *self._ids(answer)]
            inputs.append((ids, len(before)))
            if len(ids) == len(before):
                result.append(Loss(None, "the answer is empty"))
            elif len(ids) > self._most:
                result.append(Loss(None, f"{len(ids)} tokens, more than {self._most}"))
            else:
                result.append(Loss(0.0))
        wanted = [i for i, loss in enumerate(result) if loss.error is None]
        spans = [(inputs[i][1], len(inputs[i][0])) for i in wanted]
        found = negative_log_likelihoods(self._model, [inputs[i][0] for i in wanted], spans)
        for i, (begin, end), nats in zip(wanted, spans, found, strict=True):
            # The last bits depend on what a text was batched with.
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
    """The model of this name: ``smollm2``, a folder, or a Hub name; loaded once.

    Raises:
        ConfigError: it cannot be loaded, or packages are missing.
        EngineError: the embedded model is not installed.
    """
    return LanguageModel(name)


def negative_log_likelihoods(
    model: Any, rows: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]]
) -> list[float]:
    """How unlikely a causal model finds a part of each row, in nats.

    Args:
        model: of transformers.
        rows: token ids.
        spans: of each row, the first token of the part (1 or more) and the one after it.
    """
    found = [0.0] * len(rows)
    for batch in _batches(rows):
        made = _batch(model, [rows[i] for i in batch], [spans[i] for i in batch])
        for i, nats in zip(batch, made, strict=True):
            found[i] = nats
    return found


def _batch(
    model: Any, rows: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]]
) -> list[float]:
    import torch

    device = next(model.parameters()).device
    padded = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.long, device=device)
    mask = torch.zeros_like(padded)
    for i, ids in enumerate(rows):
        padded[i, : len(ids)] = torch.tensor(list(ids), device=device)
        mask[i, : len(ids)] = 1
    was = model.training
    model.eval()
    with torch.inference_mode():
        logits = model(input_ids=padded, attention_mask=mask).logits
    model.train(was)
    nats = []
    for i, (begin, end) in enumerate(spans):
        told = logits[i, begin - 1 : end - 1].float()
        wanted = padded[i, begin:end]
        nats.append(float(torch.nn.functional.cross_entropy(told, wanted, reduction="sum")))
    return nats


def _batches(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Rows of like length together, so that little is padded."""
    batches: list[list[int]] = [[]]
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if batches[-1] and (len(batches[-1]) + 1) * len(rows[i]) > _TOKENS_AT_ONCE:
            batches.append([])
        batches[-1].append(i)
    return [b for b in batches if b]
