"""The commands that make and look at runs: generate, preview, rebuild, explain."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from instructgen.cli.printing import (
    F,
    duration,
    endpoint_option,
    err,
    indented,
    json_option,
    on_bad_row_option,
    print_funnel,
    print_json,
    print_row,
    print_unchanged,
    quiet_option,
    screen,
    short,
)
from instructgen.printable import printable

if TYPE_CHECKING:
    from instructgen.commands.explain import Explanation
    from instructgen.commands.explain_row import RowExplanation
    from instructgen.commands.generate import GenerateResult
    from instructgen.commands.preview import Forecast


def _run_options(command: F) -> F:
    """The options that generate and preview share."""
    for option in reversed(
        [
            click.option(
                "--seeds",
                multiple=True,
                required=True,
                type=click.Path(path_type=Path),
                metavar="FILE",
                help="Seed tasks (ours, Dolly, Alpaca, Self-Instruct) or a dataset; repeatable.",
            ),
            click.option("--target", type=int, required=True, help="Accepted rows to make."),
            click.option(
                "--model", metavar="NAME", help="A folder, a Hub name, or smollm2 (embedded)."
            ),
            click.option(
                "--engine",
                metavar="NAME",
                help="vllm, openai, transformers or echo.  [default: vllm]",
            ),
            endpoint_option,
            click.option(
                "--method",
                metavar="NAME",
                help="self_instruct or alpaca.  [default: self_instruct]",
            ),
            click.option(
                "--recipe",
                default="default",
                show_default=True,
                metavar="NAME_OR_FILE",
                help="Filters and settings: default, self_instruct, alpaca, or a TOML file.",
            ),
            click.option("--license", default="", metavar="SPDX", help="Of seeds that name none."),
            click.option("--language", default="", metavar="CODE", help="Of seeds that name none."),
            on_bad_row_option,
            click.option("--seed", type=int, help="What all randomness comes from.  [default: 0]"),
            click.option(
                "--batch-size",
                type=int,
                help="Requests in a batch; eight batches are in flight.  [default: 32]",
            ),
            click.option("--max-tokens-total", type=int, help="Stop after this many tokens."),
            quiet_option,
            json_option,
        ]
    ):
        command = option(command)
    return command


@click.command()
@_run_options
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The run's folder.")
@click.option(
    "--show",
    default=0,
    type=click.IntRange(min=0),
    metavar="N",
    help="Print the first N rows at the end.",
)
def generate(out: Path, show: int, as_json: bool, quiet: bool, **options: Any) -> None:
    """Expand seed tasks into a dataset, or go on with a run that was stopped.

    \b
    Examples:
      instructgen generate --seeds seeds/general.jsonl --target 200 --out runs/a
      instructgen generate --seeds dolly.jsonl --target 1000 --out runs/dolly --model my/model
    """
    from instructgen.cli.progress import watching
    from instructgen.commands.generate import generate as run

    with watching(err, show=not quiet and not as_json, first="loading the model ...") as watch:
        result = run(out=out, watch=watch, **options)
    if show and not as_json:
        from itertools import islice

        from instructgen.store import read_rows

        for row in islice(read_rows(out), show):
            print_row(row["instruction"], row["input"], row["output"])
    _print_result(result, as_json)
    if result.stopped.reason != "target":
        sys.exit(3)


@click.command()
@_run_options
def preview(as_json: bool, quiet: bool, **options: Any) -> None:
    """Run a few batches, show their rows and forecast the rest. Keeps nothing.

    \b
    Example:
      instructgen preview --seeds seeds/general.jsonl --target 5000
    """
    from instructgen.cli.progress import watching
    from instructgen.commands.preview import preview as run

    with watching(err, show=not quiet and not as_json, first="loading the model ...") as watch:
        forecast = run(watch=watch, **options)
    _print_forecast(forecast, as_json)


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("row_id")
@quiet_option
@json_option
def explain(out: Path, row_id: str, quiet: bool, as_json: bool) -> None:
    """Show where a row comes from and why it was kept, or why it was rejected.

    \b
    Example:
      instructgen explain runs/a 3f2a9c0d11e84b57
    """
    from instructgen.cli.progress import watching
    from instructgen.commands.explain import explain as run
    from instructgen.commands.explain_row import RowExplanation

    # It may have to go through a whole journal.
    with watching(err, show=not quiet and not as_json):
        found = run(out, row_id)
    if as_json:
        return print_json(found)
    if isinstance(found, RowExplanation):
        return _print_row_explanation(found)
    return _print_explanation(found)


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@quiet_option
@json_option
def rebuild(out: Path, quiet: bool, as_json: bool) -> None:
    """Make a run's dataset again from its journal, without an engine.

    \b
    Example:
      instructgen rebuild runs/a
    """
    from instructgen.cli.progress import watching
    from instructgen.commands.generate import rebuild as run

    with watching(err, show=not quiet and not as_json, first="loading the model ...") as watch:
        result = run(out, watch=watch)
    _print_result(result, as_json)


def _print_result(result: GenerateResult, as_json: bool) -> None:
    if as_json:
        return print_json(result)
    print_unchanged(result)
    if result.healed:
        err.print(escape(result.healed))
    if result.bad_seed_rows:
        screen.print(f"{result.bad_seed_rows:,} seed rows could not be used and were left out.")
    funnel = result.funnel
    screen.print(
        f"[bold]{result.rows:,} rows[/] from {funnel['candidates']:,} candidates "
        f"({funnel['kept_instructions']:,} instructions entered the pool, "
        f"{funnel['candidates'] - funnel['kept_instructions'] - funnel['kept_rows']:,} were "
        f"rejected, {funnel['not_expanded']:,} instructions have no rows yet); "
        f"{result.stopped.detail}."
    )
    print_funnel(funnel["rejected"])
    if result.asked:
        screen.print(
            f"{result.prompt_tokens:,} prompt and {result.output_tokens:,} output tokens; "
            f"{result.tokens_per_s:,.0f} output tokens/s, engine idle {result.idle_share:.1%}"
            + (f", {result.restarts} restarts" if result.restarts else "")
            + "."
        )
    screen.print(f"dataset  {escape(printable(result.parts[0]))}")
    screen.print(f"card     {escape(printable(result.card))}")
    return None


def _print_forecast(f: Forecast, as_json: bool) -> None:
    if as_json:
        return print_json(f)
    for sample in f.rows:
        print_row(sample.instruction, sample.input, sample.output)
    screen.print(
        f"{f.batches} batches: {f.candidates:,} candidates, {f.kept_instructions:,} instructions "
        f"and {f.kept_rows:,} rows kept ({f.acceptance:.0%} acceptance, {f.duplicates:.0%} of the "
        f"new instructions too similar), {f.output_tokens_per_s:,.0f} output tokens/s."
    )
    if f.seconds is None or f.prompt_tokens is None or f.output_tokens is None:
        screen.print("Too little was kept to forecast from: try another model or recipe.")
        return None
    screen.print(
        f"For {f.target:,} rows: about {duration(f.seconds)}, {f.prompt_tokens:,} prompt and "
        f"{f.output_tokens:,} output tokens; at the end {f.duplicates_at_target:.0%} of new "
        "instructions too similar. A rough guess from a few batches. Nothing was kept."
    )
    return None


def _print_explanation(e: Explanation) -> None:
    row = e.row
    _print_verdict(e.id, e.verdict, row)
    o = row["origin"]
    seed = e.verdict == "a seed"
    came = [f"method {o['method']}"]
    came += [f"source {row['source']}"] if seed else [f"model {o['model']}", f"run {o['run']}"]
    came += [f"licence {row['license']}", f"language {row['language']}"]
    screen.print(f"[dim]origin[/]  {escape(printable(', '.join(came)))}")
    if seed:
        return
    screen.print("[dim]parents[/]")
    for parent, text in e.parents:
        screen.print(f"  {parent}  {short(text)}")
    screen.print(f"[dim]filters passed[/]  {', '.join(e.passed) or 'none'}")
    if e.nearest:
        screen.print(
            f"[dim]nearest[/]  ROUGE-L {e.nearest.rouge_l:.3f}  {e.nearest.id}  "
            f"{short(e.nearest.instruction)}"
        )
    for w in e.written:
        screen.print(
            f"[dim]{w.stage}[/]  batch {w.batch}, request {w.request}, {w.prompt_tokens:,} + "
            f"{w.output_tokens:,} tokens, ended by {w.finish_reason}"
        )
        screen.print(f"[dim]  prompt[/]\n    {indented(w.prompt, 4)}")
        screen.print(f"[dim]  completion[/]\n    {indented(w.completion, 4)}")
    return


def _print_verdict(row_id: str, verdict: str, row: dict[str, Any]) -> None:
    if verdict == "rejected":
        verdict = f"rejected by {row['filter']}: {row['reason']}"
        if row["score"] is not None:
            verdict += f", {row['score']:.4g}"
    screen.print(f"[bold]{row_id}[/]  {escape(printable(verdict))}")
    if row.get("detail"):
        screen.print(f"  {escape(printable(row['detail']))}")
    for field in ("instruction", "input", "output"):
        if row[field]:
            screen.print(f"[dim]{field}[/]\n  {indented(row[field])}")


def _print_row_explanation(e: RowExplanation) -> None:
    row, o = e.row, e.row["origin"]
    _print_verdict(e.id, e.verdict, row)
    for message in (row.get("messages") or row.get("prompt") or ())[:-2]:
        screen.print(f"[dim]before, {message['role']}[/]\n  {indented(message['content'])}")
    if row.get("rejected"):
        screen.print(f"[dim]rejected answer[/]\n  {indented(row['rejected'][0]['content'])}")
    came = [f"source {row['source']}", f"method {o['method']}"]
    came += [f"{key} {o[key]}" for key in ("record", "group", "model", "run") if o[key]]
    came.append(f"language {row['language']}")
    screen.print(f"[dim]origin[/]  {escape(printable(', '.join(came)))}")
    if o["parents"]:
        screen.print(f"[dim]parents[/]  {', '.join(o['parents'])}")
    screen.print(f"[dim]licence[/]  {escape(printable(row['license'] or 'none'))}")
    for sentence in e.obliges:
        screen.print(f"  {escape(printable(sentence))}")
    for edit in row["edits"]:
        said = f"{edit['filter']}, {edit['field']}: {edit['detail']}"
        screen.print(f"[dim]changed[/]  {escape(printable(said))}")
    scores = [
        f"{s['name']} {s['error'] if s['value'] is None else format(s['value'], '.4g')}"
        for s in row["scores"]
    ]
    labels = [f"{label['name']} {label['value']}" for label in row["labels"]]
    for name, values in (("scores", scores), ("labels", labels)):
        if values:
            screen.print(f"[dim]{name}[/]  {escape(printable(', '.join(values)))}")
    if e.passed:
        screen.print(f"[dim]filters passed[/]  {', '.join(e.passed)}")
    if e.nearest is not None:
        screen.print(f"[dim]nearest[/]  {row['nearest']}  {short(e.nearest)}")
    screen.print(f"[dim]dataset[/]  {e.command} of {escape(printable(', '.join(e.inputs)))}")
