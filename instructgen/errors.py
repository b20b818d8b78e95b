"""Defines the errors that users can see. Each states what is wrong, where, and what to do next.

Most classes also inherit from a similar built-in exception, such as ValueError, so that Python code
that calls instructgen can catch either of the two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instructgen.printable import without_secrets


def quoted(value: Any, most: int = 80) -> str:
    """Return the repr of a value for an error message, truncated to ``most`` characters."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, without the final period."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (text if len(text) <= 200 else f"{text[:199]}…").rstrip(" .")


class InstructgenError(Exception):
    """Base class of all errors of instructgen.

    Args:
        message: what is wrong and where, in one line. Secrets are removed from it.
        hint: the next step for the user.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        message, hint = without_secrets(message), without_secrets(hint)
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    def __reduce__(self) -> tuple[Any, ...]:
        # Processes and clusters pass errors on, whatever the arguments of their classes.
        return _rebuilt, (type(self), self.args, vars(self))

    def translate(self, names: Mapping[str, str]) -> None:
        """Replace names in the message and the hint, such as flags with Python parameters.

        Args:
            names: a dict from old to new names. A flag with a value, ``--flag=value``, becomes
                ``flag="value"``.
        """
        for old, new in names.items():
            if old.startswith("--"):
                self.message = _renamed_flag(self.message, old, new)
                self.hint = _renamed_flag(self.hint, old, new)
            else:
                self.message = self.message.replace(old, new)
                self.hint = self.hint.replace(old, new)


def _rebuilt(
    kind: type[InstructgenError], args: tuple[Any, ...], values: dict[str, Any]
) -> InstructgenError:
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(values)
    return error


# A value in quotes, or up to white space or punctuation at its end.
_VALUE = r"('[^']*'|[^\s,;()]*(?:,[^\s,;()]+)*[\w\]])"


def _renamed_flag(text: str, flag: str, parameter: str) -> str:
    """Return the text with a flag, and its value if there is one, as a Python parameter."""

    def valued(match: re.Match[str]) -> str:
        quoted = match[1] if match[1].startswith("'") else f'"{match[1]}"'
        return f"{parameter}={quoted}"

    text = re.sub(rf"(?<!\w){re.escape(flag)}={_VALUE}", valued, text)
    return re.sub(rf"(?<!\w){re.escape(flag)}(?![\w-])", parameter, text)


class InputError(InstructgenError, ValueError):
    """A data file, or one row of it, cannot be used.

    Args:
        message: what is wrong.
        path: the file.
        line: the number of the line or row in the file, counted from 1.
        hint: the next step.
    """

    exit_code = 2

    def __init__(
        self, message: str, *, path: Path | None = None, line: int | None = None, hint: str = ""
    ) -> None:
        where = str(path) if path is not None else ""
        if line is not None:
            where = f"{where}, line {line}"
        super().__init__(f"{where}: {message}" if where else message, hint)
        self.path, self.line = path, line


class ConfigError(InstructgenError, ValueError):
    """An option or a recipe key is missing, unknown or out of range."""

    exit_code = 2


class RunError(InstructgenError, RuntimeError):
    """A run or dataset folder is in use or damaged, or was written with different settings."""

    exit_code = 2


class DamagedFileError(RunError):
    """A file in a run, dataset or model folder is unreadable, or was changed after writing.

    Args:
        message: what is wrong.
        path: the file.
        line: the line of the file, counted from 1.
        hint: the next step.
    """

    def __init__(
        self, message: str, *, path: Path, line: int | None = None, hint: str = ""
    ) -> None:
        where = path if line is None else f"{path}:{line}"
        super().__init__(f"{where}: {message}", hint or "Restore the file from a copy.")
        self.path, self.line = path, line


class VersionError(RunError):
    """A different version of instructgen wrote a folder, in a format that this one cannot read.

    Args:
        path: the file that contains the format number of the folder.
        found: the format number in the file.
        hint: the next step.
    """

    def __init__(self, path: Path, found: object, hint: str) -> None:
        super().__init__(
            f"{path} has format {found}, which this version of instructgen cannot read.", hint
        )
        self.path, self.found = path, found


class StorageError(InstructgenError, OSError):
    """A file cannot be written: the disk is full or read-only, or a permission is missing."""


class EngineError(InstructgenError, RuntimeError):
    """The engine that generates text cannot start or cannot continue."""


class EngineDied(EngineError):
    """The engine stopped before it completed all requests. Restarting it may help."""


class TrainingError(InstructgenError, RuntimeError):
    """Training cannot continue, or the trained model is invalid."""
