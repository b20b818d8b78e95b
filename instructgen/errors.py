"""Every error a user can meet, each with what, where and the next step.

Each class also inherits the built-in exception that it replaces, so that code
which calls instructgen as a library can catch either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def quoted(value: Any, most: int = 80) -> str:
    """A user's value as it stands in a message: on one line, and cut when it is long."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def first_line(error: BaseException) -> str:
    """What another library's error says, as part of a sentence of ours."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (text if len(text) <= 200 else f"{text[:199]}…").rstrip(" .")


class InstructgenError(Exception):
    """Root of the tree.

    Args:
        message: what is wrong and where, in one line.
        hint: the next step for the user.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class InputError(InstructgenError, ValueError):
    """A data file, or one row of it, cannot be used.

    Args:
        message: what is wrong.
        path: the file.
        line: its line or row, counted from 1.
        hint: the next step.
    """

    exit_code = 2

    def __init__(
        self, message: str, *, path: Path | None = None, line: int | None = None, hint: str = ""
    ) -> None:
        where = str(path) if path is not None else ""
        if line is not None:
            where = f"{where} line {line}"
        super().__init__(f"{where}: {message}" if where else message, hint)
        self.path, self.line = path, line


class ConfigError(InstructgenError, ValueError):
    """An option or a recipe key is missing, unknown or out of range."""

    exit_code = 2


class RunError(InstructgenError, RuntimeError):
    """A run folder cannot be used: locked, damaged, or made with other settings."""

    exit_code = 2


class StorageError(InstructgenError, OSError):
    """The disk refused a write: full, read-only, or no permission."""


class EngineError(InstructgenError, RuntimeError):
    """The engine cannot start, or cannot go on."""


class EngineDied(EngineError):
    """The engine's process ended while requests were under way; a restart may help."""


class TrainingError(InstructgenError, RuntimeError):
    """Training cannot go on, or what it made is not what it should be."""
