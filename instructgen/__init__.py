"""instructgen: from a few human-written tasks to a licensed, explainable instruction dataset.

The functions here are the commands of the same names. Importing this package
imports no torch, vllm, transformers, datasets or trl.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["dedup", "explain", "generate", "preview", "rebuild"]

if TYPE_CHECKING:
    from instructgen.commands.dedup import dedup
    from instructgen.commands.explain import explain
    from instructgen.commands.generate import generate, rebuild
    from instructgen.commands.preview import preview

_MODULES = {
    "dedup": "dedup",
    "explain": "explain",
    "generate": "generate",
    "preview": "preview",
    "rebuild": "generate",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'instructgen' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"instructgen.commands.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
