"""The command run: a recipe from seeds to a trained model, or its plan."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem
from rich.markup import escape

from instructgen.cli.printing import (
    duration,
    err,
    json_option,
    pairs_in,
    print_json,
    quiet_option,
    screen,
)
from instructgen.printable import printable

if TYPE_CHECKING:
    from instructgen.pipeline.plan import Planned
    from instructgen.schema.progress import Progress


def _recipes(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
    from instructgen.pipeline.recipe import shipped_recipes

    found = [CompletionItem(name) for name in shipped_recipes() if name.startswith(begun)]
    return found or [CompletionItem(begun, type="file")]


@click.command()
@click.argument("recipe", metavar="NAME_OR_FILE", shell_complete=_recipes)
@click.option(
    "--out", type=click.Path(path_type=Path), help="A folder for it all.  [default: runs/NAME]"
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    callback=pairs_in("dolly-15k=dolly.jsonl"),
    metavar="NAME=PATH",
    help="Where an input of the recipe is, if not where it says.",
)
@click.option("--limit", is_flag=True, help="The recipe's small form, which a CPU runs.")
@click.option("--dry-run", is_flag=True, help="Print what would be run and why; run nothing.")
@quiet_option
@json_option
def run(
    recipe: str,
    out: Path | None,
    inputs: dict[str, str],
    limit: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run a recipe from seeds to a trained model, or what has changed since.

    A step is one of these commands, and is skipped when its inputs, options and versions
    are those of its last run. Stopped or killed, the same command goes on. Shipped recipes
    are quickstart, dolly_expand and rlhf.

    \b
    Examples:
      instructgen run quickstart
      instructgen run quickstart --dry-run
      instructgen run dolly_expand --limit --input dolly-15k=dolly.jsonl \\
          --input oasst1=oasst.jsonl --input alpaca-libre=libre.jsonl
    """
    from instructgen.pipeline.plan import plan
    from instructgen.pipeline.steps import run as run_steps
    from instructgen.pipeline.steps import steps_of

    if dry_run:
        folder, steps = steps_of(recipe, out, inputs, limit=limit)
        return _print_plan(plan(steps, folder), as_json)
    watch = None if quiet or as_json else _heading
    ran = run_steps(recipe, out, inputs=inputs, limit=limit, quiet=quiet or as_json, watch=watch)
    if as_json:
        print_json(ran)
    else:
        done = [step for step in ran.steps if step["ran"]]
        screen.print(
            f"[bold]{len(done)} of {len(ran.steps)} steps run[/] in "
            f"{duration(sum(step['seconds'] for step in done))}; all of it is in "
            f"{escape(printable(str(ran.out)))}"
        )
        for name in ran.ended_early:
            err.print(f"[yellow]note:[/] the step {name} ended before its target.")
    if ran.ended_early:
        sys.exit(3)
    return None


def _heading(step: Progress) -> None:
    why, *line = (escape(printable(note)) for note in step.notes)
    if not line:
        screen.print(f"[dim]{step.done}/{step.total}  {step.stage}: {why}[/]")
        return
    screen.print(f"\n[bold]{step.done}/{step.total}  {step.stage}[/]: {why}\n[dim]{line[0]}[/]")


def _print_plan(planned: Sequence[Planned], as_json: bool) -> None:
    if as_json:
        steps = [
            {
                "name": p.step.name,
                "command": p.step.command,
                "argv": ["instructgen", *p.step.argv],
                "runs": p.runs,
                "why": p.why,
                "forecast": p.forecast,
            }
            for p in planned
        ]
        return print_json({"steps": steps})
    from rich.table import Table

    table = Table("step", "", "why", "time", "tokens", box=None, header_style="dim")
    for p in planned:
        told = p.forecast
        table.add_row(
            p.step.name,
            "run" if p.runs else "skip",
            escape(printable(p.why)),
            f"{duration(told.seconds)}, {told.basis}" if told else "" if not p.runs else "unknown",
            f"{told.tokens:,}" if told and told.tokens else "",
        )
    screen.print(table)
    for p in planned:
        if p.runs:
            line = shlex.join(["instructgen", *p.step.argv])
            screen.print(f"[dim]{escape(printable(line))}[/]")
    known = [p.forecast.seconds for p in planned if p.forecast is not None]
    unknown = sum(p.runs and p.forecast is None for p in planned)
    screen.print(
        f"[bold]{sum(p.runs for p in planned)} of {len(planned)} steps[/] to run, about "
        f"{duration(sum(known))}"
        + (f" and {unknown} steps of which nothing is known" if unknown else "")
        + ". Nothing was run."
    )
    return None
