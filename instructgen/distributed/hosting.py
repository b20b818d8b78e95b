"""What another process gets: where it comes from, and a description of the engine that it runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr

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


class HostedEngine(Engine):
    """Base class for engines that run elsewhere: in another process, or in an actor."""

    _model: Engine = PrivateAttr()
    _ready: Ready | None = PrivateAttr(None)

    def has_chat_template(self) -> bool:
        """Return whether the model has a chat template."""
        return self._model.has_chat_template()

    def window(self) -> int:
        """Return the number of requests that the engine elsewhere should have."""
        return self._model.window() if self._ready is None else self._ready.window

    def slots(self) -> int:
        """Return the number of requests that the engine elsewhere can work on."""
        return self._model.slots() if self._ready is None else self._ready.slots

    def restart(self) -> None:
        """Start the engine elsewhere again."""
        self.close()
        self.start()


def gpus_per_replica(model: Engine) -> int:
    """Return the number of GPUs that a replica of an engine needs."""
    return int(getattr(model, "tensor_parallel_size", 1))


def engine_spec(engine: Engine) -> EngineSpec:
    """Return the description of an engine."""
    return EngineSpec(engine.name, engine.model_dump(), CommandContext.here())
