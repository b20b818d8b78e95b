"""Rewards: what a reward model or verifiers say of an answer.

Named on the command line as ``verifiers:ifeval,math`` or by a reward model's folder.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from instructgen.errors import ConfigError
from instructgen.models.loading import check_reward_model, load_model, load_tokenizer
from instructgen.plugins import classes, find
from instructgen.schema.sample import Sample
from instructgen.training.encode import Encoder, Unusable
from instructgen.verifiers import Verifier

_VERIFIERS = "verifiers:"
_TOKENS_AT_ONCE = 2_048


class Reward(Protocol):
    """Scores answers to tasks."""

    @property
    def name(self) -> str:
        """What it is called in logs and weights."""

    def score(self, tasks: Sequence[Sample], answers: Sequence[str]) -> Sequence[float | None]:
        """A number per answer; None where this reward does not know."""


@dataclass(frozen=True)
class VerifierReward:
    """A verifier's judgement, of the tasks that it can judge."""

    verifier: Verifier

    @property
    def name(self) -> str:
        """The verifier's."""
        return self.verifier.name

    def score(self, tasks: Sequence[Sample], answers: Sequence[str]) -> list[float | None]:
        """From 0 to 1; of tasks that are ready as they are."""
        rng = random.Random(0)
        return [
            self.verifier.judge(task, answer) if self.verifier.task(task, rng) is task else None
            for task, answer in zip(tasks, answers, strict=True)
        ]


def verifiers_in(specs: Sequence[str]) -> list[type[Verifier]]:
    """The classes of the verifiers that are named, as in ``verifiers:ifeval,math``."""
    known = classes("verifiers")
    return [known[name] for spec in specs for name in _names(spec) if name in known]


def _names(spec: str) -> list[str]:
    """The verifiers that a reward names; none where it names a model."""
    if not spec.startswith(_VERIFIERS):
        return []
    return [n for name in spec.removeprefix(_VERIFIERS).split(",") if (n := name.strip())]


class RewardModel:
    """A trained reward model.

    Args:
        folder: its folder or Hub name.

    Raises:
        ConfigError: it cannot be loaded, or is no reward model.
    """

    name = "reward_model"

    def __init__(self, folder: str) -> None:
        import torch

        check_reward_model(folder)
        self.tokenizer = load_tokenizer(folder)
        self.encoder = Encoder(self.tokenizer, name=folder)
        self.model: Any = load_model(folder, "reward", tokenizer=self.tokenizer)
        self.model.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def score(self, tasks: Sequence[Sample], answers: Sequence[str]) -> list[float]:
        """The model's number for each.

        An answer that it cannot read, an empty one or one with forged turns, is worth less
        than the worst of those that it is given with: silence must not pay.
        """
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        rows = [self.encoder.encode(t, a) for t, a in zip(tasks, answers, strict=True)]
        ids = [None if isinstance(r, Unusable) else r.ids[:most] for r in rows]
        found = score_ids(self.model, ids, self.tokenizer.pad_token_id)
        worst = min((v for v in found if v is not None), default=0.0)
        return [worst - 1.0 if v is None else v for v in found]


def score_ids(model: Any, rows: Sequence[list[int] | None], pad: int) -> list[float | None]:
    """A reward model's number for each row of tokens."""
    import torch

    found: list[float | None] = [None] * len(rows)
    known = [(i, row) for i, row in enumerate(rows) if row]
    known.sort(key=lambda pair: len(pair[1]))
    batch: list[tuple[int, list[int]]] = []
    device = next(model.parameters()).device
    while known or batch:
        if known and (len(batch) + 1) * len(known[0][1]) <= max(_TOKENS_AT_ONCE, len(known[0][1])):
            batch.append(known.pop(0))
            continue
        width = len(batch[-1][1])
        ids = torch.full((len(batch), width), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for at, (_, row) in enumerate(batch):
            ids[at, : len(row)] = torch.tensor(row)
            mask[at, : len(row)] = 1
        with torch.inference_mode():
            scores = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        for (i, _), value in zip(batch, scores[:, 0].float().tolist(), strict=True):
            found[i] = float(value)
        batch = []
    return found


def rewards_of(specs: Sequence[str]) -> list[Reward]:
    """The rewards that these name.

    Args:
        specs: each ``verifiers:NAME,NAME``, or a reward model's folder or Hub name.

    Raises:
        ConfigError: one is not known.
    """
    found: list[Reward] = []
    for spec in specs:
        if spec.startswith(_VERIFIERS):
            found.extend(VerifierReward(find("verifiers", name)()) for name in _names(spec))
        else:
            found.append(RewardModel(spec))
    if not found:
        raise ConfigError(
            "There is no reward.", "Give --reward models/rm, or --reward verifiers:ifeval,math."
        )
    names = [r.name for r in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"A reward is given twice: {', '.join(names)}.", "Give each once.")
    return found


def tasks_of(
    rewards: Sequence[Reward], samples: Sequence[Sample], seed: int, *, models: bool | None = None
) -> tuple[list[Sample], list[Sample]]:
    """The rows as tasks that every verifier that can has prepared, and the rows left over.

    A row is prepared by the first verifier that judges it by what it holds already,
    and is left over where no verifier can judge it and no model does. ``models`` says
    whether one does; without it, whether there is one among the rewards.
    """
    verifiers = [r.verifier for r in rewards if isinstance(r, VerifierReward)]
    whole = len(verifiers) < len(rewards) if models is None else models
    tasks, others = [], []
    for number, sample in enumerate(samples):
        rng = random.Random(f"{seed} {number}")
        made = [task for v in verifiers if (task := v.task(sample, rng)) is not None]
        if not made and not whole:
            others.append(sample)
        else:
            # Of several, one that changes the row: its words ask for what it judges.
            tasks.append(next((t for t in made if t is not sample), sample))
    return tasks, others
