"""Prints the results of commands on standard output, and notes on standard error."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from instructgen.errors import InputError
from instructgen.printable import printable

if TYPE_CHECKING:
    from instructgen.store import RejectionCount

F = TypeVar("F", bound=Callable[..., Any])

screen = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def json_option(command: F) -> F:
    """Add the option --json, which prints the result as JSON, to a click command."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(
        command
    )


def quiet_option(command: F) -> F:
    """Add the option --quiet, which hides the progress display, to a click command."""
    return click.option("--quiet", "-q", is_flag=True, help="Do not show progress.")(command)


def print_json(value: Any) -> None:
    """Print a result as JSON on standard output.

    Raises:
        InputError: lists or objects in the result are nested too deeply for Python.
    """
    # Unlike orjson, json can write the tools of a row that are nested deeply.
    ascii_only = (sys.stdout.encoding or "utf-8").lower() not in ("utf-8", "utf8")
    try:
        text = json.dumps(_plain(value), indent=2, ensure_ascii=ascii_only)
    except RecursionError:
        message = "the result cannot be printed as JSON, because it is nested too deeply."
        raise InputError(message, hint="Omit --json.") from None
    sys.stdout.write(f"{text}\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Path | str):
        # A file name may contain bytes that are not UTF-8.
        return str(value).encode("utf-8", "replace").decode()
    if hasattr(value, "_asdict"):
        return {k: _plain(v) for k, v in value._asdict().items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    # JSON has no number for infinity.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_unchanged(result: Any) -> None:
    """Print a line if the output already existed, so that the command wrote nothing."""
    if result.unchanged:
        screen.print("already made, unchanged")


def print_note(text: str) -> None:
    """Print a note on standard error."""
    err.print(f"[yellow]note:[/] {safe(text)}")


def print_rejections(rejections: Sequence[RejectionCount]) -> None:
    """Print a table with the number of rejected rows for each stage, filter and reason."""
    table = Table("stage", "filter", "reason", "rejected", box=None, header_style="dim")
    for r in rejections:
        table.add_row(safe(r.stage), safe(r.filter), safe(r.reason), f"{r.count:,}")
    if rejections:
        screen.print(table)


def print_row(instruction: str, input_: str, output: str) -> None:
    """Print the instruction, input and output of a row on one line each, without empty input."""
    screen.print(f"[bold]{short(instruction)}[/]")
    if input_:
        screen.print(f"  [dim]input[/]   {short(input_)}")
    screen.print(f"  [dim]output[/]  {short(output)}\n")


def safe(text: object) -> str:
    """Return a text with control characters replaced, and with the markup of rich escaped."""
    return escape(printable(str(text)))


def short(text: str) -> str:
    """Return a text as one line, truncated to 100 characters, then escaped as in `safe`."""
    line = " ".join(printable(text).split())
    return escape(line if len(line) <= 100 else line[:99] + "…")


def duration(seconds: float) -> str:
    """Return a duration as text with a suitable unit, such as ``90 s``, ``5 min`` or ``2.5 h``."""
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
