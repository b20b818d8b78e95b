"""What all trainers share: the job, TRL's arguments, the order of rows, and starting it.

`sft`, `preference` and `online` each say on one page which tokens their methods train on and
by which loss; with this module they are all that knows TRL. `tests/test_trainers.py` names
every argument of TRL that is used. Three private methods are overridden, so that all trainers
see the same tokens: `_prepare_dataset`, `_tokenize_prompts`, `_generate_single_turn`.
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
from instructgen.training.options import TrainOptions
from instructgen.training.schedule import Schedule, micro_batch, schedule


@dataclass(frozen=True)
class Job:
    """What to train: the model, its options, and where files go."""

    method: Name
    options: TrainOptions
    model: Any
    tokenizer: Any
    checkpoints: Path
    tensorboard: Path
    peft: Any
    hooks: Hooks


@dataclass(frozen=True)
class Prepared:
    """What one method makes of its rows.

    ``count`` is how many there are to train on, ``trained`` the samples they come from,
    ``probes`` their tokens, for the check of what is saved. ``trainer`` makes a trainer and
    counts supervised tokens, where the method has them.
    """

    count: int
    trained: list[Sample]
    probes: list[list[int]]
    trainer: Callable[[Job], tuple[Any, int | None]]


def fits(sample: Sample, encoder: Encoder, options: TrainOptions) -> bool:
    """Whether a row can be measured: all of it within the length that is trained."""
    answers = [sample.output, *([sample.rejected_output] if sample.rejected_output else [])]
    rows = [encoder.encode(sample, answer) for answer in answers]
    return not any(isinstance(r, Unusable) or len(r.ids) > options.max_length for r in rows)


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


def plan(count: int, options: TrainOptions) -> tuple[Schedule, int, int]:
    """The order of the rows, rows of a micro-batch, and micro-batches of a step."""
    made = schedule(
        count,
        options.batch_size,
        options.seed,
        epochs=options.epochs,
        steps=options.steps,
        whole=processes() > 1,
    )
    return made, *batches(options)


def batches(options: TrainOptions, most: int = 4) -> tuple[int, int]:
    """Rows of a micro-batch, and micro-batches of a step.

    Raises:
        ConfigError: they do not divide the batch.
    """
    try:
        return micro_batch(options.batch_size, options.micro_batch_size, processes(), most)
    except ValueError as error:
        raise ConfigError(f"{error}.", "Give another batch_size or micro_batch_size.") from error


def arguments(job: Job, steps: int, shared: int, accumulated: int) -> dict[str, Any]:
    """TRL's arguments that all trainers share."""
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


def ready(trainer: Any) -> Any:
    """The trainer without its printing, and with a forward that computes losses."""
    trainer.remove_callback(PrinterCallback)
    inner = getattr(trainer.model, "base_model", None)
    if inner is not None and "forward" in vars(inner):
        # PEFT's LLaMA-Adapter keeps the forward that its model had before TRL gave it
        # the one that computes losses.
        inner.forward = inner.model.forward
    return trainer
