"""Reward models, DPO and KTO on one page: pairs of answers to tokens, and the trainer of each.

A reward model learns that the chosen answer scores higher (Bradley-Terry); DPO (Rafailov et
al. 2023) and KTO (Ethayarajh et al. 2024) make chosen answers likelier without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from instructgen.training.options import DpoOptions, KtoOptions, RewardOptions, TrainOptions
from instructgen.training.options import Trainer as Name
from instructgen.training.rows import Excluded, Rows, encoded
from instructgen.training.trainer import Job, Prepared, arguments, plan, ready


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with a liked and a less liked answer, as tokens."""

    chosen: Encoded
    rejected: Encoded


def prepare(
    method: Name, rows: Rows, encoder: Encoder, options: TrainOptions, left_out: Excluded
) -> Prepared:
    """The rows as pairs of a chosen and a rejected answer, both within the length."""
    chosen = {
        s.id: (s, row) for s, row in encoded(rows.train, encoder, options.max_length, left_out)
    }
    rejected = encoded(
        [s for s, _ in chosen.values()],
        encoder,
        options.max_length,
        left_out,
        answer=lambda s: s.rejected_output or "",
    )
    pairs = [Pair(chosen[s.id][1], row) for s, row in rejected]
    make = {"reward": reward_trainer, "dpo": dpo_trainer, "kto": kto_trainer}[method]

    return Prepared(
        count=len(pairs),
        trained=[s for s, _ in rejected],
        probes=[p.chosen.ids for p in pairs],
        trainer=lambda job: (make(job, pairs), None),
    )


def reward_trainer(job: Job, pairs: Sequence[Pair]) -> Any:
    """A trainer of a reward model."""
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
    return _pair_trainer(RewardTrainer, job, args, rows.select(order.order), order.steps)


def dpo_trainer(job: Job, pairs: Sequence[Pair]) -> Any:
    """A trainer that makes chosen answers likelier than rejected ones."""
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
    return _pair_trainer(_Dpo, job, args, rows.select(order.order), order.steps)


def kto_trainer(job: Job, pairs: Sequence[Pair]) -> Any:
    """A trainer on single answers, good or bad; a pair gives one of each."""
    options = job.options
    assert isinstance(options, KtoOptions)
    answers = [(row, good) for p in pairs for row, good in ((p.chosen, True), (p.rejected, False))]
    order, shared, accumulated = plan(len(answers), options)
    ordered = [answers[i] for i in order.order]
    if shared < 2:
        raise ConfigError(
            "kto compares the rows of a batch with each other.",
            "Give a micro_batch_size of 2 or more.",
        )
    made = [row.answer for row, _ in ordered]
    rows = Dataset.from_dict(
        {
            "prompt_ids": [row.ids[: row.prompt] for row, _ in ordered],
            "completion_ids": made,
            # The divergence is estimated from answers to other prompts of the batch.
            "KL_completion_ids": [
                other
                for at in range(0, len(made), shared)
                for other in (lambda part: part[-1:] + part[:-1])(made[at : at + shared])
            ],
            "label": [good for _, good in ordered],
        }
    )
    args = KTOConfig(
        **arguments(job, order.steps, shared, accumulated),
        max_length=options.max_length,
        beta=options.beta,
        desirable_weight=options.desirable_weight,
        undesirable_weight=options.undesirable_weight,
    )
    return _pair_trainer(_Kto, job, args, rows, order.steps)


def _pair_trainer(kind: Any, job: Job, args: Any, rows: Dataset, steps: int) -> Any:
    trainer = kind(
        model=job.model,
        args=args,
        train_dataset=rows,
        processing_class=job.tokenizer,
        peft_config=job.peft,
        callbacks=[Log(job.hooks, steps)],
    )
    return ready(trainer)


class _OurTokens:
    """Rows are tokens already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


class _Dpo(_OurTokens, DPOTrainer):
    """TRL's DPO on our tokens."""


class _Kto(_OurTokens, KTOTrainer):
    """TRL's KTO on our tokens."""
