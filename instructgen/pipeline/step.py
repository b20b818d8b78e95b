"""One step of a recipe, ready to be planned and run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a recipe, ready to be run.

    ``run`` and ``options`` are the recipe's own words, ``argv`` what one would type after
    ``instructgen``. ``values`` says what each word or text stands for, ``follows`` which
    earlier steps or inputs it reads, ``files`` the tables of its options that are written
    as files, ``params`` the command's parameters as it parses them.
    """

    name: str
    run: str
    options: Mapping[str, Any]
    argv: tuple[str, ...]
    out: Path
    values: Mapping[str, str] = field(default_factory=dict)
    follows: tuple[str, ...] = ()
    files: Mapping[Path, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """The command's name."""
        return self.argv[0]
