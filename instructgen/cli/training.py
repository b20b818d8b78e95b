"""The commands about models: train, evaluate, ablate, prefer, chat."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from instructgen.cli.printing import (
    duration,
    endpoint_option,
    err,
    json_option,
    print_json,
    print_unchanged,
    quiet_option,
    screen,
)
from instructgen.printable import printable

if TYPE_CHECKING:
    from instructgen.commands.train import TrainResult

_PATH = click.Path(path_type=Path)
_LOADING = "loading the model ..."
# What the command's function takes besides options of the method.
_PARAMETERS = frozenset({"model", "recipe", "reward", "held_out"})
_ABLATED = frozenset({"tokens", "seed", "steps", "epochs", "held_out_rows", "evaluate"})
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


def _options_of(
    method: str, given: dict[str, Any], fixed: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """The values of --set, unless one is no option of the method."""
    from instructgen.errors import ConfigError
    from instructgen.plugins import suggest
    from instructgen.training.options import OPTIONS

    known = sorted(set(OPTIONS[method].model_fields) - fixed)
    for key in given:
        if key not in known:
            raise ConfigError(f"--set {key}: no option of train {method}.", suggest(key, known))
    return given


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
@click.option(
    "--max-length", type=int, help="Tokens of a row.  [default: 1024, or what the model reads]"
)
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
@click.option(
    "--show-masks",
    type=click.IntRange(min=1),
    metavar="N",
    help="Of sft: print N rows, train nothing.",
)
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
    given |= _options_of(method, more)
    if show_masks is not None:
        return _show_masks(method, data, show_masks, given)
    if out is None:
        raise click.UsageError("Missing option '--out'.")
    if strategy is not None or processes is not None:
        _launched(method, data, given, strategy, processes)
    from instructgen.cli.progress import watching
    from instructgen.commands.train import train as run

    with watching(err, show=not quiet and not as_json, first=_LOADING) as watch:
        result = run(method, data, out, watch=watch, **given)
    if not result.facts:
        # Another process of the same training speaks for all.
        return None
    if as_json:
        return print_json(result)
    return _print_training(result)


def _print_training(result: TrainResult) -> None:
    print_unchanged(result)
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
        place = escape(printable(str(result.out / "left_out.jsonl")))
        screen.print(f"left out or cut: {left_out}; named in {place}")
    found = facts["evaluation"] or {}
    for one in (found, *found.values()):
        if isinstance(one, dict) and "measure" in one:
            _print_measure(one)
    screen.print(f"model: {escape(printable(str(result.out)))}")
    return


def _print_measure(m: dict[str, Any]) -> None:
    """A measure on one line: before, after, and how sure the difference is."""
    after, before, difference = m["after"], m.get("before"), m.get("difference")
    rows = f"{after['rows']:,} rows"
    if difference is None or before is None:
        said = f"{after['value']:.4f} {_interval(after)}, {rows}"
    else:
        said = (
            f"{before['value']:.4f} → {after['value']:.4f}, "
            f"difference {difference['value']:+.4f} {_interval(difference)}, {rows}"
        )
    screen.print(f"[bold]{m['measure']}[/]  {said}")


def _interval(value: dict[str, Any]) -> str:
    return escape(f"[{value['low']:.4f}, {value['high']:.4f}]")


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


class _Several(click.Option):
    """An option that takes all words up to the next option, and may be given again."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """As click does, with a process that goes on reading."""
        super().add_to_parser(parser, ctx)
        for name in self.opts:
            known = parser._long_opt.get(name)
            if known is None:
                continue
            first = known.process

            def process(value: str, state: Any, first: Any = first) -> None:
                first(value, state)
                while state.rargs and not state.rargs[0].startswith("-"):
                    first(state.rargs.pop(0), state)

            known.process = process


_FORMAT = click.option(
    "--format",
    type=click.Choice(["chat", "alpaca", "dolly"]),
    default="chat",
    show_default=True,
    help="How a row is put to the models.",
)
_PAD = click.option("--pad-token", metavar="TOKEN", help="For tokenizers without one; eos will do.")


def _launched(
    method: str,
    data: Path,
    given: dict[str, Any],
    strategy: str | None,
    processes: int | None,
) -> None:
    """Go on as several processes; what is wrong is said before there are several to say it."""
    from instructgen.commands.train import check
    from instructgen.training.launch import launch

    named = {k: v for k, v in given.items() if k not in _PARAMETERS}
    check(method, data, given.get("reward", ()), given.get("recipe"), named)
    launch(strategy or "ddp", processes)


@click.command()
@click.argument("model")
@click.option("--against", metavar="PATH_OR_HUB", help="Another model, on the same rows.")
@click.option(
    "--data", cls=_Several, multiple=True, type=_PATH, metavar="DATA...", help="Rows to measure on."
)
@click.option(
    "--suite",
    "suites",
    cls=_Several,
    multiple=True,
    metavar="NAME...",
    help="likelihood, constraints, preference, winrate, lm-eval.  [default: what the data allow]",
)
@click.option("--judge", default="", metavar="MODEL", help="Of winrate: a reward model, or any.")
@click.option("--out", type=_PATH, help="A folder for the numbers, a table and a picture.")
@click.option("--limit", type=int, default=200, show_default=True, help="Rows of each dataset.")
@click.option("--max-length", type=int, default=1024, show_default=True, help="Tokens of a row.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of constraints and sampling.")
@_FORMAT
@_PAD
@click.option(
    "--set",
    "settings",
    multiple=True,
    callback=_settings,
    metavar="SUITE.KEY=VALUE",
    help="Any option of a suite, such as constraints.engine=vllm.",
)
@quiet_option
@json_option
def evaluate(model: str, quiet: bool, as_json: bool, **options: Any) -> None:
    """Measure a model, and another beside it, on rows that neither was trained on.

    \b
    Examples:
      instructgen evaluate models/sft --against smollm2 --data heldout.parquet
      instructgen evaluate models/rl --against models/sft --data data/mix \\
          --suite likelihood constraints winrate --judge models/rm --out reports/rl
      instructgen evaluate models/sft --suite lm-eval --set lm-eval.tasks='["arc_easy"]'
    """
    from instructgen.commands.evaluate import evaluate as run

    say = None if quiet or as_json else (lambda suite: err.print(f"[dim]{suite} ...[/]"))
    result = run(model, watch=say, **options)
    if as_json:
        return print_json(result)
    for m in result.measures:
        _print_measure(m)
        if "length_controlled" in m:
            screen.print(
                f"{m['measure']} at equal lengths: {m['length_controlled']:.3f}; "
                f"{m['judged']:,} judged, {m['abstained']:,} abstained"
            )
    for note in result.notes:
        err.print(f"[yellow]note:[/] {escape(printable(note))}")
    for file in result.files:
        screen.print(escape(printable(file)))
    return None


@click.command()
@click.argument("datasets", nargs=-1, required=True, type=_PATH)
@click.option("--model", metavar="PATH_OR_HUB", help="What to begin with.  [default: smollm2]")
@click.option("--tokens", type=int, required=True, help="Supervised tokens per model.")
@click.option("--seeds", type=int, default=3, show_default=True, help="Models per dataset.")
@click.option("--data", type=_PATH, metavar="DATA", help="Held-out rows.  [default: split test]")
@click.option("--rows", type=int, default=200, show_default=True, help="Held-out rows measured.")
@click.option(
    "--out", type=_PATH, default=Path("ablation"), show_default=True, help="A folder for it all."
)
@click.option("--recipe", type=_PATH, metavar="FILE", help="TOML with a table [train].")
@click.option(
    "--peft", type=click.Choice(["none", "lora", "qlora", "dora", "ia3"]), help="As train sft."
)
@click.option("--learning-rate", type=float, help="As train sft.")
@click.option("--batch-size", type=int, help="As train sft.")
@click.option("--max-length", type=int, help="As train sft.")
@click.option(
    "--set",
    "more",
    multiple=True,
    callback=_settings,
    metavar="KEY=VALUE",
    help="Any other option of train sft.",
)
@quiet_option
@json_option
def ablate(
    datasets: tuple[Path, ...], more: dict[str, Any], quiet: bool, as_json: bool, **options: Any
) -> None:
    """Train on each dataset, and tell which makes the better model.

    DATASETS are the raw one first, then what was made of it. A control is trained too:
    the first with rows dropped at random to the size of the smallest.

    \b
    Example:
      instructgen ablate data/raw data/curated --tokens 200000 --seeds 3 --peft lora
    """
    from rich.table import Table

    from instructgen.cli.progress import watching
    from instructgen.commands.ablate import ablate as run

    given = {k: v for k, v in options.items() if v is not None}
    both = sorted(set(given) & set(more))
    if both:
        raise click.UsageError(f"{both[0]} is given twice, by an option and by --set.")
    given |= _options_of("sft", more, _ABLATED)
    with watching(err, show=not quiet and not as_json, first=_LOADING) as watch:
        result = run(list(datasets), watch=watch, **given)
    if as_json:
        return print_json(result)
    table = Table("dataset", "rows", "supervised tokens", "bits per byte", box=None)
    for arm in result.arms:
        table.add_row(
            escape(printable(arm["arm"])),
            f"{arm['rows']:,}",
            f"{arm['supervised_tokens']:,}",
            f"{arm['mean']:.4f}",
        )
    screen.print(table)
    screen.print(f"before training: {result.base:.4f}")
    for sentence in result.verdict:
        screen.print(escape(printable(sentence)))
    return None


@click.command()
@click.argument("data", type=_PATH)
@click.option("--out", required=True, type=_PATH, help="The new dataset's folder.")
@click.option(
    "--score",
    multiple=True,
    required=True,
    metavar="WHAT",
    help="A reward model's folder, verifiers:ifeval,math, or judge:MODEL.",
)
@click.option("--model", metavar="PATH_OR_HUB", help="What answers.  [default: smollm2]")
@click.option(
    "--as",
    "shape",
    type=click.Choice(["preferences", "instructions"]),
    default="preferences",
    show_default=True,
    help="Best and worst of each prompt, or the best alone.",
)
@click.option("--samples", type=int, default=4, show_default=True, help="Answers to a prompt.")
@click.option("--temperature", type=float, default=0.8, show_default=True, help="Of sampling.")
@click.option("--max-tokens", type=int, default=256, show_default=True, help="Of an answer.")
@click.option("--margin", type=float, default=0.0, help="How much better the best has to be.")
@click.option("--min-score", type=float, help="What the best has to be worth.")
@click.option("--limit", type=int, help="Use so many prompts.")
@click.option("--engine", metavar="NAME", help="vllm, openai, transformers.  [default: vllm]")
@click.option("--judge-engine", metavar="NAME", help="What runs the judge.  [default: the same]")
@endpoint_option
@click.option("--seed", type=int, default=0, show_default=True, help="Of sampling.")
@quiet_option
@json_option
def prefer(data: Path, out: Path, quiet: bool, as_json: bool, **options: Any) -> None:
    """Have a model answer prompts several times, and keep what compares well.

    DATA is a dataset of instructions. What a model wrote is kept in a journal: the same
    command goes on where it stopped.

    \b
    Examples:
      instructgen prefer data/prompts --model models/sft --score models/rm --out data/pairs
      instructgen prefer data/prompts --score verifiers:ifeval --as instructions --out data/best
    """
    from instructgen.cli.datasets import print_derived
    from instructgen.cli.progress import watching
    from instructgen.commands.prefer import prefer as run

    with watching(err, show=not quiet and not as_json) as watch:
        result = run(data, out, watch=watch, **options)
    if as_json:
        return print_json(result)
    print_unchanged(result)
    screen.print(
        f"[bold]{result.rows:,} rows[/] from {result.facts['read']:,} prompts; "
        f"{result.rejected:,} were rejected."
    )
    for name, count in result.facts.get("judge", {}).items():
        screen.print(f"judge: {name} {count:,}")
    return print_derived(result)


@click.command()
@click.argument("model", default="smollm2")
@click.option("--system", default="", help="A message that stands before all others.")
@click.option("--temperature", type=float, default=0.7, show_default=True, help="0: the likeliest.")
@click.option("--max-tokens", type=int, default=512, show_default=True, help="Of an answer.")
@click.option("--seed", type=int, help="Of sampling.")
@click.option("--quiet", "-q", is_flag=True, help="Print answers and nothing else.")
@click.option("--json", "as_json", is_flag=True, help="A JSON line per answer, for programs.")
def chat(model: str, quiet: bool, as_json: bool, **options: Any) -> None:
    """Talk to a model. An empty line is passed over; /new forgets, /quit or Ctrl-D ends.

    \b
    Examples:
      instructgen chat models/sft
      echo "Name three fruits." | instructgen chat models/sft --json
    """
    import orjson

    from instructgen.commands.chat import Chat

    talk = Chat(model, **options)
    while True:
        try:
            asked = "" if quiet or as_json else "you> "
            line = click.prompt(asked, prompt_suffix="", default="", show_default=False)
        except (click.Abort, RuntimeError):
            # The end of the input, or one that was closed from the beginning.
            if not quiet and not as_json:
                screen.print()
            return
        if line.strip() in ("/quit", "/exit"):
            return
        if line.strip() == "/new":
            talk.forget()
        elif not line.strip():
            continue
        elif as_json:
            for _ in talk.say(line):
                pass
            said = talk.said[-1]
            click.echo(orjson.dumps({"role": said.role, "content": said.content}))
        else:
            for piece in talk.say(line):
                screen.print(printable(piece), end="", markup=False)
            screen.print()
