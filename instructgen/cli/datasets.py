"""The dataset commands: `import`, `merge`, `curate`, `dedup`, `export`, `report`, `publish`."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from instructgen.cli.flags import OptionsCommand, takes
from instructgen.cli.printing import (
    err,
    json_option,
    print_json,
    print_note,
    print_rejections,
    print_unchanged,
    quiet_option,
    safe,
    screen,
    short,
)
from instructgen.commands.options import (
    CurateOptions,
    DedupOptions,
    ExportOptions,
    ImportOptions,
    MergeOptions,
    PublishOptions,
    ReportOptions,
)

if TYPE_CHECKING:
    from instructgen.commands.derive import Derived


@click.command("import", cls=OptionsCommand)
@click.argument("format_and_path", nargs=-1, required=True, metavar="[FORMAT] PATH_OR_HUB")
@takes(ImportOptions, "path", "format")
@quiet_option
@json_option
def import_(options: ImportOptions, quiet: bool, as_json: bool) -> None:
    """Read data in a supported format, and write it as a dataset.

    The dataset contains the accepted rows, and the rejected rows with a reason for each.
    `instructgen formats` lists the values of FORMAT. By default, the format is detected from the
    fields of the rows.

    \b
    Examples:
      instructgen import dolly.jsonl --out data/dolly
      instructgen import oasst messages.jsonl.gz --as preferences --out data/prefs
      instructgen import faq.csv --map instruction=question --map output=answer \\
          --license CC-BY-4.0 --out data/faq
      instructgen import documents handbook/ --license CC-BY-4.0 --out data/handbook
    """
    from instructgen.cli.progress import watching
    from instructgen.commands.documents import DocumentFacts
    from instructgen.commands.import_data import import_data

    with watching(err, show=not quiet and not as_json) as watch:
        result = import_data.run(options, watch)
    if as_json:
        print_json(result)
        return exit_if_empty(result)
    print_unchanged(result)
    facts = result.facts
    if isinstance(facts, DocumentFacts):
        screen.print(
            f"[bold]{result.rows:,} segments[/] from {facts.used:,} of {facts.read:,} files; "
            f"{result.rejected:,} rejected, {facts.unreadable:,} of them files."
        )
        return print_derived(result)
    if options.format is None and not options.mapping:
        screen.print(f"format: {safe(facts.format)} (detected from the fields of the rows)")
    screen.print(
        f"[bold]{result.rows:,} rows[/] from {facts.used:,} of {facts.read:,} {safe(facts.unit)} "
        f"read; {result.rejected:,} rejected."
    )
    if facts.edited:
        print_note(f"{facts.edited:,} rows were changed on reading; the column edits says how.")
    if facts.without_answer:
        print_note(f"{facts.without_answer:,} rows have an empty answer.")
    return print_derived(result)


@click.command(cls=OptionsCommand)
@takes(MergeOptions)
@quiet_option
@json_option
def merge(options: MergeOptions, quiet: bool, as_json: bool) -> None:
    """Combine datasets into one, and print the license obligations for the result.

    \b
    Examples:
      instructgen merge data/dolly data/oasst1 runs/a --out data/mix
      instructgen merge data/dolly data/libre --require commercial-use --out data/mix
    """
    from instructgen.cli.progress import watching
    from instructgen.commands.merge import merge
    from instructgen.licensing.licenses import obligations

    with watching(err, show=not quiet and not as_json) as watch:
        result = merge.run(options, watch)
    if as_json:
        print_json(result)
        return exit_if_empty(result)
    print_unchanged(result)
    facts, terms = result.facts, result.terms
    screen.print(
        f"[bold]{result.rows:,} rows[/]: {facts.taken:,} of {facts.read:,} rows read are in the "
        f"mix; {result.rejected:,} rejected."
    )
    for sentence in obligations(terms.licenses, terms.generators, terms.attributions):
        screen.print(f"  - {safe(sentence)}")
    return print_derived(result)


@click.command(cls=OptionsCommand)
@takes(CurateOptions)
@quiet_option
@json_option
def curate(options: CurateOptions, quiet: bool, as_json: bool) -> None:
    """Keep the rows that every filter of a recipe accepts, and reject the others with reasons.

    \b
    Examples:
      instructgen curate data/mix --out data/clean
      instructgen curate data/mix --recipe strict --against gsm8k.jsonl --out data/clean
    """
    from instructgen.cli.progress import watching
    from instructgen.commands.curate import curate

    with watching(err, show=not quiet and not as_json) as watch:
        result = curate.run(options, watch)
    if as_json:
        print_json(result)
        return exit_if_empty(result)
    print_unchanged(result)
    facts = result.facts
    screen.print(
        f"[bold]{result.rows:,} rows[/] of {facts.read:,} kept, {result.rejected:,} rejected."
    )
    for name, rows in facts.edited.items():
        screen.print(f"{safe(name)} edited {rows:,} rows.")
    if facts.benchmarks:
        searched = ", ".join(f"{name} {prompts:,}" for name, prompts in facts.benchmarks.items())
        rejected = sum(r.count for r in result.rejections if r.filter == "contamination")
        screen.print(
            f"Benchmark prompts searched for, by file: {safe(searched)}. Rejected rows that "
            f"contain one of these prompts: {rejected:,}."
        )
    return print_derived(result)


@click.command(cls=OptionsCommand)
@takes(DedupOptions)
@click.option(
    "--show",
    default=0,
    type=click.IntRange(min=0),
    metavar="N",
    help="Print the first N rejected rows, each with the kept row that it duplicates.",
)
@quiet_option
@json_option
def dedup(options: DedupOptions, show: int, quiet: bool, as_json: bool) -> None:
    """Reject rows that duplicate a kept row. Rows similar only to rejected rows are kept.

    \b
    Examples:
      instructgen dedup dolly.jsonl runs/a --out data/clean
      instructgen dedup dolly.jsonl --how two_key --compared instruction --out data/frames
    """
    from instructgen.cli.progress import watching
    from instructgen.commands.dedup import dedup

    with watching(err, show=not quiet and not as_json) as watch:
        result = dedup.run(options, watch)
    if as_json:
        print_json(result)
        return exit_if_empty(result)
    print_unchanged(result)
    facts = result.facts
    if show:
        _print_duplicates(result.out, show)
    if facts.invalid:
        screen.print(f"{facts.invalid:,} rows are invalid and were skipped.")
    screen.print(f"[bold]{result.rows:,} rows[/] kept, {result.rejected:,} rejected.")
    screen.print(
        "If duplicates of duplicates were rejected too, "
        f"{facts.components_would_reject:,} rows would be rejected; the largest group of such "
        f"rows has {facts.largest_component:,} rows."
    )
    if facts.uncompared:
        screen.print(
            f"{facts.uncompared:,} texts were not compared by meaning, because the embedding model "
            f"{safe(options.embedding_model)} does not support their language."
        )
    return print_derived(result)


def _print_duplicates(out: Path, count: int) -> None:
    from instructgen.store import read_rows

    kept: dict[str, str] = {}
    shown = list(islice(read_rows(out, "rejected"), count))
    kept_ids = {row["nearest"] for row in shown}
    for row in read_rows(out):
        if row["id"] in kept_ids:
            kept[row["id"]] = row["instruction"]
    for row in shown:
        screen.print(f"[bold]{short(row['instruction'])}[/]")
        screen.print(f"  [dim]kept[/]  {short(kept[row['nearest']])}")
        screen.print(f"  [dim]{row['stage']}, {row['reason']}[/]  {safe(row['detail'])}\n")


@click.command(cls=OptionsCommand)
@takes(ExportOptions)
@quiet_option
@json_option
def export(options: ExportOptions, quiet: bool, as_json: bool) -> None:
    """Write a dataset as JSON Lines, in a format that other tools can read.

    \b
    Example:
      instructgen export data/clean --format sharegpt --to clean.jsonl
    """
    from instructgen.cli.progress import watching
    from instructgen.commands.export import export

    with watching(err, show=not quiet and not as_json) as watch:
        result = export.run(options, watch)
    if as_json:
        return print_json(result)
    names = ", ".join(safe(file) for file in result.files)
    screen.print(f"[bold]{result.rows:,} rows[/] in {names}")
    if result.not_written:
        counts = ", ".join(f"{name} ({rows:,} rows)" for name, rows in result.not_written.items())
        print_note(f"the format {options.format} cannot express these fields: {counts}.")
    for sentence in result.obligations:
        screen.print(f"  - {safe(sentence)}")
    return None


@click.command(cls=OptionsCommand)
@takes(ReportOptions)
@quiet_option
@json_option
def report(options: ReportOptions, quiet: bool, as_json: bool) -> None:
    """Write an HTML page that describes datasets, runs, models and evaluations.

    \b
    Examples:
      instructgen report runs/a --out report.html
      instructgen report data/clean models/sft --seeds seeds/general.jsonl --out report.html
    """
    from instructgen.cli.progress import watching
    from instructgen.commands.report import report

    with watching(err, show=not quiet and not as_json) as watch:
        result = report.run(options, watch)
    if as_json:
        return print_json(result)
    screen.print(f"report   {safe(result.to)} ({result.bytes:,} bytes)")
    return None


@click.command(cls=OptionsCommand)
@takes(PublishOptions)
@quiet_option
@json_option
def publish(options: PublishOptions, quiet: bool, as_json: bool) -> None:
    """Upload a dataset to the Hugging Face Hub: kept and rejected rows, dataset card and manifest.

    Set the environment variable HF_TOKEN to an access token, or log in with `hf auth login`.

    \b
    Example:
      instructgen publish data/clean my-org/clean
    """
    from instructgen.cli.progress import watching
    from instructgen.commands.publish import publish

    with watching(err, show=not quiet and not as_json) as watch:
        result = publish.run(options, watch)
    if as_json:
        return print_json(result)
    screen.print(f"{result.files} files, {result.bytes / 2**20:,.1f} MiB: {safe(result.url)}")
    return None


def print_derived(result: Derived[Any]) -> None:
    """Print the rejection counts and splits of a dataset, and the paths of dataset and card."""
    print_rejections(result.rejections)
    if len(result.splits) > 1:
        sizes = ", ".join(f"{name} {rows:,}" for name, rows in result.splits.items())
        screen.print(f"splits   {safe(sizes)}")
    screen.print(f"dataset  {safe(result.parts[0])}")
    screen.print(f"card     {safe(result.card)}")
    exit_if_empty(result)


def exit_if_empty(result: Derived[Any]) -> None:
    """If a dataset has no rows, print a note and end with exit code 3."""
    if not result.rows:
        print_note("no row is left; the rejected rows and the reasons are in the folder rejected/.")
        sys.exit(3)
