"""Defines `Step`: one step of a pipeline, after the pipeline file was read and validated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instructgen.commands.interface import Options


@dataclass(frozen=True, slots=True)
class Step:
    """A command of a pipeline with its options.

    ``run`` and ``options`` are as written in the pipeline file. ``argv`` are the resulting
    command-line arguments for ``instructgen``, and ``parsed`` are the options that they set.
    ``values`` maps each text in the pipeline file that names an input of the step, such as
    ``@seeds``, to its path or model. ``follows`` are the names of the earlier steps and pipeline
    inputs that the step reads. ``files`` maps paths to contents: a recipe inside the pipeline file
    must be written to a separate file before the step runs. ``out`` is the output of the step.
    """

    name: str
    run: str
    options: Mapping[str, Any]
    argv: tuple[str, ...]
    out: Path
    parsed: Options
    values: Mapping[str, str] = field(default_factory=dict)
    follows: tuple[str, ...] = ()
    files: Mapping[Path, str] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """The name of the command, such as ``merge``."""
        return self.argv[0]

    @property
    def settings(self) -> dict[str, Any]:
        """The values of the options by name; settings of a trainer are also included by name."""
        values = {name: getattr(self.parsed, name) for name in type(self.parsed).model_fields}
        rest = type(self.parsed).open_field
        return values if rest is None else {**values, **values[rest]}
