"""GRPO, RLOO and PPO: prepare prompts, reward sampled completions, and build each trainer.

GRPO (Shao et al. 2024) and RLOO (Ahmadian et al. 2024) compare the completions of one prompt
with each other and run in TRL. PPO is implemented in `ppo`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from instructgen.errors import ConfigError
from instructgen.plugins import suggest
from instructgen.schema.sample import Sample
from instructgen.training.callbacks import Log
from instructgen.training.encode import Encoder
from instructgen.training.options import GroupOptions, OnlineOptions
from instructgen.training.options import Trainer as Name
from instructgen.training.ppo import PpoTrainer
from instructgen.training.rewards import Reward, tasks_of
from instructgen.training.rollouts import vllm_sampler
from instructgen.training.rows import RejectedRows, Rows
from instructgen.training.trainer import Built, Job, Prepared, arguments, batches, ready

# (completions, row number of each task) -> one reward per completion; None if not applicable.
RewardFunction = Callable[[list[str], list[int]], list[float | None]]


@dataclass(frozen=True)
class Tasks:
    """Tasks (rows with prompts to answer) for online training, and rewards for the completions.

    Attributes:
        usable: tasks to train on.
        prompts: prompts of the tasks to train on, rendered by the chat template.
        probes: the same prompts as token ids.
        unseen: held-out tasks.
        asked: the prompts of the held-out tasks as token ids, so that every model is evaluated
            with the prompt format used in training.
        rewards: rewards that score the completions.
        weights: weight of each reward by name; a reward that is not listed has weight 1.
    """

    usable: list[Sample]
    prompts: list[str]
    probes: list[list[int]]
    unseen: list[Sample]
    asked: list[tuple[int, ...]]
    rewards: list[Any]
    weights: Mapping[str, float]

    def weighted(self, tasks: Sequence[Sample], answers: Sequence[str]) -> list[float]:
        """Return the weighted sum of rewards per answer; a reward without a score counts as 0."""
        total = [0.0] * len(tasks)
        for reward in self.rewards:
            weight = self.weights.get(reward.name, 1.0)
            for i, value in enumerate(reward.score(tasks, answers)):
                total[i] += weight * (value or 0.0)
        return total

    def of(self, reward: Any) -> RewardFunction:
        """Return the function that a trainer calls to score completions with this reward."""

        def score(completions: list[str], rows: list[int]) -> list[float | None]:
            values: list[float | None] = reward.score([self.usable[i] for i in rows], completions)
            return values

        return score


def prepare_tasks(
    rows: Rows,
    encoder: Encoder,
    options: OnlineOptions,
    rejected: RejectedRows,
    rewards: list[Reward],
) -> Tasks:
    """Turn rows into tasks that the rewards can score and that fit in the maximum length.

    Args:
        rows: rows to train on, and held-out rows.
        encoder: renders the prompts.
        options: provides the maximum lengths, the reward weights and the random seed.
        rejected: receives the rows that cannot be used, with the reasons.
        rewards: the rewards.

    Raises:
        ConfigError: ``options.reward_weights`` names an unknown reward.
    """
    for name in options.reward_weights:
        if name not in (names := [r.name for r in rewards]):
            raise ConfigError(
                f"The option reward_weights names an unknown reward, {name!r}.",
                suggest(name, names),
            )
    tasks, others = tasks_of(rewards, rows.train, options.seed)
    for sample in others:
        rejected.add(sample, "no_reward", "no verifier can check this row")
    usable, prompts, probes = [], [], []
    for task in tasks:
        text = encoder.prompt(task)
        if not isinstance(text, str):
            rejected.add(task, text.reason, text.detail)
            continue
        ids = encoder.ids(text)
        if len(ids) + options.max_new_tokens > options.max_length:
            rejected.add(
                task, "too_long", f"{len(ids)} prompt tokens + {options.max_new_tokens} new tokens"
            )
            continue
        usable.append(task)
        prompts.append(text)
        probes.append(ids)
    unseen = [
        task
        for task in tasks_of(rewards, rows.held_out, options.seed + 1)[0]
        if isinstance(text := encoder.prompt(task), str)
        and len(encoder.ids(text)) + options.max_new_tokens <= options.max_length
    ]
    asked = [tuple(encoder.ids(str(encoder.prompt(task)))) for task in unseen]
    weights = options.reward_weights
    return Tasks(usable, prompts, probes, unseen, asked, rewards, weights)


def prepare(name: Name, tasks: Tasks, options: OnlineOptions) -> Prepared:
    """Return tasks and a function that builds the trainer (``grpo``, ``rloo`` or ``ppo``)."""

    def build(job: Job) -> Built:
        sampler = None
        if options.rollouts == "vllm":
            sampler = vllm_sampler(job.tokenizer, options, job.checkpoints)
        if name == "ppo":
            trainer = PpoTrainer(job, tasks.prompts, partial(_scores, tasks), sampler)
            return Built(trainer, trainer.rows)
        rewards = {r.name: tasks.of(r) for r in tasks.rewards}
        return group_trainer(job, tasks.prompts, rewards, sampler)

    return Prepared(
        count=len(tasks.usable), trained=tasks.usable, probes=tasks.probes, trainer=build
    )


def _scores(tasks: Tasks, completions: list[str], rows: list[int]) -> list[float]:
    return tasks.weighted([tasks.usable[i] for i in rows], completions)


def group_trainer(
    job: Job, prompts: Sequence[str], rewards: Mapping[str, RewardFunction], sampler: Any = None
) -> Built:
    """Return a GRPO or RLOO trainer, which compares the completions of a prompt with each other.

    Args:
        job: model and settings; its options must be `GroupOptions`.
        prompts: prompts, rendered by the chat template.
        rewards: reward functions by name.
        sampler: function that samples the completions (see `rollouts.Sampler`); None for TRL's own
            sampling.

    Raises:
        ConfigError: there are fewer prompts than ``batch_size``.
    """
    options = job.options
    assert isinstance(options, GroupOptions)
    shared, accumulated = batches(options)
    if len(prompts) < options.batch_size:
        raise ConfigError(
            f"The batch size is {options.batch_size}, but there are only {len(prompts)} prompts.",
            f"Pass --batch-size={len(prompts)} or less.",
        )
    steps = options.steps or options.iterations * max(
        1, math.ceil(options.epochs * len(prompts) / options.batch_size)
    )
    save_steps = -(-options.checkpoint_every // options.iterations) * options.iterations
    settings = {
        **arguments(job, steps, shared * options.generations, accumulated),
        # A checkpoint does not include the current completions, so save only where new ones start.
        "save_steps": save_steps,
        "num_generations": options.generations,
        "max_completion_length": options.max_new_tokens,
        "temperature": options.temperature,
        "beta": options.beta,
        "num_iterations": options.iterations,
        "reward_weights": [options.reward_weights.get(name, 1.0) for name in rewards],
        "shuffle_dataset": True,
        "remove_unused_columns": False,
        "use_vllm": options.rollouts == "vllm" and sampler is None,
        "vllm_mode": "colocate",
    }
    # TRL uses its own sampler here, which repeats each prompt for its group.
    del settings["train_sampling_strategy"]
    trainer_class, config = (_Grpo, GRPOConfig) if job.trainer == "grpo" else (_Rloo, RLOOConfig)
    trainer = trainer_class(
        model=job.model,
        args=config(**settings),
        train_dataset=Dataset.from_dict({"prompt": list(prompts), "row": [*range(len(prompts))]}),
        processing_class=job.tokenizer,
        reward_funcs=[_reward_function(name, f) for name, f in rewards.items()],
        peft_config=job.peft,
        callbacks=[Log(job.hooks, steps)],
    )
    trainer.sampler = sampler
    # TRL shuffles the prompts once per epoch, so an epoch uses each prompt once.
    used = -(-steps // options.iterations) * options.batch_size
    return Built(ready(trainer), min(len(prompts), used))


def _reward_function(name: str, function: RewardFunction) -> Any:
    def reward(completions: list[str], row: list[int], **_: Any) -> list[float | None]:
        return function(completions, row)

    reward.__name__ = name
    return reward


class _RenderedPrompts:
    """Mix-in for TRL trainers: takes rendered prompts; samples with ``sampler`` if it is set."""

    sampler: Any = None

    def _tokenize_prompts(
        self: Any, prompts: list[str]
    ) -> tuple[list[list[int]], None, dict[str, Any]]:
        ids = self.processing_class(text=prompts, add_special_tokens=False)["input_ids"]
        return ids, None, {}

    def _generate_single_turn(self: Any, prompt_ids: list[list[int]], *rest: Any) -> Any:
        if self.sampler is None:
            return super()._generate_single_turn(prompt_ids, *rest)  # type: ignore[misc]
        return self.sampler(
            self.accelerator.unwrap_model(self.model),
            self.state.global_step,
            prompt_ids,
            self.args.max_completion_length,
            self.args.temperature,
        )


class _Grpo(_RenderedPrompts, GRPOTrainer):
    """TRL's GRPO trainer for prompts that are already rendered."""

    def _generate_single_turn(self, prompt_ids: list[list[int]], *rest: Any) -> Any:
        completions = super()._generate_single_turn(prompt_ids, *rest)
        # TRL expects log-probabilities too, and computes them itself if they are None.
        return completions if self.sampler is None else (completions, None)


class _Rloo(_RenderedPrompts, RLOOTrainer):
    """TRL's RLOO trainer for prompts that are already rendered."""
