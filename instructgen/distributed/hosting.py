"""What a replica in another process gets: a description of its engine, which it then runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructgen.engines import Engine
from instructgen.plugins import find, load_plugin, loaded_files


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """The name and the options of an engine, and the plug-in files that the user has loaded."""

    name: str
    options: dict[str, Any]
    plugins: tuple[Path, ...]

    def build(self) -> Engine:
        """Return the engine.

        Raises:
            ConfigError: a plug-in file does not exist on this machine.
        """
        for file in self.plugins:
            load_plugin(file)
        engine: Engine = find("engines", self.name).model_validate(self.options)
        return engine


@dataclass(frozen=True, slots=True)
class Ready:
    """An engine has started: its window and its slots."""

    window: int
    slots: int


def engine_spec(engine: Engine) -> EngineSpec:
    """Return the description of an engine."""
    return EngineSpec(engine.name, engine.model_dump(), loaded_files())
