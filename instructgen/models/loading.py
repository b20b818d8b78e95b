"""Loads models, tokenizers and configurations for all code that uses transformers directly.

Rule 1: code in a model folder or a Hub repository never runs. ``trust_remote_code=False`` is
passed everywhere, because without it transformers asks on standard input whether to run the code.
Rule 2: weights are safetensors and must be complete, because transformers fills missing layers
with random numbers and only logs a warning.

vLLM (`engines/vllm.py`) and sentence-transformers (`similarity/encoders.py`) load models without
this module; only rule 1 applies to them.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from instructgen.errors import ConfigError, InstructgenError, first_line
from instructgen.models.folders import ADAPTER, adapter_base, model_folder
from instructgen.models.templates import check_template
from instructgen.models.tokenizer_files import check_tokenizer

# The output layer: token logits, one number per text, or one number per token.
Head = Literal["causal", "reward", "value"]
# Names of the layer that gives token logits; the second is that of GPT-NeoX.
_LOGIT_HEADS = ("lm_head", "embed_out")
# Names of the layer that gives one number.
_NUMBER_HEADS = ("score", "classifier")
_NO_CODE: dict[str, Any] = {"trust_remote_code": False}


def load_tokenizer(name: str, pad_token: str | None = None) -> Any:
    """Return the tokenizer of a model for training, with a padding token.

    Args:
        name: a folder, a Hub name, or ``smollm2`` for the included model.
        pad_token: a token in the vocabulary, or ``eos`` for the end-of-sequence token. None keeps
            the padding token of the tokenizer.

    Raises:
        ConfigError: if the tokenizer cannot be loaded, or its padding token is invalid or missing.
    """
    tokenizer = read_tokenizer(name)
    if pad_token == "eos":  # noqa: S105 (not a secret)
        pad_token = tokenizer.eos_token
    if pad_token is not None:
        if pad_token not in tokenizer.get_vocab():
            raise ConfigError(
                f"--pad-token={pad_token!r} is not in the vocabulary of {name}.",
                "Use a token in the vocabulary of the model, or eos.",
            )
        tokenizer.pad_token = pad_token
    if tokenizer.pad_token_id is None:
        raise ConfigError(
            f"--model={name}: the tokenizer has no padding token.",
            "Pass --pad-token=eos for the end-of-sequence token, or a token of the vocabulary.",
        )
    return tokenizer


def read_tokenizer(name: str) -> Any:
    """Return the tokenizer of a model as it is stored, so it may lack a padding token.

    Raises:
        ConfigError: if a package is missing, or the tokenizer cannot be loaded.
        EngineError: if the included model ``smollm2`` is requested but not installed.
    """
    transformers = _transformers()
    folder = _resolved(name)
    try:
        check_tokenizer(_with_tokenizer(folder), name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **_NO_CODE)
    except InstructgenError:
        raise
    except Exception as error:
        # A damaged file can raise any exception.
        raise load_error(name, error, "the tokenizer") from error
    check_template(tokenizer, name)
    return tokenizer


def read_config(name: str) -> Any:
    """Return the configuration of a model; for an adapter, return that of its base model.

    Raises:
        ConfigError: if the configuration cannot be loaded.
        EngineError: if the included model ``smollm2`` is requested but not installed.
    """
    folder = Path(_resolved(name))
    try:
        if (folder / ADAPTER).exists():
            return read_config(adapter_base(folder))
        return _transformers().AutoConfig.from_pretrained(str(folder), **_NO_CODE)
    except InstructgenError:
        raise
    except Exception as error:
        raise load_error(name, error, "config.json") from error


def load_model(
    name: str,
    head: Head = "causal",
    *,
    tokenizer: Any = None,
    dtype: str = "float32",
    quantized: bool = False,
    new_head: bool = False,
) -> Any:
    """Return a model, loaded on the CPU.

    Args:
        name: a folder, a Hub name or ``smollm2`` for the included model. If the folder contains
            only an adapter, its base model is loaded too, and the two are merged if possible.
        head: the output layer: ``causal`` for token logits, ``reward`` for one number per text,
            ``value`` for one number per token.
        tokenizer: the tokenizer whose padding token is set in the model's configuration.
        dtype: the data type of the weights, such as ``float32``.
        quantized: whether to load weights in 4 bits (NF4), for training adapters.
        new_head: whether the output layer of a ``reward`` or ``value`` model may be missing,
            because it will be trained. No other layer may be missing.

    Raises:
        ConfigError: if a package is missing, or the model cannot be loaded or is incomplete.
        EngineError: if the included model ``smollm2`` is requested but not installed.
    """
    folder = _resolved(name)
    if head == "causal" and is_reward_model(name):
        raise ConfigError(
            f"--model={name} is a reward model, which cannot generate text.",
            "Use a language model, such as the one from which the reward model was trained.",
        )
    try:
        if (Path(folder) / ADAPTER).exists():
            base = adapter_base(Path(folder))
            has_head = new_head or _has_head(name, folder)
            model = load_model(base, head, tokenizer=tokenizer, dtype=dtype, new_head=has_head)
            return _with_adapter(name, model, folder)
        model, loading_info = _read_weights(folder, head, dtype, quantized=quantized)
    except InstructgenError:
        raise
    except Exception as error:
        # Damaged weights, or ones that do not match the configuration, can raise any exception.
        raise load_error(name, error) from error
    _check_complete(name, model, loading_info, new_head)
    if tokenizer is not None:
        model.config.pad_token_id = tokenizer.pad_token_id
        if getattr(model, "generation_config", None) is not None:
            # Without it, generation treats the end token as padding if both are the same token.
            model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def _read_weights(folder: str, head: Head, dtype: str, *, quantized: bool) -> tuple[Any, Any]:
    """Return the model, and the names of its missing and unexpected weights."""
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
    model, loading_info = classes[head].from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        output_loading_info=True,
        **_NO_CODE,
        **options,
    )
    return model, loading_info


def load_for_inference(
    name: str, head: Head = "causal", *, dtype: str = "float32"
) -> tuple[Any, Any]:
    """Load a tokenizer and a model for inference, in evaluation mode and on a GPU if possible.

    Args:
        name: a folder, a Hub name or ``smollm2`` for the included model.
        head: the output layer: ``causal`` for token logits, ``reward`` for one number per text.
        dtype: the data type of the weights, such as ``float32``.

    Returns:
        The tokenizer, which always has a padding token, and the model.

    Raises:
        ConfigError: if a package is missing, if the model cannot be loaded or is incomplete, or
            if ``head`` is ``reward`` but the model is not a reward model.
        EngineError: if the included model ``smollm2`` is requested but not installed.
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


def fastest_dtype() -> Literal["bfloat16", "float32"]:
    """Return the data type in which this machine generates text fastest.

    It is float32 on a processor without instructions for bfloat16, such as many laptops have:
    torch has no fast product of bfloat16 matrices there, and vLLM writes 4.5 times as many tokens
    per second with float32 (benchmarks/dtype.json).
    """
    import torch

    if torch.cuda.is_available() or platform.machine() not in ("x86_64", "AMD64"):
        return "bfloat16"
    # torch's own compiler asks the same; the public torch.cpu.get_capabilities() only lists flags.
    return "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


def load_error(name: str, error: Exception, part: str = "") -> ConfigError:
    """Return a ConfigError for an exception that a library raised while loading a model."""
    if "trust_remote_code" in str(error):
        # The original message advises the user to allow the code.
        return ConfigError(
            f"--model={name} cannot be loaded without running code that comes with the model.",
            "For security, instructgen never runs such code. Use a model whose architecture is "
            "part of transformers.",
        )
    subject = f"{name}: {part}" if part else name
    return ConfigError(
        f"--model={subject} cannot be loaded: {first_line(error)}.",
        "Check the name of the model, and that its folder is complete or the Hub can be reached.",
    )


def is_reward_model(name: str) -> bool:
    """Return whether a model is a reward model, which scores texts instead of generating them.

    Raises:
        ConfigError: if the configuration cannot be loaded.
    """
    return any("ForSequenceClassification" in a for a in read_config(name).architectures or ())


def check_reward_model(name: str) -> None:
    """Check that a model is a reward model, by its configuration and without loading its weights.

    Raises:
        ConfigError: if the model generates text or returns several numbers, or if its
            configuration cannot be loaded.
    """
    if not is_reward_model(name):
        raise ConfigError(
            f"{name} is not a reward model, but a model that generates text.",
            "Use a reward model, or train one with: instructgen train reward.",
        )
    if (labels := read_config(name).num_labels) != 1:
        raise ConfigError(
            f"{name} returns {labels} numbers for a text, but a reward model must return one.",
            "Use a different model.",
        )


def head_of(model: Any) -> str:
    """Return the name of the output layer, which maps hidden states to one number.

    Raises:
        ConfigError: if the model does not have such a layer.
    """
    import torch

    for name, module in model.named_children():
        if isinstance(module, torch.nn.Linear) and module.out_features == 1:
            return str(name)
    raise ConfigError(
        f"{type(model).__name__} cannot be trained to return a number, because its output head is "
        "not a single layer.",
        "Use a model whose output head is a single layer, such as Llama or Qwen.",
    )


def _with_adapter(name: str, base: Any, folder: str) -> Any:
    from peft import PeftModel, get_peft_model_state_dict

    model = PeftModel.from_pretrained(base, folder)
    missing = get_peft_model_state_dict(model).keys() - _adapter_keys(name, folder)
    _reject_keys(name, sorted(missing), "missing from the weights of its adapter")
    # The prompts of LLaMA-Adapter cannot be merged into the weights.
    return model.merge_and_unload() if hasattr(model.base_model, "merge_and_unload") else model


def _adapter_keys(name: str, folder: str) -> set[str]:
    from safetensors import safe_open

    weights = Path(folder) / "adapter_model.safetensors"
    if not weights.is_file():  # PEFT would load a pickle instead.
        raise ConfigError(
            f"--model={name}: the file {weights.name} is missing from the adapter's folder.",
            "Restore the file from a copy, or save the adapter as safetensors.",
        )
    with safe_open(weights, "pt") as file:
        return set(file.keys())


def _has_head(name: str, folder: str) -> bool:
    """Return whether an adapter contains an output layer; if so, its base model may lack it."""
    keys = _adapter_keys(name, folder)
    return any(f".{head}.weight" in key for head in _NUMBER_HEADS for key in keys)


def _check_complete(name: str, model: Any, info: Mapping[str, Any], new_head: bool) -> None:
    """Raise ConfigError if weights are missing or unexpected, except in a new or unused head."""
    causal = model.get_output_embeddings() is not None
    head = f"{head_of(model)}." if new_head and not causal else None
    missing = [k for k in info["missing_keys"] if head is None or not k.startswith(head)]
    extra = [k for k in info["unexpected_keys"] if causal or not k.startswith(_LOGIT_HEADS)]
    _reject_keys(name, sorted(missing), "missing from its weights")
    _reject_keys(name, sorted(extra), "in its weights but not in its architecture")


def _reject_keys(name: str, keys: list[str], problem: str) -> None:
    if keys:
        raise ConfigError(
            f"--model={name}: {keys[0]} and {len(keys) - 1:,} more tensors are {problem}.",
            "Check that the folder is complete and that all files belong to the same model.",
        )


def _resolved(name: str) -> str:
    """Return the folder or Hub name to load, as `model_folder`; also accept adapter folders."""
    path = Path(name).expanduser()
    return str(path) if (path / ADAPTER).exists() else model_folder(name)


def _with_tokenizer(folder: str) -> Path:
    """Return the folder with the tokenizer of a model, which is downloaded for a Hub name."""
    if Path(folder).is_dir():
        return Path(folder)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(folder, allow_patterns=["tokenizer*.json"]))


def _transformers() -> Any:
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"Loading a model requires the package {error.name}, which is not installed.",
            "Run: make setup, or pip install 'instructgen[cpu]'.",
        ) from error
    return transformers
