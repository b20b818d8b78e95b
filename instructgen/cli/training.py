"""The commands about models: train, evaluate, ablate, prefer, chat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from instructgen.cli.printing import (
    duration,
    err,
    json_option,
    print_json,
    printable,
    quiet_option,
    screen,
)

_PATH = click.Path(path_type=Path)
_METHODS = ("sft", "reward", "dpo", "kto", "grpo", "rloo", "ppo")


def _settings(
    _ctx: click.Context, _option: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any]:
    import tomllib

    found: dict[str, Any] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not (key.strip() and equals):
            raise click.BadParameter(f"{value!r} is not KEY=VALUE, as in lora_rank=8.")
        try:
            found[key.strip()] = tomllib.loads(f"v = {text}")["v"]
        except tomllib.TOMLDecodeError:
            # A word needs no quotes.
            found[key.strip()] = text
    return found


@click.command()
@click.argument("method", type=click.Choice(_METHODS))
@click.argument("data", type=_PATH)
@click.option("--model", metavar="PATH_OR_HUB", help="What to begin with.  [default: smollm2]")
@click.option("--out", type=_PATH, help="The new model's folder.")
@click.option("--recipe", type=_PATH, metavar="FILE", help="TOML with a table [train].")
@click.option(
    "--reward",
    multiple=True,
    metavar="WHAT",
    help="Of grpo, rloo, ppo: a reward model's folder, or verifiers:ifeval,math.",
)
@click.option("--held-out", type=_PATH, metavar="DATA", help="Rows to evaluate on.")
@click.option("--tokens", type=int, help="Of sft: train on exactly so many supervised tokens.")
@click.option("--epochs", type=float, help="Passes over the rows.  [default: 1]")
@click.option("--steps", type=int, help="Optimiser steps, instead of epochs.")
@click.option(
    "--peft",
    type=click.Choice(["none", "lora", "qlora", "dora", "ia3", "adapter"]),
    help="Which weights are trained.  [default: none, that is all]",
)
@click.option("--learning-rate", type=float, help="Peak; each method has its own.")
@click.option("--batch-size", type=int, help="Rows per step.  [default: 8]")
@click.option("--max-length", type=int, help="Tokens of a row.  [default: 1024]")
@click.option(
    "--format",
    type=click.Choice(["chat", "alpaca", "dolly"]),
    help="How a row is put to the model.  [default: chat, its own template]",
)
@click.option("--pad-token", metavar="TOKEN", help="For a tokenizer without one; eos will do.")
@click.option("--seed", type=int, help="What all randomness comes from.  [default: 0]")
@click.option(
    "--set",
    "more",
    multiple=True,
    callback=_settings,
    metavar="KEY=VALUE",
    help="Any other option of the method; a wrong KEY lists them.",
)
@click.option("--show-masks", type=int, metavar="N", help="Of sft: print N rows, train nothing.")
@click.option(
    "--strategy",
    type=click.Choice(["ddp", "fsdp", "zero2", "zero3"]),
    help="How several processes share the work.",
)
@click.option("--processes", type=int, help="How many; one per GPU.  [default: as there are GPUs]")
@quiet_option
@json_option
def train(
    method: str,
    data: Path,
    out: Path | None,
    more: dict[str, Any],
    show_masks: int | None,
    strategy: str | None,
    processes: int | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a model: sft, reward, dpo, kto, grpo, rloo or ppo.

    DATA is a dataset folder: instructions for sft, grpo, rloo and ppo, preferences for
    reward, dpo and kto. The same command goes on with a run that was stopped.

    \b
    Examples:
      instructgen train sft data/clean --peft lora --tokens 200000 --out models/sft
      instructgen train sft data/clean --show-masks 3
      instructgen train reward data/prefs --model models/sft --out models/rm
      instructgen train grpo data/prompts --model models/sft \\
          --reward verifiers:ifeval --out models/rl
    """
    given = {k: v for k, v in options.items() if v is not None and v != ()}
    both = sorted(set(given) & set(more))
    if both:
        raise click.UsageError(f"{both[0]} is given twice, by an option and by --set.")
    given |= more
    if show_masks is not None:
        return _show_masks(method, data, show_masks, given)
    if out is None:
        raise click.UsageError("Missing option '--out'.")
    if strategy is not None or processes is not None:
        from instructgen.training.launch import launch

        launch(strategy or "ddp", processes)
    from instructgen.commands.train import train as run
    from instructgen.progress import watching_training

    with watching_training(err, show=not quiet and not as_json) as watch:
        result = run(method, data, out, watch=watch, **given)
    if not result.facts:
        # Another process of the same training speaks for all.
        return None
    if as_json:
        return print_json(result)
    for message in result.messages:
        err.print(f"[yellow]note:[/] {escape(printable(message))}")
    facts = result.facts
    tokens = facts["supervised_tokens"]
    screen.print(
        f"[bold]{facts['steps']:,} steps[/] on {facts['rows']['train']:,} rows"
        + (f", {tokens:,} supervised tokens" if tokens is not None else "")
        + f", in {duration(facts['seconds'])}."
    )
    left_out = ", ".join(f"{n:,} {reason}" for reason, n in facts["rows"]["left_out"].items())
    if left_out:
        screen.print(f"left out or cut: {left_out}; named in {result.out / 'left_out.jsonl'}")
    print_evaluation(facts["evaluation"])
    screen.print(f"model: {escape(printable(str(result.out)))}")
    return None


def print_evaluation(found: dict[str, Any] | None) -> None:
    """The measures before and after, with intervals."""
    from rich.table import Table

    if not found:
        return
    table = Table("measure", "before", "after", "difference", box=None, header_style="dim")
    for one in (found, *(v for v in found.values() if isinstance(v, dict) and "measure" in v)):
        cells = [_estimate(one.get(key)) for key in ("before", "after", "difference")]
        table.add_row(one["measure"], *cells)
    screen.print(table)


def _estimate(value: dict[str, Any] | None) -> str:
    if value is None:
        return ""
    return f"{value['value']:.4f} [{value['low']:.4f}, {value['high']:.4f}]".replace("[", "\\[")


def _show_masks(method: str, data: Path, count: int, given: dict[str, Any]) -> None:
    if method != "sft":
        raise click.UsageError("--show-masks is for train sft.")
    from rich.text import Text

    from instructgen.commands.train import masks

    wanted = {k: v for k, v in given.items() if k not in ("reward", "held_out")}
    for number, row in enumerate(masks(data, count=count, **wanted), start=1):
        screen.rule(f"row {number}", style="dim", align="left")
        text = Text()
        for piece, trained in row:
            shown = printable(piece)
            # Marks as well as colour: they survive a pipe.
            text.append(f"⟦{shown}⟧" if trained else shown, "green" if trained else "dim")
        screen.print(text)
