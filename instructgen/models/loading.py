"""Loads models, tokenizers and configurations for all that computes with transformers itself.

Two libraries load for themselves, under the first rule too: vLLM (`engines/vllm.py`) and
sentence-transformers (`similarity/encoders.py`).

Two rules hold. Code that a model folder or a Hub repository contains is
never run: ``trust_remote_code=False`` is passed everywhere, because transformers asks on
standard input where it is left out. Weights are safetensors and have to be complete:
transformers fills missing layers with random numbers and only logs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from instructgen.errors import ConfigError, InstructgenError, first_line
from instructgen.models.folders import ADAPTER, adapter_base, model_folder

# What stands on top of the network: words, one number per text, or one number per token.
Head = Literal["causal", "reward", "value"]
# What language models call the layer that gives words; GPT-NeoX has the second.
_WORD_HEADS = ("lm_head", "embed_out")
# What models of numbers call theirs.
_NUMBER_HEADS = ("score", "classifier")
_NO_CODE: dict[str, Any] = {"trust_remote_code": False}


def load_tokenizer(name: str, pad_token: str | None = None) -> Any:
    """The tokenizer of a model to train, with a padding token.

    Args:
        name: a folder, a Hub name, or ``smollm2``.
        pad_token: a token of its vocabulary, or ``eos``; None for the tokenizer's own.

    Raises:
        ConfigError: there is none, or it has no padding token and none was given.
    """
    tokenizer = read_tokenizer(name)
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


def read_tokenizer(name: str) -> Any:
    """The tokenizer of a model as its folder has it.

    Raises:
        ConfigError: a package is missing, or it cannot be loaded.
        EngineError: the embedded model is asked for and not installed.
    """
    transformers = _transformers()
    folder = _resolved(name)
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, **_NO_CODE)
    except Exception as error:
        # Whatever a damaged file makes of it.
        raise load_error(name, error, "its tokenizer") from error


def read_config(name: str) -> Any:
    """The configuration of a model, and of the base model where the folder holds an adapter.

    Raises:
        ConfigError: it cannot be loaded.
        EngineError: the embedded model is asked for and not installed.
    """
    folder = Path(_resolved(name))
    try:
        if (folder / ADAPTER).exists():
            return read_config(adapter_base(folder))
        return _transformers().AutoConfig.from_pretrained(str(folder), **_NO_CODE)
    except InstructgenError:
        raise
    except Exception as error:
        raise load_error(name, error, "its config.json") from error


def load_model(
    name: str,
    head: Head = "causal",
    *,
    tokenizer: Any = None,
    dtype: str = "float32",
    quantized: bool = False,
    new_head: bool = False,
) -> Any:
    """A model by folder, Hub name or ``smollm2``, where the libraries put it: on the CPU.

    Args:
        name: which; a folder that holds only an adapter is merged into its base, where
            that can be done.
        head: ``causal`` for language, ``reward`` for one number per text, ``value`` for
            one number per token.
        tokenizer: its padding token is written into the configuration.
        dtype: of the weights.
        quantized: four bits a weight (NF4), to put adapters on.
        new_head: whether the layer that gives the number may be missing, because it is
            about to be trained. No other layer ever may.

    Raises:
        ConfigError: a package is missing, the model cannot be loaded or is not complete.
        EngineError: the embedded model is asked for and not installed.
    """
    folder = _resolved(name)
    if head == "causal" and is_reward_model(name):
        raise ConfigError(
            f"--model {name} is a reward model: it writes no text.",
            "Give a language model, such as the one it was trained from.",
        )
    try:
        if (Path(folder) / ADAPTER).exists():
            base = adapter_base(Path(folder))
            has_head = new_head or _has_head(name, folder)
            model = load_model(base, head, tokenizer=tokenizer, dtype=dtype, new_head=has_head)
            return _with_adapter(name, model, folder)
        model, found = _read_weights(folder, head, dtype, quantized=quantized)
    except InstructgenError:
        raise
    except Exception as error:
        # Whatever damaged weights or a configuration that does not fit them make of it.
        raise load_error(name, error) from error
    _check_complete(name, model, found, new_head)
    if tokenizer is not None:
        model.config.pad_token_id = tokenizer.pad_token_id
        if getattr(model, "generation_config", None) is not None:
            # Where both are one token, generation otherwise takes the end for padding.
            model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def _read_weights(folder: str, head: Head, dtype: str, *, quantized: bool) -> tuple[Any, Any]:
    """The model, and which of its weights were missing or too many."""
    transformers = _transformers()
    import torch

    classes = {
        "causal": transformers.AutoModelForCausalLM,
        "reward": transformers.AutoModelForSequenceClassification,
        "value": transformers.AutoModelForTokenClassification,
    }
    options: dict[str, Any] = {} if head == "causal" else {"num_labels": 1}
    if quantized:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )
    model, found = classes[head].from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        output_loading_info=True,
        **_NO_CODE,
        **options,
    )
    return model, found


def load_for_inference(
    name: str, head: Head = "causal", *, dtype: str = "float32"
) -> tuple[Any, Any]:
    """A model to ask and never to train: on a GPU where there is one, dropout off.

    Args:
        name: a folder, a Hub name or ``smollm2``.
        head: ``causal`` for language, ``reward`` for a number per text.
        dtype: of the weights.

    Returns:
        Its tokenizer, which always has a padding token, and the model.

    Raises:
        ConfigError: a package is missing, the model cannot be loaded or is not complete, or
            ``reward`` is asked of a model that is not a reward model.
        EngineError: the embedded model is asked for and not installed.
    """
    if head == "reward":
        check_reward_model(name)
    transformers = _transformers()
    import torch

    transformers.utils.logging.disable_progress_bar()
    tokenizer = read_tokenizer(name)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = load_model(name, head, dtype=dtype)
    return tokenizer, model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def load_error(name: str, error: Exception, part: str = "") -> ConfigError:
    """The message for whatever the libraries raised while they loaded ``name``."""
    if "trust_remote_code" in str(error):
        # Their own advice is to allow it.
        return ConfigError(
            f"--model {name} requires custom code to load.",
            "instructgen never runs a model's code. Use a model whose architecture is part of "
            "transformers.",
        )
    subject = f"{name}: {part}" if part else name
    return ConfigError(
        f"--model {subject} cannot be loaded: {first_line(error)}.",
        "Check the name, and that the folder is complete or the hub reachable.",
    )


def is_reward_model(name: str) -> bool:
    """Whether a model gives one number per text, rather than text.

    Raises:
        ConfigError: nothing is there.
    """
    return any("ForSequenceClassification" in a for a in read_config(name).architectures or ())


def check_reward_model(name: str) -> None:
    """Refuse a model that is no reward model, from its configuration alone.

    Raises:
        ConfigError: it writes text, gives several numbers, or nothing is there.
    """
    if not is_reward_model(name):
        raise ConfigError(
            f"{name} is no reward model: it writes text.", "Run: instructgen train reward."
        )
    if (labels := read_config(name).num_labels) != 1:
        raise ConfigError(f"model {name} gives {labels} numbers, not one.", "Name a reward model.")


def head_of(model: Any) -> str:
    """The name of the layer that turns hidden states into one number.

    Raises:
        ConfigError: it is not one layer.
    """
    import torch

    for name, module in model.named_children():
        if isinstance(module, torch.nn.Linear) and module.out_features == 1:
            return str(name)
    raise ConfigError(
        f"The head of {type(model).__name__} is not a single layer, so it cannot be trained.",
        "Use a model with a single-layer head, such as Llama or Qwen.",
    )


def _with_adapter(name: str, base: Any, folder: str) -> Any:
    from peft import PeftModel, get_peft_model_state_dict

    model = PeftModel.from_pretrained(base, folder)
    missing = get_peft_model_state_dict(model).keys() - _adapter_keys(name, folder)
    _refuse_keys(name, sorted(missing), "missing from its adapter's weights")
    # LLaMA-Adapter's prompts cannot become weights.
    return model.merge_and_unload() if hasattr(model.base_model, "merge_and_unload") else model


def _adapter_keys(name: str, folder: str) -> set[str]:
    from safetensors import safe_open

    weights = Path(folder) / "adapter_model.safetensors"
    if not weights.is_file():  # PEFT would go on to a pickle.
        raise ConfigError(f"--model {name}: {weights.name} is missing.", "Restore it from a copy.")
    with safe_open(weights, "pt") as file:
        return set(file.keys())


def _has_head(name: str, folder: str) -> bool:
    """Whether an adapter contains the layer that gives the number, which its base may lack."""
    keys = _adapter_keys(name, folder)
    return any(f".{head}.weight" in key for head in _NUMBER_HEADS for key in keys)


def _check_complete(name: str, model: Any, found: Mapping[str, Any], new_head: bool) -> None:
    """Reject missing weights, which would be random, and unknown ones other than a word head."""
    causal = model.get_output_embeddings() is not None
    head = f"{head_of(model)}." if new_head and not causal else None
    missing = [k for k in found["missing_keys"] if head is None or not k.startswith(head)]
    extra = [k for k in found["unexpected_keys"] if causal or not k.startswith(_WORD_HEADS)]
    _refuse_keys(name, sorted(missing), "missing from its weights")
    _refuse_keys(name, sorted(extra), "in its weights and unknown")


def _refuse_keys(name: str, keys: list[str], told: str) -> None:
    if keys:
        raise ConfigError(
            f"--model {name}: {keys[0]} and {len(keys) - 1:,} more are {told}.",
            "Its files do not belong together: check that the folder is complete.",
        )


def _resolved(name: str) -> str:
    """Also a folder that holds only an adapter."""
    path = Path(name).expanduser()
    return str(path) if (path / ADAPTER).exists() else model_folder(name)


def _transformers() -> Any:
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"A model needs the package {error.name}.",
            "Run: make setup, or pip install 'instructgen[cpu]'.",
        ) from error
    return transformers
