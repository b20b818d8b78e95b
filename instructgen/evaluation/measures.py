"""What is measured before and after training, each method by its own number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from instructgen.evaluation.intervals import Estimate, ratio, ratio_difference
from instructgen.evaluation.likelihood import answer_likelihoods
from instructgen.models.loading import Head, load_model, load_tokenizer
from instructgen.schema.sample import Sample
from instructgen.training.encode import Encoder, Unusable
from instructgen.training.rewards import score_ids


@dataclass(frozen=True, slots=True)
class Framing:
    """How rows are put to a model: longest row, template, and a padding token where it has none."""

    max_length: int = 1024
    format: str = "chat"
    pad_token: str | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """A measure of one model on given rows: per row a part and a whole."""

    name: str
    parts: list[float]
    wholes: list[float]
    rows: list[str]

    @property
    def estimate(self) -> Estimate:
        """The whole measure with its interval."""
        return ratio(self.parts, self.wholes)

    def over(self, other: Measured) -> Estimate:
        """How far this lies above another model's, on the rows that both have."""
        places = {row: i for i, row in enumerate(other.rows)}
        both = [(i, places[row]) for i, row in enumerate(self.rows) if row in places]
        return ratio_difference(
            [self.parts[i] for i, _ in both],
            [other.parts[j] for _, j in both],
            [self.wholes[i] for i, _ in both],
        )


def bits_per_byte(name: str, samples: Sequence[Sample], framing: Framing) -> Measured:
    """Bits per byte of people's answers, under the model of this name."""
    model, encoder = _loaded(name, framing)
    rows = [encoder.encode(s) for s in samples]
    usable = [
        (s, r) for s, r in zip(samples, rows, strict=True)
        if not isinstance(r, Unusable) and len(r.ids) <= framing.max_length
    ]  # fmt: skip
    found = answer_likelihoods(model, [r for _, r in usable], [s.output for s, _ in usable])
    return Measured(
        "bits_per_byte",
        [f.bits for f in found],
        [float(f.bytes) for f in found],
        [s.id for s, _ in usable],
    )


def pair_margins(
    name: str, samples: Sequence[Sample], framing: Framing
) -> dict[str, tuple[float, float]]:
    """Of each pair, how much likelier the model finds the chosen answer.

    Returns:
        By the row's id: bits in all, and bits per token of each answer.
    """
    model, encoder = _loaded(name, framing)
    found = {}
    sides: list[Any] = []
    for sample in samples:
        both = (encoder.encode(sample), encoder.encode(sample, sample.rejected_output or ""))
        if not any(isinstance(r, Unusable) or len(r.ids) > framing.max_length for r in both):
            sides += [(sample, both[0], sample.output), (sample, both[1], sample.rejected_output)]
    made = answer_likelihoods(model, [r for _, r, _ in sides], [a for *_, a in sides])
    for at in range(0, len(made), 2):
        chosen, rejected = made[at], made[at + 1]
        found[sides[at][0].id] = (
            rejected.bits - chosen.bits,
            rejected.bits / max(1, rejected.tokens) - chosen.bits / max(1, chosen.tokens),
        )
    return found


def pair_accuracy(margins: dict[str, float], name: str = "pair_accuracy") -> Measured:
    """The share of pairs whose chosen answer comes first; a tie counts half."""
    rows = list(margins)
    parts = [1.0 if margins[r] > 0 else 0.5 * (margins[r] == 0) for r in rows]
    return Measured(name, parts, [1.0] * len(rows), rows)


def reward_margins(name: str, samples: Sequence[Sample], framing: Framing) -> dict[str, float]:
    """Of each pair, how much better the reward model finds the chosen answer."""
    model, encoder = _loaded(name, framing, "reward")
    ids, rows = [], []
    for sample in samples:
        both = (encoder.encode(sample), encoder.encode(sample, sample.rejected_output or ""))
        if not any(isinstance(r, Unusable) or len(r.ids) > framing.max_length for r in both):
            ids += [r.ids for r in both if not isinstance(r, Unusable)]
            rows.append(sample.id)
    scores = score_ids(model, ids, encoder.tokenizer.pad_token_id)
    return {row: (scores[2 * i] or 0.0) - (scores[2 * i + 1] or 0.0) for i, row in enumerate(rows)}


def compared(after: Measured, before: Measured | None = None) -> dict[str, Any]:
    """As plain data: the measure, and with another model its value and the difference."""
    found: dict[str, Any] = {"measure": after.name, "after": asdict(after.estimate)}
    if before is not None:
        found |= {"before": asdict(before.estimate), "difference": asdict(after.over(before))}
    return found


def rewards_measured(name: str, values: Sequence[float], rows: Sequence[str]) -> Measured:
    """The mean of a reward per row."""
    return Measured(name, list(values), [1.0] * len(values), list(rows))


def _loaded(name: str, framing: Framing, head: Head = "causal") -> tuple[Any, Encoder]:
    import torch

    tokenizer = load_tokenizer(name, framing.pad_token)
    encoder = Encoder(tokenizer, framing.format, name)
    model = load_model(name, head, tokenizer=tokenizer)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), encoder
