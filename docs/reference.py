"""Writes docs/commands.md and docs/parts.md from the code: python docs/reference.py

A test compares the files with the output of these functions, so that they always agree.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import click

from instructgen.cli import cli
from instructgen.cli.flags import OptionsCommand, help_text
from instructgen.commands.interface import facts_of
from instructgen.commands.parts import GROUPS, PartDescription, describe_parts
from instructgen.pipeline.command import run

COMMANDS = Path(__file__).with_name("commands.md")
PARTS = Path(__file__).with_name("parts.md")
ORDER = (
    "run", "generate", "preview", "explain", "rebuild", "snapshot", "import", "merge", "curate",
    "dedup", "export", "publish", "report", "train", "evaluate", "ablate", "prefer", "chat",
    "filters", "methods", "engines", "formats", "verifiers", "suites", "trainers",
)  # fmt: skip


def commands() -> str:
    """Return the reference of all commands as Markdown."""
    known = {**cli.commands, "run": run}
    if sorted(known) != sorted(ORDER):
        raise SystemExit("ORDER in docs/reference.py does not list all commands.")
    parts = [
        "# Commands",
        "",
        "Generated from the code by `python docs/reference.py`. All commands have `--help` (`-h`)",
        "and `--json`, which prints the result as JSON on standard output. Most have `--quiet`,",
        "which hides the progress, and `--plugin FILE`, which loads code of your own. Messages go",
        "to standard error, in color unless `NO_COLOR` is set. Shell completion of commands and",
        "options, for bash (also `zsh_source` and `fish_source`):",
        "",
        "```",
        'eval "$(_INSTRUCTGEN_COMPLETE=bash_source instructgen)"',
        "```",
        "",
        "| exit code | meaning |",
        "| --- | --- |",
        "| 0 | done |",
        "| 1 | the engine, the disk or a defect stopped the command; rerun it to resume |",
        "| 2 | invalid input or options; existing files are unchanged |",
        "| 3 | ended before its target: a budget, or too few rows were accepted |",
        "| 130 | interrupted; rerun the command to resume |",
        "",
    ]
    for name in ORDER:
        parts += _command(name, known[name])
    return "\n".join(parts)


def _command(name: str, command: click.Command) -> list[str]:
    context = click.Context(command, info_name=f"instructgen {name}")
    usage = command.get_usage(context).removeprefix("Usage: ")
    about, _, examples = inspect.cleandoc(command.help or "").partition("\b\n")
    lines = [f"## {name}", "", "```", " ".join(usage.split()), "```", "", about.strip(), ""]
    if examples:
        shown = [line.removeprefix("  ") for line in examples.splitlines()[1:] if line.strip()]
        lines += ["```", *shown, "```", ""]
    options = command.options if isinstance(command, OptionsCommand) else None
    fields = [] if options is None else list(options.model_fields.values())
    arguments = [
        (str(facts_of(f)["metavar"]), help_text(f)) for f in fields if facts_of(f).get("argument")
    ]
    records = [p.get_help_record(context) for p in command.params]
    flags = [record for record in records if record and record[1]]
    flags.append(("-h, --help", "Show this message and exit."))
    lines += ["| option | description |", "| --- | --- |"]
    lines += [f"| `{_cell(left)}` | {_cell(right)} |" for left, right in (*arguments, *flags)]
    return [*lines, ""]


def parts() -> str:
    """Return the reference of all filters, methods, engines and other parts as Markdown."""
    lines = [
        "# Filters, methods, engines, formats, verifiers, suites, trainers",
        "",
        "Generated from the code by `python docs/reference.py`. `instructgen filters` and its",
        "like print the same, for the parts that are installed on your machine.",
        "",
        *(f"- [{group.capitalize()}](#{group})" for group in GROUPS),
        "",
    ]
    for group in GROUPS:
        lines += [f"## {group.capitalize()}", ""]
        for part in describe_parts(group):
            lines += _part(part)
    return "\n".join(lines)


def _part(part: PartDescription) -> list[str]:
    lines = [f"### {part.name}", "", part.about, ""]
    if part.stages:
        lines += [f"It {part.stages}.", ""]
    if part.row:
        lines += ["A row:", "", "```json", part.row, "```", ""]
    lines += ["```", part.example, "```", ""]
    if not part.options:
        return lines
    rows = [
        f"| `{option.name}` | {_cell(option.type)} | "
        f"{f'`{_cell(option.default)}`' if option.default else ''} | {_cell(option.about)} |"
        for option in part.options
    ]
    return [
        *lines,
        "| option | type | default | description |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
    ]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    for file, text in ((COMMANDS, commands()), (PARTS, parts())):
        file.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{file}\n")
