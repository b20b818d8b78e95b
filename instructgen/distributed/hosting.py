"""What another process gets: where it comes from, and a description of the engine that it runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructgen.engines import Engine
from instructgen.plugins import find, load_plugin, loaded_files


@dataclass(frozen=True, slots=True)
class CommandContext:
    """What another process needs for names to have the same meaning as in this one.

    ``folder`` is the working folder, and ``plugins`` are the plug-in files that the user loaded.
    """

    folder: Path
    plugins: tuple[Path, ...]

    @classmethod
    def here(cls) -> CommandContext:
        """Return the context of this process."""
        return cls(Path.cwd(), loaded_files())

    def adopt(self) -> None:
        """Let names have the same meaning in this process.

        Raises:
            ConfigError: a plug-in file does not exist on this machine.
        """
        if self.folder.is_dir():
            os.chdir(self.folder)
        for file in self.plugins:
            load_plugin(file)


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """The name and the options of an engine, and what its process has to know of this one."""

    name: str
    options: dict[str, Any]
    context: CommandContext

    def build(self) -> Engine:
        """Return the engine.

        Raises:
            ConfigError: a plug-in file does not exist on this machine.
        """
        self.context.adopt()
        engine: Engine = find("engines", self.name).model_validate(self.options)
        return engine


@dataclass(frozen=True, slots=True)
class Ready:
    """An engine has started: its window and its slots."""

    window: int
    slots: int


def engine_spec(engine: Engine) -> EngineSpec:
    """Return the description of an engine."""
    return EngineSpec(engine.name, engine.model_dump(), CommandContext.here())
