"""The commands that list and describe installed plug-ins, such as `filters` and `engines`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from instructgen.cli.flags import plugin_option
from instructgen.cli.printing import json_option, print_json, safe, screen

if TYPE_CHECKING:
    from instructgen.commands.parts import PartDescription

_GROUPS = ("filters", "methods", "engines", "formats", "verifiers", "suites", "trainers")


def _command(group: str) -> click.Command:
    @click.command(
        group,
        help=f"List the {group}, or describe one by NAME, with its options and an example.\n\n"
        f"\b\nExample:\n  instructgen {group}",
    )
    @click.argument("name", required=False)
    @plugin_option
    @json_option
    def show(name: str | None, as_json: bool) -> None:
        from instructgen.commands.parts import describe_part, describe_parts

        described: Any = describe_parts(group) if name is None else describe_part(group, name)
        if as_json:
            print_json(described)
        elif name is None:
            _print_list(described)
        else:
            _print_part(described)

    return show


def _print_list(parts: list[PartDescription]) -> None:
    width = max(len(part.name) for part in parts)
    for part in parts:
        first = part.about.split("\n\n")[0].replace("\n", " ")
        screen.print(f"[bold]{safe(part.name.ljust(width))}[/]  {safe(first)}")
        for more in (part.row, part.stages):
            if more:
                screen.print(f"{' ' * width}  [dim]{safe(more)}[/]")


def _print_part(part: PartDescription) -> None:
    screen.print(f"[bold]{safe(part.name)}[/]\n\n{safe(part.about)}")
    if part.stages:
        screen.print(f"\nIt {safe(part.stages)}.")
    if part.options:
        screen.print("\nOptions")
        for option in part.options:
            default = f", default {option.default}" if option.default else ""
            screen.print(f"  [bold]{safe(option.name)}[/] ({safe(option.type + default)})")
            screen.print(f"      {safe(option.about)}")
    if part.row:
        screen.print(f"\nRow\n{safe(_indented(part.row))}")
    screen.print(f"\nExample\n{safe(_indented(part.example))}")


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


COMMANDS = [_command(group) for group in _GROUPS]
