"""Evaluates a model on held-out rows before and after training, to measure the effect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from instructgen.engines.transformers import TransformersEngine
from instructgen.evaluation.answers import requests_for
from instructgen.evaluation.measures import (
    answer_bits,
    bits_per_byte,
    compared,
    pair_accuracy,
    pair_margins,
    reward_margins,
    reward_measure,
)
from instructgen.generation.sequencer import answer_all
from instructgen.schema.measures import Measure
from instructgen.schema.sample import Sample
from instructgen.training.online import Tasks
from instructgen.training.options import OnlineOptions, PromptFormat, Trainer, TrainerOptions
from instructgen.training.rows import Rows


def before_after(
    method: Trainer,
    options: TrainerOptions,
    rows: Rows,
    tasks: Tasks | None,
    before: str,
    after: str,
) -> tuple[Measure, ...]:
    """Return the measures before and after training, or () if ``tasks`` has no held-out tasks.

    Args:
        method: the trainer, which determines the measure: bits per byte for ``sft``; pair accuracy
            for ``reward``, ``dpo`` and ``kto``, or the accuracy of the labels for feedback rows;
            the mean reward for ``grpo``, ``rloo`` and ``ppo``.
        options: the training options, including the maximum length and the prompt format.
        rows: the rows of the training run; only the held-out rows are used.
        tasks: for grpo, rloo and ppo, prompts and their rewards, of which only the held-out
            prompts are used; None for the other trainers.
        before: folder or name of the base model.
        after: folder of the trained model.
    """
    if tasks is not None:
        assert isinstance(options, OnlineOptions)
        return _rewards(options, tasks, before, after)
    prompt_format = options.prompt_format()
    held_out = rows.held_out
    if method == "sft":
        now, then = (bits_per_byte(model, held_out, prompt_format) for model in (after, before))
        return (compared(now, then),)
    if method == "reward":
        return (compared(pair_accuracy(reward_margins(after, held_out, prompt_format))),)
    if rows.held_out and rows.held_out[0].label is not None:
        return (_label_accuracy(held_out, before, after, prompt_format),)
    before_margins = pair_margins(before, held_out, prompt_format)
    after_margins = pair_margins(after, held_out, prompt_format)
    per_token = compared(
        pair_accuracy({k: v[1] for k, v in after_margins.items()}),
        pair_accuracy({k: v[1] for k, v in before_margins.items()}),
    )
    # DPO optimizes this: how far training moved probability from the rejected to the chosen answer.
    gains = {
        k: v[0] - before_margins[k][0] for k, v in after_margins.items() if k in before_margins
    }
    return (per_token, compared(pair_accuracy(gains, "reward_accuracy")))


def _label_accuracy(
    held_out: Sequence[Sample], before: str, after: str, prompt_format: PromptFormat
) -> Measure:
    """Return for how many answers training moved the likelihood in the direction of the label."""
    first, last = (answer_bits(model, held_out, prompt_format) for model in (before, after))
    signs = {s.id: 1.0 if s.label else -1.0 for s in held_out}
    gains = {row: signs[row] * (bits - first[row]) for row, bits in last.items() if row in first}
    return compared(pair_accuracy(gains, "label_accuracy"))


def _rewards(options: OnlineOptions, tasks: Tasks, before: str, after: str) -> tuple[Measure, ...]:
    if not tasks.unseen:
        return ()

    def mean_reward(model: str) -> Any:
        engine = TransformersEngine(model=model, max_model_len=max(256, options.max_length))
        # Sampled as in training, because the trainer raises the reward of sampled answers.
        requests = requests_for(
            tasks.asked,
            temperature=options.temperature,
            max_tokens=options.max_new_tokens,
            seed=options.seed,
        )
        answers = answer_all(engine, requests)
        values = tasks.weighted(tasks.unseen, [c.text for c in answers])
        return reward_measure("reward", values, [t.id for t in tasks.unseen])

    return (compared(mean_reward(after), mean_reward(before)),)
