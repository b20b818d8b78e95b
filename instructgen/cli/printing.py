"""What the commands print with: two consoles, and text made safe for them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from instructgen.printable import printable

F = TypeVar("F", bound=Callable[..., Any])

screen = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def json_option(command: F) -> F:
    """The option --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(
        command
    )


def quiet_option(command: F) -> F:
    """The option --quiet."""
    return click.option("--quiet", "-q", is_flag=True, help="No progress.")(command)


def on_bad_row_option(command: F) -> F:
    """The option --on-bad-row."""
    return click.option(
        "--on-bad-row",
        type=click.Choice(["fail", "reject"]),
        default="fail",
        show_default=True,
        help="What a row that cannot be used does.",
    )(command)


def endpoint_option(command: F) -> F:
    """The option --endpoint."""
    return click.option(
        "--endpoint",
        metavar="URL",
        help="The openai engine's server, which gets the key.  [default: OPENAI_BASE_URL]",
    )(command)


def pairs_in(example: str) -> Callable[..., dict[str, str]]:
    """The callback of a repeatable option of the form NAME=VALUE, as in ``example``."""

    def parse(
        _ctx: click.Context, option: click.Parameter, values: tuple[str, ...]
    ) -> dict[str, str]:
        found = {}
        for value in values:
            name, equals, said = value.partition("=")
            if not (name and equals and said):
                raise click.BadParameter(f"{value!r} is not {option.metavar}, as in {example}.")
            found[name] = said
        return found

    return parse


def print_json(value: Any) -> None:
    """A result as JSON, for other programs."""
    sys.stdout.write(orjson.dumps(_plain(value), option=orjson.OPT_INDENT_2).decode() + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Path | str):
        # A name may hold bytes that are no UTF-8.
        return str(value).encode("utf-8", "replace").decode()
    if hasattr(value, "_asdict"):
        return {k: _plain(v) for k, v in value._asdict().items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def print_unchanged(result: Any) -> None:
    """Say that a command had nothing to do."""
    if result.unchanged:
        screen.print("already made, unchanged")


def print_funnel(funnel: Sequence[Mapping[str, Any]]) -> None:
    """Rejections by stage, filter and reason."""
    table = Table("stage", "filter", "reason", "rejected", box=None, header_style="dim")
    for r in funnel:
        table.add_row(r["stage"], r["filter"], r["reason"], f"{r['count']:,}")
    if funnel:
        screen.print(table)


def print_row(instruction: str, given: str, output: str) -> None:
    """A row in short."""
    screen.print(f"[bold]{short(instruction)}[/]")
    if given:
        screen.print(f"  [dim]input[/]   {short(given)}")
    screen.print(f"  [dim]output[/]  {short(output)}\n")


def indented(text: str, by: int = 2) -> str:
    """Text on lines of its own."""
    return escape(printable(text)).replace("\n", "\n" + " " * by)


def short(text: str) -> str:
    """Text on one line, and cut."""
    line = " ".join(printable(text).split())
    return escape(line if len(line) <= 100 else line[:99] + "…")


def duration(seconds: float) -> str:
    """A time as people say it."""
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
