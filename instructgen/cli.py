"""The command line: arguments in, one call, a message out. Nothing imports this.

Exit codes: 0 done; 1 the engine, the disk or a defect stopped it; 2 bad input
or options; 3 generate ended before its target; 130 interrupted. After 1, 3 and
130 the same command goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from instructgen import __version__
from instructgen.errors import InstructgenError
from instructgen.plugins import suggest

if TYPE_CHECKING:
    from instructgen.commands.explain import Explanation
    from instructgen.commands.generate import GenerateResult
    from instructgen.commands.preview import Forecast

F = TypeVar("F", bound=Callable[..., Any])

_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)


class _Group(click.Group):
    """Suggests the command meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with all names in the message."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise click.UsageError(
                f"No such command {args[0]!r}. {suggest(args[0], list(self.commands))}"
            )
        return super().resolve_command(ctx, args)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="instructgen")
def cli() -> None:
    """Turn a few human-written tasks into a licensed, explainable instruction dataset."""


def _json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(
        command
    )


def _run_options(command: F) -> F:
    """The options that generate and preview share."""
    for option in reversed(
        [
            click.option(
                "--seeds",
                multiple=True,
                required=True,
                metavar="FILE",
                help="Seed tasks: ours, Dolly, Alpaca or Self-Instruct; may be repeated.",
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
            click.option(
                "--on-bad-row",
                type=click.Choice(["fail", "reject"]),
                default="fail",
                show_default=True,
                help="What a seed row that cannot be used does.",
            ),
            click.option("--seed", type=int, help="What all randomness comes from.  [default: 0]"),
            click.option(
                "--batch-size",
                type=int,
                help="Requests in a batch; eight batches are in flight.  [default: 32]",
            ),
            click.option("--max-tokens-total", type=int, help="Stop after this many tokens."),
            click.option("--quiet", "-q", is_flag=True, help="No progress."),
            _json_option,
        ]
    ):
        command = option(command)
    return command


@cli.command()
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
    from instructgen.commands.generate import generate as run
    from instructgen.progress import watching

    with watching(_err, show=not quiet and not as_json) as watch:
        result = run(out=out, watch=watch, **options)
    if show and not as_json:
        from itertools import islice

        from instructgen.store import read_rows

        for row in islice(read_rows(out), show):
            _print_row(row["instruction"], row["input"], row["output"])
    _print_result(result, as_json)
    if result.stopped.reason != "target":
        sys.exit(3)


@cli.command()
@_run_options
def preview(as_json: bool, quiet: bool, **options: Any) -> None:
    """Run a few batches, show their rows and forecast the rest. Keeps nothing.

    \b
    Example:
      instructgen preview --seeds seeds/general.jsonl --target 5000
    """
    from instructgen.commands.preview import preview as run
    from instructgen.progress import watching

    with watching(_err, show=not quiet and not as_json) as watch:
        forecast = run(watch=watch, **options)
    _print_forecast(forecast, as_json)


@cli.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("row_id")
@_json_option
def explain(out: Path, row_id: str, as_json: bool) -> None:
    """Show where a row comes from and why it was kept, or why it was rejected.

    \b
    Example:
      instructgen explain runs/a 3f2a9c0d11e84b57
    """
    from instructgen.commands.explain import explain as run

    _print_explanation(run(out, row_id), as_json)


@cli.command()
@click.argument("out", type=click.Path(path_type=Path))
@_json_option
def rebuild(out: Path, as_json: bool) -> None:
    """Make a run's dataset again from its journal, without an engine.

    \b
    Example:
      instructgen rebuild runs/a
    """
    from instructgen.commands.generate import rebuild as run

    _print_result(run(out), as_json)


def _listed(_ctx: click.Context, _option: click.Parameter, value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]


def _thresholds(
    _ctx: click.Context, _option: click.Parameter, values: tuple[str, ...]
) -> float | dict[str, float] | None:
    """One number for all stages, or STAGE=NUMBER for some."""
    by_stage: dict[str, float] = {}
    for value in values:
        stage, _, number = value.rpartition("=")
        try:
            by_stage[stage] = float(number)
        except ValueError:
            raise click.BadParameter(f"{value!r} is no number, nor STAGE=NUMBER.") from None
    if "" not in by_stage:
        return by_stage or None
    if len(by_stage) > 1:
        raise click.BadParameter("give one number, or STAGE=NUMBER for each stage.")
    return by_stage[""]


@cli.command()
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The new dataset.")
@click.option(
    "--how",
    default="exact,minhash,semantic",
    show_default=True,
    callback=_listed,
    metavar="STAGES",
    help="Of exact, minhash, rouge_l, semantic, two_key.",
)
@click.option(
    "--threshold",
    multiple=True,
    callback=_thresholds,
    metavar="[STAGE=]NUMBER",
    help="Highest similarity kept.  [default: minhash=0.7, rouge_l=0.7, semantic=0.9]",
)
@click.option(
    "--priority",
    default="source,licence,quality,length",
    show_default=True,
    callback=_listed,
    metavar="CRITERIA",
    help="Which copy stays: of source, human, licence, quality, length.",
)
@click.option(
    "--sources", default="", callback=_listed, metavar="NAMES", help="The most trusted first."
)
@click.option(
    "--compared",
    type=click.Choice(["row", "prompt", "instruction"]),
    default="row",
    show_default=True,
    help="What is compared: all, without the output, or the instruction.",
)
@click.option(
    "--frame-quota", default=3, show_default=True, help="Rows that two_key keeps of a frame."
)
@click.option(
    "--embedding-model",
    default="minilm",
    show_default=True,
    metavar="NAME",
    help="minilm (packaged, for English), a folder, or a Hub name.",
)
@click.option("--license", default="", metavar="SPDX", help="Of rows that name none.")
@click.option("--language", default="", metavar="CODE", help="Of rows that name none.")
@click.option(
    "--on-bad-row",
    type=click.Choice(["fail", "reject"]),
    default="fail",
    show_default=True,
    help="What a row that cannot be used does.",
)
@click.option(
    "--show", default=0, type=click.IntRange(min=0), metavar="N", help="Print N removed rows."
)
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@_json_option
def dedup(
    inputs: tuple[Path, ...], out: Path, show: int, quiet: bool, as_json: bool, **options: Any
) -> None:
    """Remove duplicates from datasets, each for a row that stays and is near enough.

    INPUTS are dataset folders, or files as --seeds takes them.

    \b
    Examples:
      instructgen dedup dolly.jsonl runs/a --out data/clean
      instructgen dedup dolly.jsonl --how two_key --compared instruction --out data/frames
    """
    from instructgen.commands.dedup import dedup as run
    from instructgen.progress import watching_stages

    with watching_stages(_err, show=not quiet and not as_json) as watch:
        result = run(inputs, out, watch=watch, **options)
    if as_json:
        return _print_json(result)
    if show:
        _print_removed(out, show)
    if result.bad_rows:
        _out.print(f"{result.bad_rows:,} rows could not be used and were left out.")
    _out.print(f"[bold]{result.rows:,} rows[/] kept, {result.removed:,} removed.")
    table = Table("stage", "reason", "removed", box=None, header_style="dim")
    for r in result.funnel:
        table.add_row(r["stage"], r["reason"], f"{r['count']:,}")
    if result.funnel:
        _out.print(table)
    _out.print(
        f"Connected components would have removed {result.components_would_remove:,}, "
        f"the largest of {result.largest_component:,} rows."
    )
    if result.unread:
        _out.print(
            f"{result.unread:,} texts were not compared by meaning: the model "
            f"{escape(options['embedding_model'])} was not made for what they are written in."
        )
    _out.print(f"dataset  {escape(result.parts[0])}")
    _out.print(f"card     {escape(result.card)}")
    return None


def _print_removed(out: Path, count: int) -> None:
    from itertools import islice

    from instructgen.store import read_rows

    kept: dict[str, str] = {}
    shown = list(islice(read_rows(out, "rejected"), count))
    wanted = {row["nearest"] for row in shown}
    for row in read_rows(out):
        if row["id"] in wanted:
            kept[row["id"]] = row["instruction"]
    for row in shown:
        _out.print(f"[bold]{_short(row['instruction'])}[/]")
        _out.print(f"  [dim]kept[/]  {_short(kept[row['nearest']])}")
        _out.print(f"  [dim]{row['stage']}, {row['reason']}[/]  {escape(row['detail'])}\n")


def main() -> None:
    """The entry point: errors become one line and an exit code."""
    # A pipe that closes early (| head) is no error.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except InstructgenError as error:
        _err.print(f"[bold red]error:[/] {escape(printable(str(error)))}")
        sys.exit(error.exit_code)
    except OSError as error:
        # A name that is too long, a full device behind a pipe.
        _err.print(f"[bold red]error:[/] {escape(printable(str(error)))}")
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        _err.print("interrupted: what was finished is kept; the same command goes on.")
        # An engine's threads may be deep in a computation; all state is on disk.
        sys.stderr.flush()
        os._exit(130)


def printable(text: str) -> str:
    """Text from a model or a file made safe for a terminal: no control characters."""
    return "".join(
        c
        if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") or c in "\u200c\u200d"
        else "\ufffd"
        for c in text
    )


def _print_json(value: Any) -> None:
    sys.stdout.write(orjson.dumps(_plain(value), option=orjson.OPT_INDENT_2).decode() + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "_asdict"):
        return {k: _plain(v) for k, v in value._asdict().items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _print_result(result: GenerateResult, as_json: bool) -> None:
    if as_json:
        return _print_json(result)
    if result.healed:
        _err.print(escape(result.healed))
    if result.bad_seed_rows:
        _out.print(f"{result.bad_seed_rows:,} seed rows could not be used and were left out.")
    funnel = result.funnel
    _out.print(
        f"[bold]{result.rows:,} rows[/] from {funnel['candidates']:,} candidates "
        f"({funnel['kept_instructions']:,} instructions entered the pool, "
        f"{funnel['candidates'] - funnel['kept_instructions'] - funnel['kept_rows']:,} were "
        f"rejected, {funnel['not_expanded']:,} instructions have no rows yet); "
        f"{result.stopped.detail}."
    )
    table = Table("stage", "filter", "reason", "rejected", box=None, header_style="dim")
    for r in funnel["rejected"]:
        table.add_row(r["stage"], r["filter"], r["reason"], f"{r['count']:,}")
    _out.print(table)
    if result.asked:
        _out.print(
            f"{result.prompt_tokens:,} prompt and {result.output_tokens:,} output tokens; "
            f"{result.tokens_per_s:,.0f} output tokens/s, engine idle {result.idle_share:.1%}"
            + (f", {result.restarts} restarts" if result.restarts else "")
            + "."
        )
    _out.print(f"dataset  {escape(result.parts[0])}")
    _out.print(f"card     {escape(result.card)}")
    return None


def _print_forecast(f: Forecast, as_json: bool) -> None:
    if as_json:
        return _print_json(f)
    for sample in f.rows:
        _print_row(sample.instruction, sample.input, sample.output)
    _out.print(
        f"{f.batches} batches: {f.candidates:,} candidates, {f.kept_instructions:,} instructions "
        f"and {f.kept_rows:,} rows kept ({f.acceptance:.0%} acceptance, {f.duplicates:.0%} of the "
        f"new instructions too similar), {f.output_tokens_per_s:,.0f} output tokens/s."
    )
    if f.seconds is None or f.prompt_tokens is None or f.output_tokens is None:
        _out.print("Too little was kept to forecast from: try another model or recipe.")
        return None
    _out.print(
        f"For {f.target:,} rows: about {_duration(f.seconds)}, {f.prompt_tokens:,} prompt and "
        f"{f.output_tokens:,} output tokens; at the end {f.duplicates_at_target:.0%} of new "
        "instructions too similar. A rough guess from a few batches. Nothing was kept."
    )
    return None


def _print_row(instruction: str, given: str, output: str) -> None:
    _out.print(f"[bold]{_short(instruction)}[/]")
    if given:
        _out.print(f"  [dim]input[/]   {_short(given)}")
    _out.print(f"  [dim]output[/]  {_short(output)}\n")


def _print_explanation(e: Explanation, as_json: bool) -> None:
    if as_json:
        return _print_json(e)
    row = e.row
    verdict = e.verdict
    if verdict == "rejected":
        verdict = f"rejected by {row['filter']}: {row['reason']}"
    _out.print(f"[bold]{e.id}[/]  {escape(printable(verdict))}")
    if row.get("detail"):
        _out.print(f"  {escape(printable(row['detail']))}")
    for field in ("instruction", "input", "output"):
        if row[field]:
            _out.print(f"[dim]{field}[/]\n  {_indented(row[field])}")
    o = row["origin"]
    terms = f"licence {row['license']}, language {row['language']}"
    if e.verdict == "a seed":
        _out.print(f"[dim]origin[/]  method {o['method']}, source {row['source']}, {terms}")
        return None
    _out.print(
        f"[dim]origin[/]  method {o['method']}, model {escape(str(o['model']))}, run {o['run']}, "
        f"{terms}"
    )
    _out.print("[dim]parents[/]")
    for parent, text in e.parents:
        _out.print(f"  {parent}  {_short(text)}")
    _out.print(f"[dim]filters passed[/]  {', '.join(e.passed) or 'none'}")
    if e.nearest:
        _out.print(
            f"[dim]nearest[/]  ROUGE-L {e.nearest.rouge_l:.3f}  {e.nearest.id}  "
            f"{_short(e.nearest.instruction)}"
        )
    for w in e.written:
        _out.print(
            f"[dim]{w.stage}[/]  batch {w.batch}, request {w.request}, {w.prompt_tokens:,} + "
            f"{w.output_tokens:,} tokens, ended by {w.finish_reason}"
        )
        _out.print(f"[dim]  prompt[/]\n    {_indented(w.prompt, 4)}")
        _out.print(f"[dim]  completion[/]\n    {_indented(w.completion, 4)}")
    return None


def _indented(text: str, by: int = 2) -> str:
    return escape(printable(text)).replace("\n", "\n" + " " * by)


def _short(text: str) -> str:
    line = " ".join(printable(text).split())
    return escape(line if len(line) <= 100 else line[:99] + "…")


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
