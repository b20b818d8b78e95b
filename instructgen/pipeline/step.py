"""Defines `Step`, a step of a pipeline after the pipeline has been read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instructgen.commands.interface import Options


@dataclass(frozen=True, slots=True)
class Step:
    """A command of a pipeline with its options.

    ``run`` and ``options`` are as written in the pipeline. ``argv`` are the arguments for
    ``instructgen``, and ``parsed`` are the options that they set. ``values`` maps strings in the
    pipeline to the paths that they refer to. ``follows`` are the earlier steps and the inputs
    that the step reads. ``files`` maps paths to contents: a recipe
    inside the pipeline must be written to a file before the step runs.
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
        """The options by name, including the settings of a trainer."""
        values = {name: getattr(self.parsed, name) for name in type(self.parsed).model_fields}
        rest = type(self.parsed).open_field
        return values if rest is None else {**values, **values[rest]}
