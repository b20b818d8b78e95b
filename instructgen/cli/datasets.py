"""The commands that make datasets out of others: import, merge, curate, dedup, export, publish."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from instructgen.cli.printing import (
    err,
    json_option,
    on_bad_row_option,
    pairs_in,
    print_funnel,
    print_json,
    print_unchanged,
    quiet_option,
    screen,
    short,
)
from instructgen.printable import printable

if TYPE_CHECKING:
    from instructgen.commands.derive import Derived

_PATH = click.Path(path_type=Path)
_OUT = click.option("--out", required=True, type=_PATH, help="The new dataset's folder.")


def _listed(_ctx: click.Context, _option: click.Parameter, value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]


@click.command("import")
@click.argument("source_and_path", nargs=-1, required=True, metavar="[SOURCE] PATH_OR_HUB")
@_OUT
@click.option(
    "--map",
    "mapping",
    multiple=True,
    callback=pairs_in("instruction=question"),
    metavar="OURS=THEIRS",
    help="Of other formats: which field is the instruction, input, output ...",
)
@click.option(
    "--as",
    "shape",
    type=click.Choice(["instructions", "preferences"]),
    help="Of formats that give both, such as oasst and hh-rlhf.",
)
@click.option(
    "--take",
    metavar="WHICH",
    help="oasst: best, all or first; hh-rlhf: dialogue or first; self-instruct: first or all.",
)
@click.option("--license", default="", metavar="SPDX", help="Of rows that name none.")
@click.option("--language", default="", metavar="CODE", help="Of rows that name none.")
@click.option("--attribution", default="", metavar="TEXT", help="The credit the rows want.")
@click.option("--model", default="", metavar="NAME", help="The model that wrote the rows.")
@click.option("--split", default="train", show_default=True, help="Of a dataset on the Hub.")
@on_bad_row_option
@quiet_option
@json_option
def import_(
    source_and_path: tuple[str, ...], out: Path, quiet: bool, as_json: bool, **options: Any
) -> None:
    """Read a dataset of another project: every row kept, or rejected with a reason.

    SOURCE is dolly, oasst, alpaca, alpaca-libre, hh-rlhf, self-instruct, longform, sharegpt,
    openai-chat, preferences, ultrafeedback, instructgen or plain; it is recognised by
    the file's fields where it is left out. PATH_OR_HUB is a .jsonl, .json, .csv or
    .parquet file (text also .gz or .zst), or ORG/NAME of the Hub.

    \b
    Examples:
      instructgen import dolly.jsonl --out data/dolly
      instructgen import oasst messages.jsonl.gz --as preferences --out data/prefs
      instructgen import faq.csv --map instruction=question --map output=answer \\
          --license CC-BY-4.0 --out data/faq
    """
    from instructgen.cli.progress import watching
    from instructgen.commands.import_data import import_data as run

    if len(source_and_path) > 2:
        raise click.UsageError("Give one file, and before it the SOURCE if you like.")
    *source, path = source_and_path
    with watching(err, show=not quiet and not as_json) as watch:
        result = run(path, out, *source, watch=watch, **options)
    if as_json:
        return print_json(result)
    print_unchanged(result)
    facts = result.facts
    if not source and not options["mapping"]:
        from instructgen.plugins import find

        fields = ", ".join(sorted(find("sources", facts["source"]).fields))
        screen.print(f"looks like {facts['source']}: {fields}")
    screen.print(
        f"[bold]{result.rows:,} rows[/] from {facts['used']:,} of {facts['read']:,} "
        f"{facts['unit']} read; {result.rejected:,} were rejected."
    )
    return print_derived(result)


@click.command()
@click.argument("inputs", nargs=-1, required=True, type=_PATH)
@_OUT
@click.option("--recipe", type=_PATH, metavar="FILE", help="TOML with [mix] and [split].")
@click.option(
    "--require",
    metavar="WHAT",
    help="commercial-use, permissive, or licences with commas: other rows are rejected.",
)
@quiet_option
@json_option
def merge(inputs: tuple[Path, ...], out: Path, quiet: bool, as_json: bool, **options: Any) -> None:
    """Mix datasets into one, and say what the mix obliges and forbids.

    INPUTS are dataset or run folders.

    \b
    Examples:
      instructgen merge data/dolly data/oasst1 runs/a --out data/mix
      instructgen merge data/dolly data/libre --require commercial-use --out data/mix
    """
    from instructgen.cli.progress import watching
    from instructgen.commands.merge import merge as run
    from instructgen.licensing.licenses import obligations

    with watching(err, show=not quiet and not as_json) as watch:
        result = run(inputs, out, watch=watch, **options)
    if as_json:
        return print_json(result)
    print_unchanged(result)
    facts = result.facts
    screen.print(
        f"[bold]{result.rows:,} rows[/]: {facts['taken']:,} of {facts['read']:,} read; "
        f"{result.rejected:,} were left out."
    )
    asked = facts["terms"]
    for sentence in obligations(asked["licenses"], asked["generators"], asked["attributions"]):
        screen.print(f"  - {escape(printable(sentence))}")
    return print_derived(result)


@click.command()
@click.argument("data", type=_PATH)
@_OUT
@click.option(
    "--recipe",
    default="default",
    show_default=True,
    metavar="NAME_OR_FILE",
    help="The filters: a shipped recipe, or a TOML file.",
)
@click.option(
    "--against",
    multiple=True,
    type=_PATH,
    metavar="FILE",
    help="Benchmark prompts: rows that hold one are rejected; more files may follow it.",
)
@click.option(
    "--scores-from",
    type=_PATH,
    metavar="DATASET",
    help="A dataset curated before, whose scores are not computed again.",
)
@click.argument("more", nargs=-1, type=_PATH)
@quiet_option
@json_option
def curate(
    data: Path,
    out: Path,
    against: tuple[Path, ...],
    more: tuple[Path, ...],
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Keep the rows that every filter of a recipe keeps; the others with their reasons.

    \b
    Examples:
      instructgen curate data/mix --out data/clean
      instructgen curate data/mix --recipe strict --against gsm8k.jsonl --out data/clean
    """
    from instructgen.cli.progress import watching
    from instructgen.commands.curate import curate as run

    # A folder is no file of prompts, whatever stands before it.
    if many := [path for path in more if not against or path.is_dir()]:
        raise click.UsageError(f"{str(many[0])!r} is one dataset too many; merge them first.")
    with watching(err, show=not quiet and not as_json) as watch:
        result = run(data, out, against=(*against, *more), watch=watch, **options)
    if as_json:
        return print_json(result)
    print_unchanged(result)
    screen.print(
        f"[bold]{result.rows:,} rows[/] of {result.facts['read']:,} kept, "
        f"{result.rejected:,} rejected."
    )
    return print_derived(result)


@click.command()
@click.argument("data", type=_PATH)
@click.option(
    "--format",
    "format",
    required=True,
    metavar="NAME",
    help="alpaca, sharegpt, openai or trl-preference.",
)
@click.option("--to", required=True, type=_PATH, help="The file: JSON lines.")
@click.option(
    "--columns",
    default="",
    callback=_listed,
    metavar="NAMES",
    help="Of id, category, language, source, license, attribution, generators.",
)
@click.option("--split", help="Only these rows: train, validation or test.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@quiet_option
@json_option
def export(data: Path, quiet: bool, as_json: bool, **options: Any) -> None:
    """Write a dataset as JSON lines in the form that another tool reads.

    \b
    Example:
      instructgen export data/clean --format sharegpt --to clean.jsonl
    """
    from instructgen.cli.progress import watching
    from instructgen.commands.export import export as run

    with watching(err, show=not quiet and not as_json) as watch:
        result = run(data, watch=watch, **options)
    if as_json:
        return print_json(result)
    screen.print(f"[bold]{result.rows:,} rows[/] in {escape(printable(str(result.to)))}")
    for sentence in result.obligations:
        screen.print(f"  - {escape(printable(sentence))}")
    return None


def _price(
    _ctx: click.Context, _option: click.Parameter, value: str | None
) -> tuple[float, float] | None:
    if value is None:
        return None
    try:
        prompt, output = (float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not PROMPT,OUTPUT, as in 0.15,0.6.") from None
    return prompt, output


@click.command()
@click.argument("inputs", nargs=-1, required=True, type=_PATH)
@click.option("--out", required=True, type=_PATH, help="The page: one HTML file.")
@click.option(
    "--seeds",
    multiple=True,
    type=_PATH,
    metavar="FILE",
    help="Seed tasks or a dataset that rows are compared with; a run knows its own.",
)
@click.option(
    "--reference", type=_PATH, metavar="DATA", help="Rows by people, whose lengths stand beside."
)
@click.option(
    "--price",
    callback=_price,
    metavar="PROMPT,OUTPUT",
    help="What a million tokens of prompts and of completions cost.",
)
@quiet_option
@json_option
def report(inputs: tuple[Path, ...], out: Path, quiet: bool, as_json: bool, **options: Any) -> None:
    """Write a page to look at: what datasets, runs, models and evaluations hold.

    \b
    Examples:
      instructgen report runs/a --out report.html
      instructgen report data/clean models/sft --seeds seeds/general.jsonl --out report.html
    """
    from instructgen.cli.progress import watching
    from instructgen.commands.report import report as run

    with watching(err, show=not quiet and not as_json) as watch:
        result = run(inputs, out, watch=watch, **options)
    if as_json:
        return print_json(result)
    screen.print(f"report   {escape(printable(str(result.to)))} ({result.bytes:,} bytes)")
    return None


@click.command()
@click.argument("data", type=_PATH)
@click.argument("name", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Only its owners see it.")
@quiet_option
@json_option
def publish(data: Path, name: str, private: bool, quiet: bool, as_json: bool) -> None:
    """Put a dataset on the Hub: parts, rejected rows, card, manifest.

    The token comes from HF_TOKEN or from `hf auth login`.

    \b
    Example:
      instructgen publish data/clean my-org/clean
    """
    from instructgen.cli.progress import watching
    from instructgen.commands.publish import publish as run

    with watching(err, show=not quiet and not as_json):
        result = run(data, name, private=private)
    if as_json:
        return print_json(result)
    screen.print(f"{result.files} files, {result.bytes / 2**20:,.1f} MiB: {escape(result.url)}")
    return None


def print_derived(result: Derived) -> None:
    """What was rejected, and where the dataset lies."""
    print_funnel(result.funnel)
    screen.print(f"dataset  {escape(printable(result.parts[0]))}")
    screen.print(f"card     {escape(printable(result.card))}")


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


@click.command()
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
@on_bad_row_option
@click.option(
    "--show", default=0, type=click.IntRange(min=0), metavar="N", help="Print N removed rows."
)
@quiet_option
@json_option
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
    from instructgen.cli.progress import watching
    from instructgen.commands.dedup import dedup as run

    with watching(err, show=not quiet and not as_json) as watch:
        result = run(inputs, out, watch=watch, **options)
    if as_json:
        return print_json(result)
    print_unchanged(result)
    if show:
        _print_removed(out, show)
    if result.bad_rows:
        screen.print(f"{result.bad_rows:,} rows could not be used and were left out.")
    screen.print(f"[bold]{result.rows:,} rows[/] kept, {result.removed:,} removed.")
    print_funnel(result.funnel)
    screen.print(
        f"Connected components would have removed {result.components_would_remove:,}, "
        f"the largest of {result.largest_component:,} rows."
    )
    if result.unread:
        screen.print(
            f"{result.unread:,} texts were not compared by meaning: the model "
            f"{escape(options['embedding_model'])} was not made for what they are written in."
        )
    screen.print(f"dataset  {escape(printable(result.parts[0]))}")
    screen.print(f"card     {escape(printable(result.card))}")
    return None


def _print_removed(out: Path, count: int) -> None:

    from instructgen.store import read_rows

    kept: dict[str, str] = {}
    shown = list(islice(read_rows(out, "rejected"), count))
    wanted = {row["nearest"] for row in shown}
    for row in read_rows(out):
        if row["id"] in wanted:
            kept[row["id"]] = row["instruction"]
    for row in shown:
        screen.print(f"[bold]{short(row['instruction'])}[/]")
        screen.print(f"  [dim]kept[/]  {short(kept[row['nearest']])}")
        screen.print(f"  [dim]{row['stage']}, {row['reason']}[/]  {escape(row['detail'])}\n")
