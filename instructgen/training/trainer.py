"""Code that all trainers share: the job, TRL's arguments, the row order, and the start of training.

Only this module, `sft`, `preference` and `online` use TRL's trainers; `tests/test_trainers.py`
lists every TRL argument that they pass. Their trainers override three private methods of TRL, so
that all see the same tokens: `_prepare_dataset`, `_tokenize_prompts`, `_generate_single_turn`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer

from instructgen.errors import ConfigError
from instructgen.schema.sample import Sample
from instructgen.store import step_of
from instructgen.training.callbacks import Hooks
from instructgen.training.encode import Encoder, Unusable
from instructgen.training.launch import is_main, processes
from instructgen.training.options import Trainer as Name
from instructgen.training.options import TrainerOptions
from instructgen.training.schedule import Schedule, micro_batch, schedule


@dataclass(frozen=True)
class Job:
    """What to train: trainer name, settings, model, tokenizer, adapters, and output folders."""

    trainer: Name
    options: TrainerOptions
    model: Any
    tokenizer: Any
    checkpoints: Path
    tensorboard: Path
    peft: Any
    hooks: Hooks


@dataclass(frozen=True)
class Built:
    """A trainer that is ready to run.

    Attributes:
        trainer: a TRL trainer, or one with the same interface.
        rows: number of distinct rows that training uses.
        supervised_tokens: number of tokens that the loss covers; None unless the trainer is
            ``sft``.
    """

    trainer: Any
    rows: int
    supervised_tokens: int | None = None


@dataclass(frozen=True)
class Prepared:
    """Training examples that are prepared for one trainer.

    Attributes:
        count: number of examples to train on.
        trained: the rows that the examples come from.
        probes: token ids of the examples, used to check the saved model.
        trainer: function that builds the trainer for a job.
    """

    count: int
    trained: list[Sample]
    probes: list[list[int]]
    trainer: Callable[[Job], Built]


def fits(sample: Sample, encoder: Encoder, options: TrainerOptions) -> bool:
    """Return whether a row, encoded with each of its one or two answers, fits the length limit."""
    rejected = sample.rejected_answer
    answers = [sample.answer, *([rejected] if rejected is not None else [])]
    rows = [encoder.encode(sample, answer) for answer in answers]
    return not any(isinstance(r, Unusable) or len(r.ids) > options.max_length for r in rows)


def fit(trainer: Any, checkpoint: Path | None) -> None:
    """Train to the last step, from ``checkpoint`` on or, if it is None, from the beginning."""
    step = 0 if checkpoint is None else step_of(checkpoint)
    if isinstance(trainer, Trainer) and step >= trainer.args.max_steps:
        # Transformers checks whether training is finished only after a step: one too many here.
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state.global_step = step
    else:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def trainer_shards(trainer: Any) -> bool:
    """Return whether the trainer splits the weights, so that no process has all of them."""
    return bool(
        getattr(trainer, "is_fsdp_enabled", False)
        or getattr(trainer, "is_deepspeed_enabled", False)
    )


def plan(count: int, options: TrainerOptions) -> tuple[Schedule, int, int]:
    """Return the order of the rows, the micro-batch size, and the gradient accumulation steps."""
    order = schedule(
        count,
        options.batch_size,
        options.seed,
        epochs=options.epochs,
        steps=options.steps,
        whole=processes() > 1,
    )
    return order, *batches(options)


def batches(options: TrainerOptions, most: int = 4) -> tuple[int, int]:
    """Return the micro-batch size per device and the number of gradient accumulation steps.

    Raises:
        ConfigError: the batch cannot be divided evenly into micro-batches.
    """
    try:
        return micro_batch(options.batch_size, options.micro_batch_size, processes(), most)
    except ValueError as error:
        raise ConfigError(
            f"{error}.", "Change the option batch_size or micro_batch_size."
        ) from error


def arguments(job: Job, steps: int, shared: int, accumulated: int) -> dict[str, Any]:
    """Return the TRL arguments that all trainers share.

    Args:
        job: provides the settings and output folders.
        steps: number of optimizer steps.
        shared: micro-batch size per device.
        accumulated: number of gradient accumulation steps.
    """
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
        # The previous checkpoint must exist until the newest one is marked as complete.
        "save_total_limit": 2,
        "train_sampling_strategy": "sequential",
        "report_to": ["tensorboard"] if is_main() else [],
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,
    }


def ready(trainer: Any) -> Any:
    """Return the trainer without its printing and with LLaMA-Adapter's forward method repaired."""
    trainer.remove_callback(PrinterCallback)
    inner = getattr(trainer.model, "base_model", None)
    if inner is not None and "forward" in vars(inner):
        # PEFT's LLaMA-Adapter keeps the forward method from before TRL replaced it with one
        # that computes losses.
        inner.forward = inner.model.forward
    return trainer
