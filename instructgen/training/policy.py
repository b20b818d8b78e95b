"""Models to train and to evaluate: loading, adapters, saving, and the check that saving worked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from instructgen.engines.models import model_folder
from instructgen.errors import ConfigError, InstructgenError, TrainingError, first_line
from instructgen.training.options import TrainOptions

Head = Literal["causal", "reward"]
ADAPTER = "adapter_config.json"
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

    for logger in ("trl", "peft", "accelerate", "torch.distributed", "bitsandbytes"):
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


def load_tokenizer(name: str, pad_token: str | None = None) -> Any:
    """The tokenizer of a model, with a padding token.

    Raises:
        ConfigError: there is none, or it has no padding token and none was given.
    """
    from transformers import AutoTokenizer

    folder = _resolved(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        # Whatever a damaged file makes of it.
        raise ConfigError(
            f"--model {name}: its tokenizer cannot be loaded ({first_line(error)}).",
            "Check the name, and that the folder is complete.",
        ) from error
    if pad_token == "eos":  # noqa: S105 (a word, no secret)
        pad_token = tokenizer.eos_token
    if pad_token is not None:
        if pad_token not in tokenizer.get_vocab():
            raise ConfigError(
                f"--pad-token {pad_token!r} is not in the vocabulary of {name}.",
                "Give one of its tokens, or eos.",
            )
        tokenizer.pad_token = pad_token
    if tokenizer.pad_token_id is None:
        raise ConfigError(
            f"--model {name}: its tokenizer has no padding token.",
            "Give --pad-token eos, or another token of its vocabulary.",
        )
    return tokenizer


def load_model(
    name: str,
    head: Head = "causal",
    *,
    tokenizer: Any = None,
    dtype: str = "float32",
    quantized: bool = False,
) -> Any:
    """A model by folder, Hub name or ``smollm2``, where the libraries put it: on the CPU.

    Args:
        name: which; a folder that holds only an adapter is merged into its base, where
            that can be done.
        head: ``causal`` for language, ``reward`` for one number per text.
        tokenizer: its padding token is written into the configuration.
        dtype: of the weights.
        quantized: four bits a weight (NF4), to put adapters on.

    Raises:
        ConfigError: it cannot be loaded.
    """
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        BitsAndBytesConfig,
    )

    made = AutoModelForCausalLM if head == "causal" else AutoModelForSequenceClassification
    more: dict[str, Any] = {} if head == "causal" else {"num_labels": 1}
    if quantized:
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )
    folder = _resolved(name)
    adapter = Path(folder) / ADAPTER
    if head == "causal" and is_reward_model(name):
        raise ConfigError(
            f"--model {name} is a reward model: it writes no text.",
            "Give a language model, such as the one it was trained from.",
        )
    try:
        if adapter.exists():
            from peft import PeftConfig, PeftModel

            base = PeftConfig.from_pretrained(folder).base_model_name_or_path
            model = load_model(str(base), head, tokenizer=tokenizer, dtype=dtype)
            model = PeftModel.from_pretrained(model, folder)
            # LLaMA-Adapter's prompts cannot become weights.
            mergeable = hasattr(model.base_model, "merge_and_unload")
            return model.merge_and_unload() if mergeable else model
        model, found = made.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            output_loading_info=True,
            **more,
        )
    except InstructgenError:
        raise
    except Exception as error:
        # Whatever damaged weights or a configuration that does not fit them make of it.
        raise ConfigError(
            f"--model {name} cannot be loaded: {first_line(error)}.",
            "Check the name, and that the folder is complete or the hub reachable.",
        ) from error
    _check_whole(name, head, model, found)
    if tokenizer is not None:
        model.config.pad_token_id = tokenizer.pad_token_id
        if getattr(model, "generation_config", None) is not None:
            # Where both are one token, generation otherwise takes the end for padding.
            model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def _check_whole(name: str, head: Head, model: Any, found: Mapping[str, Any]) -> None:
    """Refuse weights that do not make the model: what is missing would be random numbers."""
    new = f"{head_of(model)}." if head == "reward" else None
    missing = [k for k in found["missing_keys"] if new is None or not k.startswith(new)]
    # The head of a language model is left out of a reward model.
    extra = [k for k in found["unexpected_keys"] if new is None or not k.startswith("lm_head")]
    for keys, said in (
        (missing, "missing from its weights"),
        (extra, "in its weights and unknown"),
    ):
        if keys:
            raise ConfigError(
                f"--model {name}: {sorted(keys)[0]} and {len(keys) - 1:,} more are {said}.",
                "Its files do not belong together: check that the folder is complete.",
            )


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


def head_of(model: Any) -> str:
    """The name of the layer that turns hidden states into one number."""
    import torch

    return next(
        str(name)
        for name, module in model.named_children()
        if isinstance(module, torch.nn.Linear) and module.out_features == 1
    )


def is_reward_model(name: str) -> bool:
    """Whether a model gives one number per text, rather than text.

    Raises:
        ConfigError: nothing is there.
    """
    return any("ForSequenceClassification" in a for a in _config(name).architectures or ())


def check_reward_model(name: str) -> None:
    """Refuse a model that is no reward model, from its configuration alone.

    Raises:
        ConfigError: it writes text, or nothing is there.
    """
    if not is_reward_model(name):
        raise ConfigError(
            f"{name} is no reward model: it writes text.", "Run: instructgen train reward."
        )


def length_for(name: str, asked: int) -> int:
    """The longest row to train on: as asked, or 1024 where the model reads so many.

    Raises:
        ConfigError: the model reads less than was asked, or cannot be loaded.
    """
    most = getattr(_config(name).get_text_config(), "max_position_embeddings", None)
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


def _config(name: str) -> Any:
    from transformers import AutoConfig

    folder = Path(_resolved(name))
    if (folder / ADAPTER).exists():
        from peft import PeftConfig

        return _config(str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path))
    try:
        return AutoConfig.from_pretrained(str(folder))
    except Exception as error:
        raise ConfigError(
            f"--model {name} cannot be loaded: {first_line(error)}.",
            "Check the name, and its config.json.",
        ) from error


def _resolved(name: str) -> str:
    """Also a folder that holds only an adapter."""
    path = Path(name).expanduser()
    return str(path) if (path / ADAPTER).exists() else model_folder(name)
