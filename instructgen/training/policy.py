"""What training does to a model: packages, adapters, and the check that saving worked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from instructgen.errors import ConfigError, TrainingError
from instructgen.models.loading import Head, head_of, read_config
from instructgen.training.options import TrainOptions

# Rounding by merging, in shares of the logits' size; a lost layer or head is far more.
_EXACT, _COARSE = 0.002, 0.1
_LONGEST = 1024


def needs_packages() -> None:
    """Import what training needs, quietly.

    Raises:
        ConfigError: a package is missing.
    """
    # TRL reports its use unless told not to.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("BITSANDBYTES_NOWELCOME", "1")
    # Others import it only to see that it is there, and it says what it lacks.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import logging
    import warnings

    quiet = ("trl", "peft", "accelerate", "torch.distributed", "bitsandbytes")
    # TRL imports vLLM, which says at once what its CPU build lacks.
    for logger in (*quiet, "vllm.triton_utils.importing"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        import datasets
        import peft  # noqa: F401
        import transformers
        import trl  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"Training needs the package {error.name}.",
            "Run: make setup, or pip install 'instructgen[cpu,train]'.",
        ) from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", module=r"(torch|transformers|trl|peft|accelerate)\b.*")


def stop_at(model: Any, end_id: int) -> None:
    """Make generation end where the chat template ends an answer, and save it so.

    The end of text of many base models is another token than the end of turn that a
    template teaches: they would go on until they run out of room.
    """
    known = getattr(model, "generation_config", None)
    if known is None:
        return
    ends = known.eos_token_id if isinstance(known.eos_token_id, list) else [known.eos_token_id]
    if end_id not in ends:
        known.eos_token_id = [end_id, *(e for e in ends if e is not None)]


def length_for(name: str, asked: int) -> int:
    """The longest row to train on: as asked, or 1024 where the model reads so many.

    Raises:
        ConfigError: the model reads less than was asked, or cannot be loaded.
    """
    most = getattr(read_config(name).get_text_config(), "max_position_embeddings", None)
    if asked == 0:
        return min(_LONGEST, most or _LONGEST)
    if most is not None and asked > most:
        raise ConfigError(
            f"max_length is {asked}, and --model {name} reads {most} tokens.",
            f"Give --max-length {most} or less.",
        )
    return asked


def peft_of(options: TrainOptions, model: Any, head: Head) -> Any:
    """PEFT's configuration of the adapters asked for; None for all weights."""
    if options.peft == "none":
        return None
    from peft import AdaptionPromptConfig, IA3Config, LoraConfig, TaskType

    task = TaskType.CAUSAL_LM if head == "causal" else TaskType.SEQ_CLS
    # A new head that is not saved with the adapters is lost: the classic way to
    # export a reward model of random numbers.
    heads = [head_of(model)] if head == "reward" else None
    if options.peft == "ia3":
        return IA3Config(task_type=task, modules_to_save=heads)
    if options.peft == "adapter":
        if head == "reward":
            raise ConfigError(
                "LLaMA-Adapter is for language models only.", "Give --peft lora for a reward model."
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
    """The logits at the last token of each row, as float32 on the CPU: (rows, vocabulary or 1)."""
    import torch

    was = model.training
    model.eval()
    device = next(model.parameters()).device
    found = []
    with torch.inference_mode():
        for ids in rows:
            given = torch.tensor([list(ids)], device=device)
            logits = model(input_ids=given, attention_mask=torch.ones_like(given)).logits
            found.append(logits.reshape(-1, logits.shape[-1])[-1].float().cpu())
    model.train(was)
    return torch.stack(found)


def check_reload(
    trained: Any, reloaded: Any, base: Any, *, precise: bool = True, rough: bool = False
) -> dict[str, float]:
    """Whether the saved model is the one in memory, and not the one it began as.

    Args:
        trained: `outputs` of the model in memory.
        reloaded: of the model as saved.
        base: of the model before training.
        precise: whether the one in memory computes in float32.
        rough: whether it computes with rounded weights, or with a share of them; then
            nothing is refused.

    Returns:
        ``difference`` between memory and disk, and ``moved`` from base to disk: root mean
        squares.

    Raises:
        TrainingError: the saved model is another.
    """
    difference, moved = _distance(trained, reloaded), _distance(base, reloaded)
    most = (_EXACT if precise else _COARSE) * max(1.0, _distance(trained, 0 * trained))
    if not rough and difference > most:
        raise TrainingError(
            f"The saved model differs from the trained one by {difference:.3g} in its logits.",
            "The checkpoints are kept; please report this, with run.json.",
        )
    return {"difference": difference, "moved": moved}


def _distance(one: Any, other: Any) -> float:
    return float(((one - other) ** 2).mean() ** 0.5)
