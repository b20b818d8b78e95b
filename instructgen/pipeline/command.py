"""The command-line interface of `run`: runs a pipeline, or prints which steps would run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from instructgen.cli.flags import OptionsCommand, takes
from instructgen.cli.printing import (
    duration,
    json_option,
    print_json,
    print_note,
    quiet_option,
    safe,
    screen,
)
from instructgen.commands.options import RunOptions

if TYPE_CHECKING:
    from instructgen.pipeline.plan import Planned
    from instructgen.schema.progress import Progress


def _pipelines(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    from instructgen.pipeline.definition import shipped_pipelines

    items = [CompletionItem(name) for name in shipped_pipelines() if name.startswith(typed)]
    return items or [CompletionItem(typed, type="file")]


@click.command(cls=OptionsCommand)
@click.argument("pipeline", metavar="NAME_OR_FILE", shell_complete=_pipelines)
@takes(RunOptions, "pipeline")
@click.option(
    "--dry-run", is_flag=True, help="Print which steps would run and why, and run none of them."
)
@quiet_option
@json_option
def run(options: RunOptions, dry_run: bool, quiet: bool, as_json: bool) -> None:
    """Run a pipeline, for example from seed tasks to a trained model; skip unchanged steps.

    Each step is one of the other commands. A step is skipped if its inputs, its options and the
    software versions have not changed. Rerun the same command to resume a pipeline that was
    stopped. The built-in pipelines are quickstart, dolly_expand and rlhf.

    \b
    Examples:
      instructgen run quickstart
      instructgen run quickstart --dry-run
      instructgen run dolly_expand --small --input dolly-15k=dolly.jsonl \\
          --input oasst1=oasst.jsonl --input alpaca-libre=libre.jsonl
    """
    from instructgen.pipeline.plan import plan
    from instructgen.pipeline.steps import run_steps, steps_of

    if dry_run:
        folder, steps = steps_of(options.pipeline, options.out, options.inputs, small=options.small)
        return _print_plan(plan(steps, folder), as_json)
    watch = None if quiet or as_json else _heading
    result = run_steps(options, watch, quiet=quiet or as_json)
    if as_json:
        print_json(result)
    else:
        ran = [step for step in result.steps if step.ran]
        screen.print(
            f"[bold]{len(ran)} of {len(result.steps)} steps were run[/] in "
            f"{duration(result.seconds)}; the outputs are in {safe(result.out)}"
        )
        for name in result.ended_early:
            print_note(f"the step {name} ended without reaching its target.")
    if result.ended_early:
        sys.exit(3)
    return None


def _heading(step: Progress) -> None:
    stage, why, *line = (safe(text) for text in (step.stage, *step.notes))
    if not line:
        screen.print(f"[dim]{step.done}/{step.total}  {stage}: {why}[/]")
        return
    screen.print(f"\n[bold]{step.done}/{step.total}  {stage}[/]: {why}\n[dim]{line[0]}[/]")


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
        f = p.forecast
        table.add_row(
            p.step.name,
            "run" if p.runs else "skip",
            safe(p.why),
            f"{duration(f.seconds)}, {f.basis}" if f else "" if not p.runs else "unknown",
            f"{f.tokens:,}" if f and f.tokens else "",
        )
    screen.print(table)
    for p in planned:
        if p.runs:
            line = shlex.join(["instructgen", *p.step.argv])
            screen.print(f"[dim]{safe(line)}[/]")
    known = [p.forecast.seconds for p in planned if p.forecast is not None]
    unknown = sum(p.runs and p.forecast is None for p in planned)
    screen.print(
        f"[bold]{sum(p.runs for p in planned)} of {len(planned)} steps[/] to run, about "
        f"{duration(sum(known))}"
        + (f", plus {unknown} steps of unknown duration" if unknown else "")
        + ". Nothing was run."
    )
    return None
