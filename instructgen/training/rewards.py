"""Rewards: score answers with a reward model or with verifiers.

A reward is specified as ``verifiers:NAME,NAME``, or by the folder or Hub name of a reward model.
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
# Per batch, including padding.
_MAX_TOKENS = 2_048


class Reward(Protocol):
    """Protocol for objects that score answers to tasks."""

    @property
    def name(self) -> str:
        """Name of the reward in logs and in ``reward_weights``."""

    def score(self, tasks: Sequence[Sample], answers: Sequence[str]) -> Sequence[float | None]:
        """Return one score per answer; None if the reward does not apply to the task."""


@dataclass(frozen=True)
class VerifierReward:
    """Reward from a verifier, for the tasks that the verifier can check."""

    verifier: Verifier

    @property
    def name(self) -> str:
        """Name of the verifier."""
        return self.verifier.name

    def score(self, tasks: Sequence[Sample], answers: Sequence[str]) -> list[float | None]:
        """Return a score from 0 to 1 per answer; None if the verifier cannot check the task."""
        rng = random.Random(0)
        return [
            self.verifier.check(task, answer) if self.verifier.task(task, rng) is task else None
            for task, answer in zip(tasks, answers, strict=True)
        ]


def verifiers_in(specs: Sequence[str]) -> list[type[Verifier]]:
    """Return the verifier classes for specifications such as ``verifiers:ifeval,math``."""
    known = classes("verifiers")
    return [known[name] for spec in specs for name in _verifier_names(spec) if name in known]


def _verifier_names(spec: str) -> list[str]:
    """Return the names of the verifiers in a specification; [] if it names a reward model."""
    if not spec.startswith(_VERIFIERS):
        return []
    return [n for name in spec.removeprefix(_VERIFIERS).split(",") if (n := name.strip())]


class RewardModel:
    """Reward from a trained reward model.

    Args:
        folder: folder or Hub name of the model.

    Raises:
        ConfigError: the model cannot be loaded, or is not a reward model.
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
        """Return the model's score for each answer.

        An answer that cannot be encoded, because it is empty or contains special tokens, gets
        the lowest score of all answers minus 1, so that all other answers score higher.
        """
        return unscored_last(self.scores(tasks, answers))

    def scores(self, tasks: Sequence[Sample], answers: Sequence[str]) -> list[float | None]:
        """Return the model's score for each answer, or None if it cannot be encoded."""
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        rows = [self.encoder.encode(t, a) for t, a in zip(tasks, answers, strict=True)]
        ids = [None if isinstance(r, Unusable) else r.ids[:most] for r in rows]
        return score_ids(self.model, ids, self.tokenizer.pad_token_id)


def unscored_last(scores: Sequence[float | None]) -> list[float]:
    """Return the scores, with the lowest score minus 1 in place of None."""
    worst = min((v for v in scores if v is not None), default=0.0)
    return [worst - 1.0 if v is None else v for v in scores]


def score_ids(model: Any, rows: Sequence[list[int] | None], pad: int) -> list[float | None]:
    """Return a reward model's score for each row of token ids; None for missing or empty rows."""
    import torch

    scores: list[float | None] = [None] * len(rows)
    queue = [(i, row) for i, row in enumerate(rows) if row]
    queue.sort(key=lambda pair: len(pair[1]))
    batch: list[tuple[int, list[int]]] = []
    device = next(model.parameters()).device
    while queue or batch:
        if queue and (len(batch) + 1) * len(queue[0][1]) <= max(_MAX_TOKENS, len(queue[0][1])):
            batch.append(queue.pop(0))
            continue
        width = len(batch[-1][1])
        ids = torch.full((len(batch), width), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for at, (_, row) in enumerate(batch):
            ids[at, : len(row)] = torch.tensor(row)
            mask[at, : len(row)] = 1
        with torch.inference_mode():
            logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        for (i, _), value in zip(batch, logits[:, 0].float().tolist(), strict=True):
            scores[i] = float(value)
        batch = []
    return scores


def verifiers_of(specs: Sequence[str], *, unsafe: bool = False) -> list[Verifier]:
    """Return the verifiers in specifications such as ``verifiers:ifeval,math``.

    Args:
        specs: the specifications.
        unsafe: whether code that a model wrote may run without a sandbox.

    Raises:
        ConfigError: a verifier is unknown or cannot work on this machine.
    """
    verifiers = []
    for spec in specs:
        for name in _verifier_names(spec):
            kind = find("verifiers", name)
            verifiers.append(kind(unsafe=True) if unsafe and name == "code" else kind())
            verifiers[-1].require()
    return verifiers


def rewards_of(specs: Sequence[str], *, unsafe: bool = False) -> list[Reward]:
    """Load the specified rewards.

    Args:
        specs: specifications, each either ``verifiers:NAME,NAME`` or the folder or Hub name of a
            reward model.
        unsafe: whether code that a model wrote may run without a sandbox.

    Raises:
        ConfigError: a verifier is unknown or cannot work on this machine, a model cannot be
            loaded, no reward is specified, or a reward is listed more than once.
    """
    rewards: list[Reward] = []
    for spec in specs:
        if spec.startswith(_VERIFIERS):
            rewards.extend(map(VerifierReward, verifiers_of([spec], unsafe=unsafe)))
        else:
            rewards.append(RewardModel(spec))
    if not rewards:
        raise ConfigError(
            "No reward is specified.", "Pass --reward=models/rm or --reward=verifiers:ifeval,math."
        )
    names = [r.name for r in rewards]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"A reward is listed more than once: {', '.join(names)}.", "List each reward once."
        )
    return rewards


def tasks_of(
    rewards: Sequence[Reward], samples: Sequence[Sample], seed: int, *, models: bool | None = None
) -> tuple[list[Sample], list[Sample]]:
    """Return the rows as tasks, and separately the rows that no reward can score.

    Args:
        rewards: rewards that will score the answers.
        samples: rows to turn into tasks.
        seed: random seed for choices in the tasks, such as the constraint that is added to a row.
        models: whether a reward model also scores the answers; None to check whether ``rewards``
            contains a reward model. A reward model can score the answers to every row, a
            verifier only those to some rows.
    """
    verifiers = [r.verifier for r in rewards if isinstance(r, VerifierReward)]
    has_model = len(verifiers) < len(rewards) if models is None else models
    tasks, others = [], []
    for number, sample in enumerate(samples):
        rng = random.Random(f"{seed} {number}")
        prepared = [task for v in verifiers if (task := v.task(sample, rng)) is not None]
        if not prepared and not has_model:
            others.append(sample)
        else:
            # Prefer a task whose verifier changed the row: its instruction states the requirement.
            tasks.append(next((t for t in prepared if t is not sample), sample))
    return tasks, others
