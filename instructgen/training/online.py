"""GRPO, RLOO and PPO: prompts to tokens, rewards of sampled answers, and the trainer of each.

GRPO (Shao et al. 2024) and RLOO (Ahmadian et al. 2024) compare the answers to a prompt with
each other, by TRL; PPO is ours (`ppo`).
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
from instructgen.training.rewards import rewards_of, tasks_of
from instructgen.training.rollouts import vllm_sampler
from instructgen.training.rows import Excluded, Rows
from instructgen.training.trainer import Job, Prepared, arguments, batches, ready

# (completions, indices of their rows) -> a reward each, None where none can be told.
RewardFunction = Callable[[list[str], list[int]], list[float | None]]


@dataclass(frozen=True)
class Tasks:
    """Prompts to answer, as tokens, and the rewards of their answers.

    ``unseen`` are held-out tasks and ``asked`` their prompts: tokens, so that every model is
    asked in the format that was trained.
    """

    usable: list[Sample]
    prompts: list[str]
    probes: list[list[int]]
    unseen: list[Sample]
    asked: list[tuple[int, ...]]
    rewards: list[Any]
    weights: Mapping[str, float]

    def weighted(self, tasks: Sequence[Sample], answers: Sequence[str]) -> list[float]:
        """The weighted sum of the rewards of each answer; 0 where none can be told."""
        total = [0.0] * len(tasks)
        for one in self.rewards:
            weight = self.weights.get(one.name, 1.0)
            for i, value in enumerate(one.score(tasks, answers)):
                total[i] += weight * (value or 0.0)
        return total

    def of(self, reward: Any) -> RewardFunction:
        """A reward as a trainer calls it: answers, and the numbers of their prompts."""

        def scored(answers: list[str], at: list[int]) -> list[float | None]:
            found: list[float | None] = reward.score([self.usable[i] for i in at], answers)
            return found

        return scored


def prepare_tasks(
    rows: Rows, encoder: Encoder, options: OnlineOptions, left_out: Excluded, reward: Sequence[str]
) -> Tasks:
    """The rows as tasks whose answers can be rewarded, within the length.

    Raises:
        ConfigError: a reward is not known, or a weight is of none.
    """
    rewards = rewards_of(reward)
    for name in options.reward_weights:
        if name not in (names := [r.name for r in rewards]):
            raise ConfigError(
                f"reward_weights: no reward is called {name!r}.", suggest(name, names)
            )
    tasks, others = tasks_of(rewards, rows.train, options.seed)
    for sample in others:
        left_out.add(sample, "no_reward", "no verifier can judge it")
    usable, prompts, probes = [], [], []
    for task in tasks:
        text = encoder.prompt(task)
        if not isinstance(text, str):
            left_out.add(task, text.reason, text.detail)
            continue
        ids = encoder.ids(text)
        if len(ids) + options.max_new_tokens > options.max_length:
            left_out.add(task, "too_long", f"{len(ids)} tokens and {options.max_new_tokens} new")
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


def prepare(method: Name, tasks: Tasks, options: OnlineOptions) -> Prepared:
    """What one of the three methods makes of tasks."""

    def trainer(job: Job) -> tuple[Any, int | None]:
        sampler = None
        if options.rollouts == "vllm":
            sampler = vllm_sampler(job.tokenizer, options, job.checkpoints)
        if method == "ppo":
            return PpoTrainer(job, tasks.prompts, partial(_scores, tasks), sampler), None
        named = {r.name: tasks.of(r) for r in tasks.rewards}
        return group_trainer(job, tasks.prompts, named, sampler), None

    return Prepared(
        count=len(tasks.usable), trained=tasks.usable, probes=tasks.probes, trainer=trainer
    )


def _scores(tasks: Tasks, answers: list[str], at: list[int]) -> list[float]:
    return tasks.weighted([tasks.usable[i] for i in at], answers)


def group_trainer(
    job: Job, prompts: Sequence[str], rewards: Mapping[str, RewardFunction], sampler: Any = None
) -> Any:
    """A trainer that compares the sampled answers to a prompt with each other.

    Args:
        job: what to train; its options are of `GroupOptions`.
        prompts: as the template renders them.
        rewards: by name.
        sampler: samples instead of transformers: called with the model, the step, the
            prompts' ids, the most new tokens and the temperature; gives the answers' ids.
    """
    options = job.options
    assert isinstance(options, GroupOptions)
    shared, accumulated = batches(options)
    if len(prompts) < options.batch_size:
        raise ConfigError(
            f"{len(prompts)} prompts are fewer than batch_size {options.batch_size}.",
            f"Give --batch-size {len(prompts)} or less.",
        )
    steps = options.steps or options.iterations * max(
        1, math.ceil(options.epochs * len(prompts) / options.batch_size)
    )
    every = -(-options.checkpoint_every // options.iterations) * options.iterations
    wide = {
        **arguments(job, steps, shared * options.generations, accumulated),
        # Answers that are used for several steps are not kept with a checkpoint.
        "save_steps": every,
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
    # Sampling needs the prompts in their own order at each step.
    del wide["train_sampling_strategy"]
    trainer_class, config = (_Grpo, GRPOConfig) if job.method == "grpo" else (_Rloo, RLOOConfig)
    trainer = trainer_class(
        model=job.model,
        args=config(**wide),
        train_dataset=Dataset.from_dict({"prompt": list(prompts), "row": [*range(len(prompts))]}),
        processing_class=job.tokenizer,
        reward_funcs=[_reward_function(name, f) for name, f in rewards.items()],
        peft_config=job.peft,
        callbacks=[Log(job.hooks, steps)],
    )
    trainer.sampler = sampler
    return ready(trainer)


def _reward_function(name: str, function: RewardFunction) -> Any:
    def reward(completions: list[str], row: list[int], **_: Any) -> list[float | None]:
        return function(completions, row)

    reward.__name__ = name
    return reward


class _OurPrompts:
    """Prompts are rendered already, and may be answered by an engine of ours."""

    sampler: Any = None

    def _tokenize_prompts(
        self: Any, prompts: list[str]
    ) -> tuple[list[list[int]], None, dict[str, Any]]:
        made = self.processing_class(text=prompts, add_special_tokens=False)["input_ids"]
        return made, None, {}

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


class _Grpo(_OurPrompts, GRPOTrainer):
    """TRL's GRPO on our prompts."""

    def _generate_single_turn(self, prompt_ids: list[list[int]], *rest: Any) -> Any:
        made = super()._generate_single_turn(prompt_ids, *rest)
        # TRL gives log-probabilities along; without any it computes them itself.
        return made if self.sampler is None else (made, None)


class _Rloo(_OurPrompts, RLOOTrainer):
    """TRL's RLOO on our prompts."""
