"""Reward models, DPO and KTO: turn preference pairs into tokens, and build each trainer.

A reward model learns to score the chosen answer higher than the rejected one (Bradley-Terry). DPO
(Rafailov et al. 2023) and KTO (Ethayarajh et al. 2024) make chosen answers more likely without a
reward model. TRL computes the losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset
from trl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
)

from instructgen.errors import ConfigError
from instructgen.training.callbacks import Log
from instructgen.training.encode import Encoded, Encoder
from instructgen.training.options import DpoOptions, KtoOptions, RewardOptions, TrainerOptions
from instructgen.training.options import Trainer as Name
from instructgen.training.rows import RejectedRows, Rows, encoded
from instructgen.training.schedule import Schedule
from instructgen.training.trainer import Built, Job, Prepared, arguments, plan, ready


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference pair as tokens: the prompt with the chosen and with the rejected answer."""

    chosen: Encoded
    rejected: Encoded


@dataclass(frozen=True, slots=True)
class Answer:
    """A row as tokens, whether its answer is good, and the number of the row that it comes from."""

    row: Encoded
    good: bool
    number: int


def prepare(
    trainer: Name, rows: Rows, encoder: Encoder, options: TrainerOptions, rejected: RejectedRows
) -> Prepared:
    """Encode each row as a pair of a chosen and a rejected answer, or as one answer for feedback.

    Rows that cannot be used or exceed the maximum length are added to ``rejected``.
    """
    accepted = encoded(rows.train, encoder, options.max_length, rejected)
    if trainer == "kto" and any(s.label is not None for s in rows.train):
        answers = [Answer(row, s.label is True, i) for i, (s, row) in enumerate(accepted)]
        return Prepared(
            count=len(answers),
            trained=[s for s, _ in accepted],
            probes=[a.row.ids for a in answers],
            trainer=lambda job: kto_trainer(job, answers),
        )
    chosen = {s.id: (s, row) for s, row in accepted}
    both = encoded(
        [s for s, _ in chosen.values()],
        encoder,
        options.max_length,
        rejected,
        answer=lambda s: s.rejected_answer,
    )
    pairs = [Pair(chosen[s.id][1], row) for s, row in both]
    answers = [
        Answer(row, good, i)
        for i, p in enumerate(pairs)
        for row, good in ((p.chosen, True), (p.rejected, False))
    ]

    def build(job: Job) -> Built:
        if trainer == "kto":
            return kto_trainer(job, answers)
        return {"reward": reward_trainer, "dpo": dpo_trainer}[trainer](job, pairs)

    return Prepared(
        count=len(pairs),
        trained=[s for s, _ in both],
        probes=[p.chosen.ids for p in pairs],
        trainer=build,
    )


def reward_trainer(job: Job, pairs: Sequence[Pair]) -> Built:
    """Return a trainer for a reward model, which learns to score chosen answers higher."""
    options = job.options
    assert isinstance(options, RewardOptions)
    rows = Dataset.from_dict(
        {
            "chosen_ids": [p.chosen.ids for p in pairs],
            "rejected_ids": [p.rejected.ids for p in pairs],
        }
    )
    order, shared, accumulated = plan(len(rows), options)
    args = RewardConfig(
        **arguments(job, order.steps, shared, accumulated),
        max_length=options.max_length,
        center_rewards_coefficient=options.center or None,
    )
    return _pair_trainer(RewardTrainer, job, args, rows.select(order.order), order)


def dpo_trainer(job: Job, pairs: Sequence[Pair]) -> Built:
    """Return a DPO trainer, which makes chosen answers more likely than rejected ones."""
    options = job.options
    assert isinstance(options, DpoOptions)
    rows = Dataset.from_dict(
        {
            "prompt_ids": [p.chosen.ids[: p.chosen.prompt] for p in pairs],
            "chosen_ids": [p.chosen.answer for p in pairs],
            "rejected_ids": [p.rejected.answer for p in pairs],
        }
    )
    order, shared, accumulated = plan(len(rows), options)
    both = options.sft_weight > 0
    args = DPOConfig(
        **arguments(job, order.steps, shared, accumulated),
        max_length=options.max_length,
        beta=options.beta,
        loss_type=[options.loss, "sft"] if both else [options.loss],
        loss_weights=[1.0, options.sft_weight] if both else None,
    )
    return _pair_trainer(_Dpo, job, args, rows.select(order.order), order)


def kto_trainer(job: Job, examples: Sequence[Answer]) -> Built:
    """Return a KTO trainer, which makes good answers more likely and bad ones less likely.

    Raises:
        ConfigError: a micro-batch has only one example.
    """
    options = job.options
    assert isinstance(options, KtoOptions)
    order, shared, accumulated = plan(len(examples), options)
    ordered = [examples[i] for i in order.order]
    if shared < 2:
        raise ConfigError(
            "The trainer kto compares rows with each other: a micro-batch needs at least 2 rows.",
            "Set the option micro_batch_size to 2 or more, and batch_size to a multiple of that.",
        )
    answers = [example.row.answer for example in ordered]
    rows = Dataset.from_dict(
        {
            "prompt_ids": [e.row.ids[: e.row.prompt] for e in ordered],
            "completion_ids": answers,
            # KTO estimates the KL divergence from the answers to other prompts of the batch.
            "KL_completion_ids": [
                other
                for at in range(0, len(answers), shared)
                for other in (lambda part: part[-1:] + part[:-1])(answers[at : at + shared])
            ],
            "label": [example.good for example in ordered],
        }
    )
    args = KTOConfig(
        **arguments(job, order.steps, shared, accumulated),
        max_length=options.max_length,
        beta=options.beta,
        desirable_weight=options.desirable_weight,
        undesirable_weight=options.undesirable_weight,
    )
    # The two answers of a pair are one row.
    used = {example.number for example in ordered}
    return replace(_pair_trainer(_Kto, job, args, rows, order), rows=len(used))


def _pair_trainer(kind: Any, job: Job, args: Any, rows: Dataset, order: Schedule) -> Built:
    trainer = kind(
        model=job.model,
        args=args,
        train_dataset=rows,
        processing_class=job.tokenizer,
        peft_config=job.peft,
        callbacks=[Log(job.hooks, order.steps)],
    )
    return Built(ready(trainer), len(set(order.order)))


class _Tokenized:
    """Base class of trainers that skip TRL's dataset preparation; rows are already tokenized."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


class _Dpo(_Tokenized, DPOTrainer):
    """TRL's DPO trainer for rows that are already tokenized."""


class _Kto(_Tokenized, KTOTrainer):
    """TRL's KTO trainer for rows that are already tokenized."""
