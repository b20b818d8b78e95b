"""Write docs/commands.md from the definitions of the commands: python docs/reference.py

A test compares the file with the output of `reference`, so the two never differ.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import click

from instructgen.cli import cli
from instructgen.pipeline.command import run

FILE = Path(__file__).with_name("commands.md")
ORDER = (
    "run", "generate", "preview", "explain", "rebuild", "import", "merge", "curate", "dedup",
    "export", "publish", "report", "train", "evaluate", "ablate", "prefer", "chat",
)  # fmt: skip


def reference() -> str:
    """Return the reference of all commands as Markdown."""
    commands = {**cli.commands, "run": run}
    if sorted(commands) != sorted(ORDER):
        raise SystemExit("ORDER in docs/reference.py must list exactly the existing commands.")
    parts = [
        "# Commands",
        "",
        "`python docs/reference.py` generates this page from the code. Every command has `--help`",
        "(or `-h`), `--json` (print the result as JSON on standard output) and `--quiet` (no",
        "progress). Messages go to standard error, in color unless `NO_COLOR` is set.",
        "",
        "To complete commands and options in bash (also `zsh_source` and `fish_source`):",
        "",
        "```",
        'eval "$(_INSTRUCTGEN_COMPLETE=bash_source instructgen)"',
        "```",
        "",
        "| exit code | meaning |",
        "| --- | --- |",
        "| 0 | finished |",
        "| 1 | stopped by the engine, the disk or a bug; rerun the same command to resume |",
        "| 2 | invalid input or options; existing data is kept |",
        "| 3 | ended before the target: a budget, or too few candidates were accepted |",
        "| 130 | interrupted; rerun the same command to resume |",
        "",
    ]
    for name in ORDER:
        parts += _section(name, commands[name])
    return "\n".join(parts)


def _section(name: str, command: click.Command) -> list[str]:
    context = click.Context(command, info_name=f"instructgen {name}")
    usage = command.get_usage(context).removeprefix("Usage: ")
    about, _, examples = inspect.cleandoc(command.help or "").partition("\b\n")
    lines = [f"## {name}", "", "```", " ".join(usage.split()), "```", "", about.strip(), ""]
    if examples:
        shown = [line.removeprefix("  ") for line in examples.splitlines()[1:] if line.strip()]
        lines += ["```", *shown, "```", ""]
    records = [p.get_help_record(context) for p in command.get_params(context)]
    options = [(left, right) for record in records if record for left, right in [record]]
    lines += ["| option | description |", "| --- | --- |"]
    lines += [f"| `{_cell(left)}` | {_cell(right)} |" for left, right in options if right]
    return [*lines, ""]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    FILE.write_text(reference(), encoding="utf-8")
    sys.stdout.write(f"{FILE}\n")
