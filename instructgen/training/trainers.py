"""The one place that knows TRL: our options and tokens in, one of its stable trainers out.

`tests/test_trainers.py` names every argument of TRL that is used here. Three
private methods are overridden, so that all trainers see the same tokens:
`_prepare_dataset`, `_tokenize_prompts`, `_generate_single_turn`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
    pack_dataset,
)
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from instructgen.errors import ConfigError, TrainingError
from instructgen.store import step_of
from instructgen.training.encode import IGNORED, Encoded
from instructgen.training.options import (
    DpoOptions,
    GroupOptions,
    KtoOptions,
    Method,
    RewardOptions,
    SftOptions,
    TrainOptions,
)
from instructgen.training.schedule import Schedule, micro_batch, schedule, schedule_tokens

# (completions, indices of their rows) -> a reward each, None where none can be told.
RewardFunction = Callable[[list[str], list[int]], list[float | None]]


@dataclass(slots=True)
class Progress:
    """What a training run has done so far, for whoever watches it."""

    steps: int
    step: int = 0
    began_at: int = 0
    started: float = field(default_factory=time.monotonic)
    tokens: int = 0
    entry: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Since training began or went on."""
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float | None:
        """At the pace so far; None before the first step."""
        done = self.step - self.began_at
        return self.seconds / done * (self.steps - self.step) if done else None

    @property
    def tokens_per_s(self) -> float:
        """Tokens read per second."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Hooks:
    """What a trainer calls while it works.

    ``log`` takes an entry of numbers, ``saved`` the step of a checkpoint that was
    written, ``progress`` the state after each step.
    """

    log: Callable[[dict[str, Any]], None]
    saved: Callable[[int], None]
    progress: Callable[[Progress], None]


@dataclass(frozen=True)
class Job:
    """What to train: the model, its options, and where files go."""

    method: Method
    options: TrainOptions
    model: Any
    tokenizer: Any
    checkpoints: Path
    tensorboard: Path
    peft: Any
    hooks: Hooks


# -- supervised ---------------------------------------------------------------------------


def sft_trainer(job: Job, rows: Sequence[Encoded], weights: Sequence[float]) -> tuple[Any, int]:
    """A trainer of answers, and the supervised tokens it will train on.

    Args:
        job: what to train; its options are of `SftOptions`.
        rows: tokens with marks.
        weights: one per row; their mean over tokens is made 1.
    """
    options = job.options
    assert isinstance(options, SftOptions)
    sequences = _sequences(rows, weights, options)
    tokens = [sum(label != IGNORED for label in labels) for labels in sequences["labels"]]
    sizes = [len(labels) for labels in sequences["labels"]]
    plan = (
        schedule(
            len(tokens),
            options.batch_size,
            options.seed,
            epochs=options.epochs,
            steps=options.steps,
        )
        if options.tokens is None
        else schedule_tokens(tokens, options.tokens, options.batch_size, options.seed)
    )
    data = sequences.select(plan.order)
    counts = [tokens[i] for i in plan.order]
    if plan.last is not None and plan.last < counts[-1]:
        cut = _cut(data[len(data) - 1], plan.last)
        data, counts[-1] = _with(data.select(range(len(data) - 1)), [cut]), plan.last
    if processes() > 1 and (missing := -len(data) % options.batch_size):
        # Accelerate fills the last step with rows of the first; these teach nothing.
        data = _with(data, [_cut(data[0], 0)] * missing)
    # Packed rows of a micro-batch become one row, whose attention is quadratic.
    shared, accumulated = _batches(options, most=1 if options.packing else 4)
    args = SFTConfig(
        **_common(job, plan.steps, shared, accumulated),
        max_length=options.max_length,
        packing=options.packing,
        completion_only_loss=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        shuffle_dataset=False,
        remove_unused_columns=False,
    )
    supervised, read = (
        [sum(some[at : at + options.batch_size]) for at in range(0, len(some), options.batch_size)]
        for some in (counts, [sizes[i] for i in plan.order])
    )
    trainer = _Sft(
        model=job.model,
        args=args,
        train_dataset=data,
        processing_class=job.tokenizer,
        peft_config=job.peft,
        callbacks=[_Watch(job.hooks, plan.steps, supervised, read)],
    )
    # TRL takes no collator of ours together with packing, but uses the one it holds.
    trainer.data_collator = _Collator(
        pad_token_id=job.tokenizer.pad_token_id, padding_free=options.packing
    )
    return _ready(trainer), sum(counts)


def _sequences(rows: Sequence[Encoded], weights: Sequence[float], options: SftOptions) -> Dataset:
    columns: dict[str, list[Any]] = {
        "input_ids": [row.ids for row in rows],
        "labels": [row.labels for row in rows],
    }
    if not any(weights):
        raise ConfigError("every row has the weight 0.", "Mend weights or weight_score.")
    if len(set(weights)) > 1:
        counts = [sum(row.trained) for row in rows]
        mean = sum(w * n for w, n in zip(weights, counts, strict=True)) / max(1, sum(counts))
        columns["weights"] = [
            [w / mean] * len(row.ids) for w, row in zip(weights, rows, strict=True)
        ]
    data = Dataset.from_dict(columns)
    return pack_dataset(data, options.max_length, "bfd") if options.packing else data


def _cut(sequence: dict[str, Any], tokens: int) -> dict[str, Any]:
    """A sequence of which only the first supervised tokens count."""
    labels, left = [], tokens
    for label in sequence["labels"]:
        counts = label != IGNORED and left > 0
        left -= counts
        labels.append(label if counts else IGNORED)
    return {**sequence, "labels": labels}


def _with(data: Dataset, rows: list[dict[str, Any]]) -> Dataset:
    from datasets import concatenate_datasets

    return concatenate_datasets([data, Dataset.from_list(rows, features=data.features)])


class _Collator(DataCollatorForLanguageModeling):
    """TRL's, with a weight per token where rows have one."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super().torch_call(examples)
        if "weights" in examples[0]:
            parts = [torch.tensor(e["weights"], dtype=torch.float32) for e in examples]
            if self.padding_free:
                output["weights"] = torch.cat(parts)[None]
            else:
                output["weights"] = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
        return output


class _Sft(SFTTrainer):
    """TRL's, with weights per token and a loss that does not forget them."""

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        weights = inputs.pop("weights", None)
        if weights is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        made = model(**inputs, use_cache=False, fused_lm_head=True)
        count = made.label_mask.sum() if num_items_in_batch is None else num_items_in_batch
        # Logits at t tell of the token at t + 1.
        loss = -(made.log_probs * weights[:, 1:]).sum() / count
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return (loss, made) if return_outputs else loss


# -- preferences --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with a liked and a less liked answer, as tokens."""

    chosen: Encoded
    rejected: Encoded


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
    plan, shared, accumulated = _plan(len(rows), options)
    args = RewardConfig(
        **_common(job, plan.steps, shared, accumulated),
        max_length=options.max_length,
        center_rewards_coefficient=options.center or None,
    )
    return _pair_trainer(RewardTrainer, job, args, rows.select(plan.order), plan.steps)


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
    plan, shared, accumulated = _plan(len(rows), options)
    both = options.sft_weight > 0
    args = DPOConfig(
        **_common(job, plan.steps, shared, accumulated),
        max_length=options.max_length,
        beta=options.beta,
        loss_type=[options.loss, "sft"] if both else [options.loss],
        loss_weights=[1.0, options.sft_weight] if both else None,
    )
    return _pair_trainer(_Dpo, job, args, rows.select(plan.order), plan.steps)


def kto_trainer(job: Job, pairs: Sequence[Pair]) -> Any:
    """A trainer on single answers, good or bad; a pair gives one of each."""
    options = job.options
    assert isinstance(options, KtoOptions)
    answers = [(row, good) for p in pairs for row, good in ((p.chosen, True), (p.rejected, False))]
    plan, shared, accumulated = _plan(len(answers), options)
    ordered = [answers[i] for i in plan.order]
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
        **_common(job, plan.steps, shared, accumulated),
        max_length=options.max_length,
        beta=options.beta,
        desirable_weight=options.desirable_weight,
        undesirable_weight=options.undesirable_weight,
    )
    return _pair_trainer(_Kto, job, args, rows, plan.steps)


def _pair_trainer(kind: Any, job: Job, args: Any, rows: Dataset, steps: int) -> Any:
    trainer = kind(
        model=job.model,
        args=args,
        train_dataset=rows,
        processing_class=job.tokenizer,
        peft_config=job.peft,
        callbacks=[_Watch(job.hooks, steps)],
    )
    return _ready(trainer)


class _OurTokens:
    """Rows are tokens already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


class _Dpo(_OurTokens, DPOTrainer):
    """TRL's DPO on our tokens."""


class _Kto(_OurTokens, KTOTrainer):
    """TRL's KTO on our tokens."""


# -- sampled answers ----------------------------------------------------------------------


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
    shared, accumulated = _batches(options)
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
        **_common(job, steps, shared * options.generations, accumulated),
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
        callbacks=[_Watch(job.hooks, steps)],
    )
    trainer.sampler = sampler
    return _ready(trainer)


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


def fit(trainer: Any, checkpoint: Path | None) -> None:
    """Train to the end, from a checkpoint where there is one."""
    step = 0 if checkpoint is None else step_of(checkpoint)
    if isinstance(trainer, Trainer) and step >= trainer.args.max_steps:
        # Transformers looks whether it is done only after a step: one too many.
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state.global_step = step
    else:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def trainer_shards(trainer: Any) -> bool:
    """Whether no process holds the whole model."""
    return bool(
        getattr(trainer, "is_fsdp_enabled", False)
        or getattr(trainer, "is_deepspeed_enabled", False)
    )


# -- common -------------------------------------------------------------------------------


def processes() -> int:
    """How many processes train together: set by accelerate's launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes files."""
    return int(os.environ.get("RANK", "0")) == 0


def _plan(count: int, options: TrainOptions) -> tuple[Schedule, int, int]:
    plan = schedule(
        count,
        options.batch_size,
        options.seed,
        epochs=options.epochs,
        steps=options.steps,
        whole=processes() > 1,
    )
    return plan, *_batches(options)


def _batches(options: TrainOptions, most: int = 4) -> tuple[int, int]:
    try:
        return micro_batch(options.batch_size, options.micro_batch_size, processes(), most)
    except ValueError as error:
        raise ConfigError(f"{error}.", "Give another batch_size or micro_batch_size.") from error


def _common(job: Job, steps: int, shared: int, accumulated: int) -> dict[str, Any]:
    options, gpu = job.options, torch.cuda.is_available()
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(job.tensorboard)
    return {
        "output_dir": str(job.checkpoints),
        "use_cpu": not gpu,
        "bf16": gpu,
        "seed": options.seed,
        "max_steps": steps,
        "per_device_train_batch_size": shared,
        "gradient_accumulation_steps": accumulated,
        "learning_rate": options.rate(),
        "lr_scheduler_type": {"constant": "constant_with_warmup"}.get(
            options.schedule, options.schedule
        ),
        "warmup_steps": int(options.warmup * steps),
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.max_grad_norm,
        "gradient_checkpointing": options.gradient_checkpointing,
        "logging_steps": options.log_every,
        "logging_nan_inf_filter": False,
        "save_steps": options.checkpoint_every,
        # The one before stays until the newest is sealed.
        "save_total_limit": 2,
        "train_sampling_strategy": "sequential",
        "report_to": ["tensorboard"] if is_main() else [],
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,
    }


def _ready(trainer: Any) -> Any:
    trainer.remove_callback(PrinterCallback)
    inner = getattr(trainer.model, "base_model", None)
    if inner is not None and "forward" in vars(inner):
        # PEFT's LLaMA-Adapter keeps the forward that its model had before TRL gave it
        # the one that computes losses.
        inner.forward = inner.model.forward
    return trainer


def check_finite(name: str, value: float, step: int) -> None:
    """Stop a run whose numbers are none.

    Raises:
        TrainingError: it is not finite.
    """
    if not math.isfinite(value):
        raise TrainingError(
            f"The {name} is {value} at step {step}.",
            "Give a lower learning_rate, and another --out.",
        )


class _Watch(TrainerCallback):
    """Takes entries to the log, seals checkpoints, and stops on a loss that is no number."""

    def __init__(
        self,
        hooks: Hooks,
        steps: int,
        supervised: Sequence[int] | None = None,
        read: Sequence[int] | None = None,
    ) -> None:
        self._hooks = hooks
        self._progress = Progress(steps)
        self._supervised, self._read = supervised, read
        self._seen = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._progress.started = time.monotonic()
        self._progress.step = self._progress.began_at = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not is_main() or "train_runtime" in logs:
            return
        entry = {k: v for k, v in logs.items() if isinstance(v, int | float)}
        for name in ("loss", "grad_norm"):
            check_finite(name, entry.get(name, 0.0), state.global_step)
        # TRL's own count begins anew when a run is resumed.
        seen = entry.pop("num_tokens", self._seen)
        self._progress.tokens += max(0, int(seen - self._seen))
        self._seen = seen
        if self._read is not None:
            self._progress.tokens = sum(self._read[self._progress.began_at : state.global_step])
        entry = {"step": state.global_step, **entry}
        if self._supervised is not None:
            entry["supervised_tokens"] = sum(self._supervised[: state.global_step])
        self._progress.step, self._progress.entry = state.global_step, entry
        self._hooks.log(entry)
        self._hooks.progress(self._progress)

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        for name, weight in model.named_parameters():
            if weight.requires_grad and not bool(torch.isfinite(weight).all()):
                check_finite(f"weight {name}", math.nan, state.global_step)
        if processes() > 1:
            # The others write their own share of it.
            torch.distributed.barrier()
        if is_main():
            self._hooks.saved(state.global_step)
