"""Measures a model, such as its bits per byte, and the difference between two models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from instructgen.evaluation.intervals import ratio, ratio_difference
from instructgen.evaluation.likelihood import answer_likelihoods
from instructgen.models.loading import Head, load_model, load_tokenizer
from instructgen.schema.measures import Estimate, Measure
from instructgen.schema.messages import Message
from instructgen.schema.records import JsonRecord
from instructgen.schema.sample import Sample
from instructgen.training.encode import Encoded, Encoder, Unusable
from instructgen.training.options import PromptFormat
from instructgen.training.rewards import score_ids


@dataclass(frozen=True, slots=True)
class MeasuredRows(JsonRecord):
    """A measure of one model on some rows: the sum of ``parts`` divided by the sum of ``wholes``.

    ``parts`` and ``wholes`` have one value per row, such as the bits and the bytes of its answer.
    ``rows`` are the IDs of the rows.
    """

    name: str
    parts: list[float]
    wholes: list[float]
    rows: list[str]

    @property
    def estimate(self) -> Estimate:
        """The value of the measure over all rows, with its 95% confidence interval."""
        return ratio(self.parts, self.wholes)

    def over(self, other: MeasuredRows) -> Estimate:
        """Return this measure minus that of another model, on the rows that both contain."""
        places = {row: i for i, row in enumerate(other.rows)}
        shared = [(i, places[row]) for i, row in enumerate(self.rows) if row in places]
        return ratio_difference(
            [self.parts[i] for i, _ in shared],
            [other.parts[j] for _, j in shared],
            [self.wholes[i] for i, _ in shared],
        )


def bits_per_byte(
    name: str, samples: Sequence[Sample], prompt_format: PromptFormat
) -> MeasuredRows:
    """Return the loss of a model on the answers of the rows, in bits per UTF-8 byte.

    Rows that are longer than the maximum length or cannot be encoded are skipped.
    """
    model, encoder = _load(name, prompt_format)
    rows = [encoder.encode(s) for s in samples]
    usable = [
        (s, r) for s, r in zip(samples, rows, strict=True)
        if not isinstance(r, Unusable) and len(r.ids) <= prompt_format.max_length
    ]  # fmt: skip
    answers = answer_likelihoods(
        model, [r for _, r in usable], [_text(s.answer, r) for s, r in usable]
    )
    return MeasuredRows(
        "bits_per_byte",
        [a.bits for a in answers],
        [float(a.bytes) for a in answers],
        [s.id for s, _ in usable],
    )


def answer_bits(
    name: str, samples: Sequence[Sample], prompt_format: PromptFormat
) -> dict[str, float]:
    """Return the log2-likelihood of each row's answer under a model, by row ID.

    Rows that are longer than the maximum length or cannot be encoded are skipped.
    """
    measured = bits_per_byte(name, samples, prompt_format)
    return {row: -bits for row, bits in zip(measured.rows, measured.parts, strict=True)}


def _text(answer: Message, row: Encoded) -> str:
    """Return the text whose bytes are counted: the output, or the rendered text with calls."""
    return answer.content if answer.plain else row.text


def pair_margins(
    name: str, samples: Sequence[Sample], prompt_format: PromptFormat
) -> dict[str, tuple[float, float]]:
    """Return, by row ID, how much more likely the chosen answer is than the rejected answer.

    Returns:
        The log2-likelihood of the chosen answer minus that of the rejected answer, as two
        numbers: in bits for the complete answers, and in bits per token.
    """
    model, encoder = _load(name, prompt_format)
    margins = {}
    sides: list[Any] = []
    for sample in samples:
        both = (encoder.encode(sample), encoder.encode(sample, sample.rejected_answer))
        if not any(isinstance(r, Unusable) or len(r.ids) > prompt_format.max_length for r in both):
            worse = sample.rejected_answer or sample.answer
            sides += [(sample, both[0], sample.answer), (sample, both[1], worse)]
    answers = answer_likelihoods(
        model, [r for _, r, _ in sides], [_text(a, r) for _, r, a in sides]
    )
    for at in range(0, len(answers), 2):
        chosen, rejected = answers[at], answers[at + 1]
        margins[sides[at][0].id] = (
            rejected.bits - chosen.bits,
            rejected.bits / max(1, rejected.tokens) - chosen.bits / max(1, chosen.tokens),
        )
    return margins


def pair_accuracy(margins: dict[str, float], name: str = "pair_accuracy") -> MeasuredRows:
    """Return the fraction of pairs whose value in ``margins`` is positive; 0 counts as half."""
    rows = list(margins)
    parts = [1.0 if margins[r] > 0 else 0.5 * (margins[r] == 0) for r in rows]
    return MeasuredRows(name, parts, [1.0] * len(rows), rows)


def reward_margins(
    name: str, samples: Sequence[Sample], prompt_format: PromptFormat
) -> dict[str, float]:
    """Return, by row ID, the reward of the chosen answer minus that of the rejected answer."""
    model, encoder = _load(name, prompt_format, "reward")
    ids, rows = [], []
    for sample in samples:
        both = (encoder.encode(sample), encoder.encode(sample, sample.rejected_answer))
        if not any(isinstance(r, Unusable) or len(r.ids) > prompt_format.max_length for r in both):
            ids += [r.ids for r in both if not isinstance(r, Unusable)]
            rows.append(sample.id)
    scores = score_ids(model, ids, encoder.tokenizer.pad_token_id)
    return {row: (scores[2 * i] or 0.0) - (scores[2 * i + 1] or 0.0) for i, row in enumerate(rows)}


def compared(after: MeasuredRows, before: MeasuredRows | None = None) -> Measure:
    """Return the measure of one model or, with ``before``, of two models and their difference."""
    if before is None:
        return Measure(after.name, after.estimate)
    return Measure(after.name, after.estimate, before.estimate, after.over(before))


def reward_measure(name: str, values: Sequence[float], rows: Sequence[str]) -> MeasuredRows:
    """Return the mean reward as a measure; ``values`` contains the reward of each row."""
    return MeasuredRows(name, list(values), [1.0] * len(values), list(rows))


def _load(name: str, prompt_format: PromptFormat, head: Head = "causal") -> tuple[Any, Encoder]:
    import torch

    tokenizer = load_tokenizer(name, prompt_format.pad_token)
    encoder = Encoder(tokenizer, prompt_format, name)
    model = load_model(name, head, tokenizer=tokenizer)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), encoder
