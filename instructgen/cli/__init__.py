"""The command line: arguments in, one call, a message out. Only `pipeline` imports this.

Exit codes: 0 done; 1 the engine, the disk or a defect stopped it; 2 bad input
or options; 3 generate ended before its target; 130 interrupted. After 1, 3 and
130 the same command goes on where it stopped.
"""

from __future__ import annotations

import os
import signal
import sys

import click
from rich.markup import escape

from instructgen import __version__
from instructgen.cli import datasets, runs, training
from instructgen.cli.printing import err
from instructgen.errors import InstructgenError
from instructgen.plugins import suggest
from instructgen.printable import printable


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


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 the engine, the disk or a defect stopped it; 2 bad input or "
    "options; 3 it ended before its target; 130 interrupted. After 1, 3 and 130 the same command "
    "goes on. Colours are left out where NO_COLOR is set.",
)
@click.version_option(__version__, prog_name="instructgen")
def cli() -> None:
    """From a few human-written tasks to a licensed, explainable dataset and a trained model.

    \b
    Examples:
      instructgen run quickstart
      instructgen generate --seeds seeds/general.jsonl --target 200 --out runs/a
      instructgen report runs/a --out report.html

    \b
    Completion of commands and options, for bash (also zsh_source and fish_source):
      eval "$(_INSTRUCTGEN_COMPLETE=bash_source instructgen)"
    """


for _command in (
    runs.generate,
    runs.preview,
    runs.rebuild,
    runs.explain,
    datasets.import_,
    datasets.merge,
    datasets.curate,
    datasets.dedup,
    datasets.export,
    datasets.publish,
    datasets.report,
    training.train,
    training.evaluate,
    training.ablate,
    training.prefer,
    training.chat,
):
    cli.add_command(_command)


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
        if os.environ.get("RANK", "0") != "0":
            # One of several processes of a training; the first says it.
            sys.exit(error.exit_code)
        err.print(f"[bold red]error:[/] {escape(printable(str(error)))}")
        sys.exit(error.exit_code)
    except OSError as error:
        # A name that is too long, a full device behind a pipe.
        err.print(f"[bold red]error:[/] {escape(printable(str(error)))}")
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        err.print("interrupted: what was finished is kept; the same command goes on.")
        # An engine's threads may be deep in a computation; all state is on disk.
        sys.stderr.flush()
        os._exit(130)
