"""Prepare a model for training, configure its adapters, and check that it was saved correctly."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from instructgen.errors import ConfigError, TrainingError
from instructgen.models.loading import Head, head_of, read_config
from instructgen.training.options import TrainerOptions

# Allowed error from rounding and merging, relative to the root mean square of the logits: for
# float32, and for coarser types. A missing layer or output layer changes the logits much more.
_EXACT, _COARSE = 0.002, 0.1
_LONGEST = 1024


def require_training_packages() -> None:
    """Import the packages that training needs, and silence their logs and progress bars.

    Raises:
        ConfigError: a package is missing.
    """
    # TRL sends usage statistics unless this is set.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("BITSANDBYTES_NOWELCOME", "1")
    # Other packages import vLLM to check that it is installed, and it logs missing features.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import logging
    import warnings

    quiet = ("trl", "peft", "accelerate", "torch.distributed", "bitsandbytes")
    # TRL imports vLLM, which logs at once what its CPU build does not support.
    for logger in (*quiet, "vllm.triton_utils.importing"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        import datasets
        import peft  # noqa: F401
        import transformers
        import trl  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"Training requires the package {error.name}, which is not installed.",
            "Run: make setup, or pip install 'instructgen[cpu,train]'.",
        ) from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", module=r"(torch|transformers|trl|peft|accelerate)\b.*")


def set_eos(model: Any, end_id: int) -> None:
    """Add ``end_id``, which ends an answer in the chat template, to the model's EOS tokens.

    This changes the generation config, which is saved with the model. Many base models have an
    end-of-text token that differs from the template's end-of-turn token. Without this change,
    the trained model would not stop after an answer.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if end_id not in ends:
        config.eos_token_id = [end_id, *(e for e in ends if e is not None)]


def length_for(name: str, requested: int) -> int:
    """Return the maximum row length in tokens.

    Args:
        name: folder or Hub name of the model, or ``smollm2`` for the included model.
        requested: requested length. 0 means 1024, or the model's context length if that is
            smaller.

    Raises:
        ConfigError: the requested length exceeds the model's context length, or the model's
            configuration cannot be loaded.
    """
    most = getattr(read_config(name).get_text_config(), "max_position_embeddings", None)
    if requested == 0:
        return min(_LONGEST, most or _LONGEST)
    if most is not None and requested > most:
        raise ConfigError(
            f"The option max_length is {requested}, but {name} supports at most {most} tokens.",
            f"Pass --max-length={most} or less.",
        )
    return requested


def peft_of(options: TrainerOptions, model: Any, head: Head) -> Any:
    """Return the PEFT configuration for ``options.peft``; None for full fine-tuning.

    Raises:
        ConfigError: LLaMA-Adapter is requested for a reward model.
    """
    if options.peft == "none":
        return None
    from peft import AdaptionPromptConfig, IA3Config, LoraConfig, TaskType

    task = TaskType.CAUSAL_LM if head == "causal" else TaskType.SEQ_CLS
    # The new reward head must be saved with the adapters; otherwise the exported reward model
    # has a randomly initialized one.
    heads = [head_of(model)] if head == "reward" else None
    if options.peft == "ia3":
        return IA3Config(task_type=task, modules_to_save=heads)
    if options.peft == "adapter":
        if head == "reward":
            raise ConfigError(
                "peft=adapter (LLaMA-Adapter) does not support reward models.", "Pass --peft=lora."
            )
        layers = model.config.num_hidden_layers
        return AdaptionPromptConfig(
            task_type=task, adapter_len=options.adapter_length, adapter_layers=max(1, layers - 2)
        )
    return LoraConfig(
        task_type=task,
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules="all-linear",
        use_dora=options.peft == "dora",
        modules_to_save=heads,
    )


def outputs(model: Any, rows: Sequence[Sequence[int]]) -> Any:
    """Return the logits at the last token of each row of token ids.

    The result is a float32 tensor on the CPU, of shape (rows, vocabulary), or (rows, 1) for a
    reward model.
    """
    import torch

    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    last_logits = []
    with torch.inference_mode():
        for ids in rows:
            inputs = torch.tensor([list(ids)], device=device)
            logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits
            last_logits.append(logits.reshape(-1, logits.shape[-1])[-1].float().cpu())
    model.train(was_training)
    return torch.stack(last_logits)


def check_reload(
    trained: Any, reloaded: Any, base: Any, *, precise: bool = True, rough: bool = False
) -> dict[str, float]:
    """Check that the saved model, loaded again, computes the same logits as before saving.

    Args:
        trained: `outputs` of the trained model in memory.
        reloaded: `outputs` of the saved model.
        base: `outputs` of the model before training.
        precise: whether the model in memory computes in float32. If not, differences may be larger.
        rough: whether the model in memory has quantized or sharded weights. If so, a difference
            is not an error.

    Returns:
        Root mean square differences of the logits: ``difference`` between the trained and the
        saved model, ``moved`` between the base and the saved model.

    Raises:
        TrainingError: the saved model differs from the trained one.
    """
    difference, moved = _distance(trained, reloaded), _distance(base, reloaded)
    most = (_EXACT if precise else _COARSE) * max(1.0, _distance(trained, 0 * trained))
    if not rough and difference > most:
        raise TrainingError(
            f"The saved model's logits differ from the trained model's by {difference:.3g}.",
            "This is a bug; please report it and attach training.json. Checkpoints are kept.",
        )
    return {"difference": difference, "moved": moved}


def _distance(one: Any, other: Any) -> float:
    return float(((one - other) ** 2).mean() ** 0.5)
