"""The commands for generation runs, such as `generate`, and `explain` for rows."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from instructgen.cli.flags import OptionsCommand, takes
from instructgen.cli.printing import (
    duration,
    err,
    json_option,
    print_json,
    print_note,
    print_rejections,
    print_row,
    print_unchanged,
    quiet_option,
    safe,
    screen,
)
from instructgen.commands.options import (
    ExplainOptions,
    GenerateOptions,
    PreviewOptions,
    RebuildOptions,
    SnapshotOptions,
)
from instructgen.printable import printable

if TYPE_CHECKING:
    from instructgen.commands.generate import GenerateResult
    from instructgen.commands.preview import Forecast

_LOADING = "loading the model ..."


@click.command(cls=OptionsCommand)
@takes(GenerateOptions)
@click.option(
    "--show",
    default=0,
    type=click.IntRange(min=0),
    metavar="N",
    help="Print the first N generated rows when the command ends.",
)
@quiet_option
@json_option
def generate(options: GenerateOptions, show: int, quiet: bool, as_json: bool) -> None:
    """Generate a dataset from seed tasks with a language model, or resume a stopped run.

    \b
    Examples:
      instructgen generate --seeds seeds/general.jsonl --target 200 --out runs/a
      instructgen generate --seeds dolly.jsonl --target 1000 --out runs/dolly --model my/model
    """
    from instructgen.cli.progress import watching
    from instructgen.commands.generate import generate

    with watching(err, show=not quiet and not as_json, first=_LOADING) as watch:
        result = generate.run(options, watch)
    if show and not as_json:
        from itertools import islice

        from instructgen.store import read_rows

        for row in islice(read_rows(options.out), show):
            print_row(row["instruction"], row["input"], row["output"])
    _print_result(result, as_json)
    if result.facts.stopped != ("inputs_exhausted" if result.target == "all" else "target"):
        sys.exit(3)


@click.command(cls=OptionsCommand)
@takes(PreviewOptions)
@quiet_option
@json_option
def preview(options: PreviewOptions, quiet: bool, as_json: bool) -> None:
    """Generate a few rows, print them, and estimate time and tokens of --target rows.

    No files are written.

    \b
    Example:
      instructgen preview --seeds seeds/general.jsonl --target 5000
    """
    from instructgen.cli.progress import watching
    from instructgen.commands.preview import preview

    with watching(err, show=not quiet and not as_json, first=_LOADING) as watch:
        forecast = preview.run(options, watch)
    _print_forecast(forecast, as_json)


@click.command(cls=OptionsCommand)
@takes(ExplainOptions)
@quiet_option
@json_option
def explain(options: ExplainOptions, quiet: bool, as_json: bool) -> None:
    """Show where a row comes from, and why it was kept or rejected.

    \b
    Example:
      instructgen explain runs/a 3f2a9c0d11e84b57
    """
    from instructgen.cli.progress import watching
    from instructgen.commands.explain import explain

    # Replaying a long journal takes time.
    with watching(err, show=not quiet and not as_json) as watch:
        explanation = explain.run(options, watch)
    if as_json:
        return print_json(explanation)
    screen.print(printable(str(explanation)), markup=False)
    return None


@click.command(cls=OptionsCommand)
@takes(RebuildOptions)
@quiet_option
@json_option
def rebuild(options: RebuildOptions, quiet: bool, as_json: bool) -> None:
    """Recreate the dataset of a run from its recorded completions, without a language model.

    \b
    Example:
      instructgen rebuild runs/a
    """
    from instructgen.cli.progress import watching
    from instructgen.commands.generate import rebuild

    with watching(err, show=not quiet and not as_json, first="reading ...") as watch:
        result = rebuild.run(options, watch)
    _print_result(result, as_json)


@click.command(cls=OptionsCommand)
@takes(SnapshotOptions)
@quiet_option
@json_option
def snapshot(options: SnapshotOptions, quiet: bool, as_json: bool) -> None:
    """Write a dataset with the rows that a run has so far, also while it is in progress.

    \b
    Example:
      instructgen snapshot runs/a
    """
    from instructgen.cli.progress import watching
    from instructgen.commands.snapshot import snapshot

    with watching(err, show=not quiet and not as_json, first="reading ...") as watch:
        result = snapshot.run(options, watch)
    if as_json:
        return print_json(result)
    screen.print(f"[bold]{result.rows:,} rows[/] so far; {safe(result.facts.stopped_detail)}.")
    screen.print(f"dataset  {safe(result.parts[0])}")
    screen.print(f"card     {safe(result.card)}")
    return None


def _print_result(result: GenerateResult, as_json: bool) -> None:
    if as_json:
        return print_json(result)
    print_unchanged(result)
    if result.healed:
        err.print(safe(result.healed))
    if result.invalid_seeds:
        screen.print(f"{result.invalid_seeds:,} seed rows are invalid and were not used.")
    facts = result.facts
    rejected = facts.candidates - facts.kept_instructions - facts.kept_rows
    screen.print(
        f"[bold]{result.rows:,} rows[/] from {facts.candidates:,} candidates "
        f"({facts.kept_instructions:,} instructions accepted, {rejected:,} "
        f"rejected); {facts.not_expanded:,} accepted instructions have no row yet; "
        f"{safe(facts.stopped_detail)}."
    )
    print_rejections(result.rejections)
    if result.asked:
        screen.print(
            f"{facts.prompt_tokens:,} prompt and {facts.output_tokens:,} output tokens; "
            f"{result.tokens_per_s:,.0f} output tokens/s; {result.slots_busy:.0%} of the slots "
            f"in use, {result.mean_in_flight:,.1f} requests in flight"
            + (f", {result.restarts} engine restarts" if result.restarts else "")
            + "."
        )
    for note in (result.hint, *result.warnings):
        if note:
            print_note(note)
    screen.print(f"dataset  {safe(result.parts[0])}")
    screen.print(f"card     {safe(result.card)}")
    return None


def _print_forecast(f: Forecast, as_json: bool) -> None:
    if as_json:
        return print_json(f)
    for shown in f.prompts:
        screen.print(f"[bold]prompt of the stage {safe(shown.stage)}[/]")
        screen.print(safe(shown.prompt))
        screen.print("[bold]completion[/]")
        screen.print(safe(shown.completion))
    for sample in f.rows:
        print_row(sample.instruction, sample.input, sample.output)
    screen.print(
        f"{f.requests} requests: {f.candidates:,} candidates, {f.kept_instructions:,} instructions "
        f"and {f.kept_rows:,} rows accepted ({f.acceptance:.0%} of the candidates; "
        f"{f.duplicates:.0%} of the new instructions were too similar to earlier ones), "
        f"{f.output_tokens_per_s:,.0f} output tokens/s."
    )
    if f.seconds is None or f.prompt_tokens is None or f.output_tokens is None:
        screen.print("Too few rows were accepted for a forecast. Try a different model or recipe.")
        return None
    screen.print(
        f"For {f.target:,} rows: about {duration(f.seconds)}, {f.prompt_tokens:,} prompt and "
        f"{f.output_tokens:,} output tokens; at the end, {f.duplicates_at_target:.0%} of the new "
        "instructions will be too similar to earlier ones. This is a rough estimate from a few "
        "rows. Nothing was written."
    )
    return None
