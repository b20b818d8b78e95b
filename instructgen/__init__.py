"""instructgen generates, curates and documents instruction data, and trains models on the data.

Most commands of the command line are also functions of this package. The function `open` gives
access to the rows of a dataset. Importing the package does not import torch, vllm, transformers,
datasets or trl.

Errors (instructgen.errors):

    InstructgenError
    ├── InputError         a data file or a row is invalid
    ├── ConfigError        an option or a recipe key is invalid
    ├── RunError           a run folder or dataset folder cannot be used
    │   ├── DamagedFileError   a file in the folder is damaged
    │   └── VersionError       the folder has an unsupported format
    ├── StorageError       a file cannot be written
    ├── EngineError        the engine cannot start or continue
    └── TrainingError      training cannot continue
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.7.0"
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
    "open",
    "prefer",
    "preview",
    "publish",
    "rebuild",
    "report",
    "run",
    "snapshot",
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
    from instructgen.commands.handle import open_dataset as open
    from instructgen.commands.import_data import import_data
    from instructgen.commands.merge import merge
    from instructgen.commands.prefer import prefer
    from instructgen.commands.preview import preview
    from instructgen.commands.publish import publish
    from instructgen.commands.report import report
    from instructgen.commands.snapshot import snapshot
    from instructgen.commands.train import train
    from instructgen.pipeline.steps import run

_PLACES = {
    **{name: (f"instructgen.commands.{name}", name) for name in __all__},
    "open": ("instructgen.commands.handle", "open_dataset"),
    "rebuild": ("instructgen.commands.generate", "rebuild"),
    "run": ("instructgen.pipeline.steps", "run"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'instructgen' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _PLACES[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value
