"""Generates, curates and documents instruction-tuning data with licenses and provenance.

Each function is the command of the same name. Importing this package does not import torch,
vllm, transformers, datasets or trl.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "ablate",
    "curate",
    "dedup",
    "evaluate",
    "explain",
    "export",
    "generate",
    "import_data",
    "merge",
    "prefer",
    "preview",
    "publish",
    "rebuild",
    "report",
    "run",
    "train",
]

if TYPE_CHECKING:
    from instructgen.commands.ablate import ablate
    from instructgen.commands.curate import curate
    from instructgen.commands.dedup import dedup
    from instructgen.commands.evaluate import evaluate
    from instructgen.commands.explain import explain
    from instructgen.commands.export import export
    from instructgen.commands.generate import generate, rebuild
    from instructgen.commands.import_data import import_data
    from instructgen.commands.merge import merge
    from instructgen.commands.prefer import prefer
    from instructgen.commands.preview import preview
    from instructgen.commands.publish import publish
    from instructgen.commands.report import report
    from instructgen.commands.train import train
    from instructgen.pipeline.steps import run

_MODULES = {
    **{name: f"instructgen.commands.{name}" for name in __all__},
    "rebuild": "instructgen.commands.generate",
    "run": "instructgen.pipeline.steps",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'instructgen' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value
