"""Evaluates a model on held-out rows before and after training, to measure the effect."""

from __future__ import annotations

from typing import Any

from instructgen.engines.transformers import TransformersEngine
from instructgen.evaluation.answers import completions, requests_for
from instructgen.evaluation.measures import (
    PromptFormat,
    bits_per_byte,
    compared,
    pair_accuracy,
    pair_margins,
    reward_margins,
    reward_measure,
)
from instructgen.schema.measures import Measure
from instructgen.training.online import Tasks
from instructgen.training.options import OnlineOptions, Trainer, TrainerOptions
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
            for ``reward``, ``dpo`` and ``kto``; the mean reward for ``grpo``, ``rloo`` and
            ``ppo``.
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
    prompt_format = PromptFormat(options.max_length, options.format, options.pad_token)
    held_out = rows.held_out
    if method == "sft":
        now, then = (bits_per_byte(model, held_out, prompt_format) for model in (after, before))
        return (compared(now, then),)
    if method == "reward":
        return (compared(pair_accuracy(reward_margins(after, held_out, prompt_format))),)
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
        answers = completions(engine, requests)
        engine.close()
        values = tasks.weighted(tasks.unseen, [c.text for c in answers])
        return reward_measure("reward", values, [t.id for t in tasks.unseen])

    return (compared(mean_reward(after), mean_reward(before)),)
