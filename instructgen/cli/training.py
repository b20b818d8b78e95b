"""The commands that train or use models: `train`, `evaluate`, `ablate`, `prefer` and `chat`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from instructgen.cli.flags import OptionsCommand, takes
from instructgen.cli.printing import (
    duration,
    err,
    json_option,
    print_json,
    print_note,
    print_unchanged,
    quiet_option,
    safe,
    screen,
)
from instructgen.commands.options import (
    AblateOptions,
    ChatOptions,
    EvaluateOptions,
    PreferOptions,
    TrainOptions,
)
from instructgen.printable import printable

if TYPE_CHECKING:
    from instructgen.commands.train import TrainResult
    from instructgen.schema.measures import Estimate, Measure

_LOADING = "loading the model ..."


@click.command(cls=OptionsCommand)
@takes(TrainOptions)
@click.option(
    "--show-masks",
    type=click.IntRange(min=1),
    metavar="N",
    help="Do not train. Print the first N rows, and mark the text on which the loss is computed "
    "(only for sft).",
)
@click.option(
    "--strategy",
    type=click.Choice(["ddp", "fsdp", "zero2", "zero3"]),
    help="Strategy for training on several GPUs: ddp (each GPU has a copy of the model), or fsdp, "
    "zero2 or zero3 (the training state is divided among the GPUs).  [default: ddp]",
)
@click.option(
    "--processes",
    type=int,
    help="Number of training processes, one per GPU.  [default: number of GPUs]",
)
@quiet_option
@json_option
def train(
    options: TrainOptions,
    show_masks: int | None,
    strategy: str | None,
    processes: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train a model with sft, reward, dpo, kto, grpo, rloo or ppo.

    sft, grpo, rloo and ppo require instruction rows; reward, dpo and kto require preference
    rows. Rerun the same command to resume a training run that was stopped.

    \b
    Examples:
      instructgen train sft data/clean --peft lora --tokens 200000 --out models/sft
      instructgen train sft data/clean --show-masks 3
      instructgen train reward data/prefs --model models/sft --out models/rm
      instructgen train grpo data/prompts --model models/sft \\
          --reward verifiers:ifeval --out models/rl
    """
    from instructgen.cli.progress import watching
    from instructgen.commands.train import check, train

    if show_masks is not None:
        return _show_masks(options, show_masks)
    if strategy is not None or processes is not None:
        from instructgen.training.launch import launch

        # Check the options now, so that an error is reported by one process only.
        check(options)
        if options.out is None:
            raise click.UsageError("Missing option '--out'. Pass --out=FOLDER.")
        launch(strategy or "ddp", processes)
    with watching(err, show=not quiet and not as_json, first=_LOADING) as watch:
        result = train.run(options, watch)
    if result.facts is None:
        # The main process of the training prints the result.
        return None
    if as_json:
        return print_json(result)
    return _print_training(result)


def _print_training(result: TrainResult) -> None:
    print_unchanged(result)
    for message in result.messages:
        print_note(message)
    facts = result.facts
    assert facts is not None  # The caller has checked it.
    rows, tokens = facts.rows, facts.supervised_tokens
    screen.print(
        f"[bold]{facts.steps:,} steps[/] on {rows.seen:,} of {rows.train:,} rows"
        + (f", {tokens:,} supervised tokens" if tokens is not None else "")
        + f", in {duration(facts.seconds)}."
    )
    if rows.rejected:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in rows.rejected.items())
        screen.print(f"Rejected or truncated rows: {safe(reasons)}; listed in "
                     f"{safe(result.out / 'rejected.jsonl')}")  # fmt: skip
    for measure in facts.evaluation:
        _print_measure(measure)
    screen.print(f"model: {safe(result.out)}")


def _print_measure(m: Measure) -> None:
    """Print a measure on one line: its value or, for two models, both values and the difference."""
    rows = f"{m.after.rows:,} rows"
    if m.difference is None or m.before is None:
        text = f"{m.after.value:.4f} {_interval(m.after)}, {rows}"
    else:
        text = (
            f"{m.before.value:.4f} → {m.after.value:.4f}, "
            f"difference {m.difference.value:+.4f} {_interval(m.difference)}, {rows}"
        )
    screen.print(f"[bold]{safe(m.measure)}[/]  {text}")


def _interval(value: Estimate) -> str:
    return escape(f"[{value.low:.4f}, {value.high:.4f}]")


def _show_masks(options: TrainOptions, count: int) -> None:
    if options.trainer != "sft":
        raise click.UsageError("--show-masks can be used only with train sft.")
    from rich.text import Text

    from instructgen.commands.train import masks

    rows, rejected = masks(options, count)
    for number, row in enumerate(rows, start=1):
        screen.rule(f"row {number}", style="dim", align="left")
        text = Text()
        for piece, trained in row:
            shown = printable(piece)
            # Brackets too, because a pipe would remove the color.
            text.append(f"⟦{shown}⟧" if trained else shown, "green" if trained else "dim")
        screen.print(text)
    for reason, rows_rejected in rejected.counts().items():
        detail = next(row["detail"] for row in rejected.rows if row["reason"] == reason)
        print_note(f"{rows_rejected:,} rows before the last one shown: {reason} ({detail}).")


@click.command(cls=OptionsCommand)
@takes(EvaluateOptions)
@quiet_option
@json_option
def evaluate(options: EvaluateOptions, quiet: bool, as_json: bool) -> None:
    """Evaluate a model and, optionally, a second one on rows that they were not trained on.

    \b
    Examples:
      instructgen evaluate models/sft --against smollm2 --data heldout.parquet
      instructgen evaluate models/rl --against models/sft --data data/mix \\
          --suite likelihood constraints winrate --judge models/rm --out reports/rl
      instructgen evaluate models/rl --data data/problems --suite verifiers
      instructgen evaluate models/sft --suite lm-eval --set lm-eval.tasks='["arc_easy"]'
    """
    from instructgen.cli.progress import watching
    from instructgen.commands.evaluate import evaluate

    with watching(err, show=not quiet and not as_json, first=_LOADING) as watch:
        result = evaluate.run(options, watch)
    if as_json:
        return print_json(result)
    for m in result.measures:
        _print_measure(m)
        if "length_controlled" in m.details:
            d: Any = m.details
            screen.print(
                f"{safe(m.measure)} at equal answer lengths: {d['length_controlled']:.3f}; "
                f"{d['judged']:,} pairs of answers judged; the judge abstained for "
                f"{d['abstained']:,} pairs"
            )
    for note in result.notes:
        print_note(note)
    for file in result.files:
        screen.print(safe(file))
    return None


@click.command(cls=OptionsCommand)
@takes(AblateOptions)
@quiet_option
@json_option
def ablate(options: AblateOptions, quiet: bool, as_json: bool) -> None:
    """Train a model on each dataset, and report which dataset gives the best model.

    Models are also trained on a control: the first dataset, with rows removed at random until
    it is as small as the smallest dataset.

    \b
    Example:
      instructgen ablate data/raw data/curated --tokens 200000 --seeds 3 --peft lora
    """
    from rich.table import Table

    from instructgen.cli.progress import watching
    from instructgen.commands.ablate import ablate

    with watching(err, show=not quiet and not as_json, first=_LOADING) as watch:
        result = ablate.run(options, watch)
    if as_json:
        return print_json(result)
    table = Table("dataset", "rows", "supervised tokens", "bits per byte", box=None)
    for arm in result.arms:
        table.add_row(
            safe(arm.arm), f"{arm.rows:,}", f"{arm.supervised_tokens:,}", f"{arm.mean:.4f}"
        )
    screen.print(table)
    screen.print(f"bits per byte before training: {result.base:.4f}")
    for sentence in result.verdict:
        screen.print(safe(sentence))
    return None


@click.command(cls=OptionsCommand)
@takes(PreferOptions)
@quiet_option
@json_option
def prefer(options: PreferOptions, quiet: bool, as_json: bool) -> None:
    """Sample several answers to each prompt, and keep the best, or the best and the worst.

    Answers are recorded while the command runs. If it is stopped, rerun it to resume.

    \b
    Examples:
      instructgen prefer data/prompts --model models/sft --score models/rm --out data/pairs
      instructgen prefer data/prompts --score verifiers:ifeval --as instructions --out data/best
    """
    from instructgen.cli.datasets import exit_if_empty, print_derived
    from instructgen.cli.progress import watching
    from instructgen.commands.prefer import prefer

    with watching(err, show=not quiet and not as_json, first=_LOADING) as watch:
        result = prefer.run(options, watch)
    if as_json:
        print_json(result)
    else:
        print_unchanged(result)
        screen.print(
            f"[bold]{result.rows:,} rows[/] from {result.facts.read:,} prompts; "
            f"{result.rejected:,} rejected."
        )
        for name, count in result.facts.judge.items():
            screen.print(f"judge: {safe(name)} {count:,}")
        print_derived(result)
    exit_if_empty(result)


@click.command(cls=OptionsCommand)
@takes(ChatOptions)
@click.option("--quiet", "-q", is_flag=True, help="Print only the answers.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per answer.")
def chat(options: ChatOptions, quiet: bool, as_json: bool) -> None:
    """Chat with a model. Type /new to start a new conversation, and /quit or Ctrl-D to exit.

    \b
    Examples:
      instructgen chat models/sft
      echo "Name three fruits." | instructgen chat models/sft --json
    """
    import orjson

    from instructgen.commands.chat import Chat

    conversation = Chat(options)
    while True:
        try:
            prompt = "" if quiet or as_json else "you> "
            line = click.prompt(prompt, prompt_suffix="", default="", show_default=False)
        except (click.Abort, RuntimeError):
            # The input ended, or was closed before the start.
            if not quiet and not as_json:
                screen.print()
            return
        if line.strip() in ("/quit", "/exit"):
            return
        if line.strip() == "/new":
            conversation.clear()
        elif not line.strip():
            continue
        elif as_json:
            for _ in conversation.say(line):
                pass
            answer = conversation.messages[-1]
            click.echo(orjson.dumps({"role": answer.role, "content": answer.content}))
        else:
            for piece in conversation.say(line):
                screen.print(printable(piece), end="", markup=False)
            screen.print()
