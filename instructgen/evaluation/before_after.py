"""What a training did: the model before and the one after, on rows that were held out."""

from __future__ import annotations

from typing import Any

from instructgen.engines.transformers import TransformersEngine
from instructgen.evaluation.answers import completions, requests_for
from instructgen.evaluation.measures import (
    Framing,
    bits_per_byte,
    compared,
    pair_accuracy,
    pair_margins,
    reward_margins,
    rewards_measured,
)
from instructgen.training.online import Tasks
from instructgen.training.options import OnlineOptions, Trainer, TrainOptions
from instructgen.training.rows import Rows


def before_after(
    method: Trainer,
    options: TrainOptions,
    rows: Rows,
    tasks: Tasks | None,
    before: str,
    after: str,
) -> dict[str, Any] | None:
    """The measure that a method is about, of both models; None where no row can be measured.

    Args:
        method: bits per byte for sft, pair accuracy for reward, dpo and kto, the reward for
            the others.
        options: the length and format that was trained.
        rows: their held-out rows are measured.
        tasks: of grpo, rloo and ppo, whose unseen tasks are answered.
        before: the model that was trained from.
        after: the model that came of it.
    """
    if tasks is not None:
        assert isinstance(options, OnlineOptions)
        return _rewards(options, tasks, before, after)
    framing = Framing(options.max_length, options.format, options.pad_token)
    held_out = rows.held_out
    if method == "sft":
        return compared(
            bits_per_byte(after, held_out, framing), bits_per_byte(before, held_out, framing)
        )
    if method == "reward":
        return compared(pair_accuracy(reward_margins(after, held_out, framing)))
    then = pair_margins(before, held_out, framing)
    now = pair_margins(after, held_out, framing)
    by_token = compared(
        pair_accuracy({k: v[1] for k, v in now.items()}),
        pair_accuracy({k: v[1] for k, v in then.items()}),
    )
    # What DPO optimises: which answer has become likelier than the other.
    gained = {k: v[0] - then[k][0] for k, v in now.items() if k in then}
    return {**by_token, "reward_accuracy": compared(pair_accuracy(gained, "reward_accuracy"))}


def _rewards(
    options: OnlineOptions, tasks: Tasks, before: str, after: str
) -> dict[str, Any] | None:
    if not tasks.unseen:
        return None

    def measured(name: str) -> Any:
        engine = TransformersEngine(model=name, max_model_len=max(256, options.max_length))
        # Sampled as in training: that is the number the method raises.
        requests = requests_for(
            tasks.asked,
            temperature=options.temperature,
            max_tokens=options.max_new_tokens,
            seed=options.seed,
        )
        made = completions(engine, requests)
        engine.close()
        values = tasks.weighted(tasks.unseen, [c.text for c in made])
        return rewards_measured("reward", values, [t.id for t in tasks.unseen])

    return compared(measured(after), measured(before))
