"""Writes docs/commands.md from the commands themselves: python docs/reference.py

A test compares the file with what this makes, so that the two never differ.
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
    """The whole reference, as Markdown."""
    commands = {**cli.commands, "run": run}
    if sorted(commands) != sorted(ORDER):
        raise SystemExit("ORDER in docs/reference.py names other commands than there are.")
    parts = [
        "# Commands",
        "",
        "Made from the code by `python docs/reference.py`. All commands have `--help`, `--json`",
        "(the result for programs, on standard output) and `--quiet` (no progress). Messages go",
        "to standard error, in colour unless `NO_COLOR` is set. `-h` is `--help`. Completion of",
        "commands and options, for bash (also `zsh_source` and `fish_source`):",
        "",
        "```",
        'eval "$(_INSTRUCTGEN_COMPLETE=bash_source instructgen)"',
        "```",
        "",
        "| exit code | means |",
        "| --- | --- |",
        "| 0 | done |",
        "| 1 | the engine, the disk or a defect stopped it; the same command goes on |",
        "| 2 | bad input or options; nothing that was there is lost |",
        "| 3 | ended before its target: a budget, or too little was worth keeping |",
        "| 130 | interrupted; the same command goes on |",
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
    lines += ["| option | what |", "| --- | --- |"]
    lines += [f"| `{_cell(left)}` | {_cell(right)} |" for left, right in options if right]
    return [*lines, ""]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    FILE.write_text(reference(), encoding="utf-8")
    sys.stdout.write(f"{FILE}\n")
