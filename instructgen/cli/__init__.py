"""The command line: parses the arguments, calls the command, and prints the result.

Exit codes: 0 success; 1 failure of the language model or the disk, or a bug; 2 invalid input or
options; 3 fewer rows than requested, or no rows; 130 interrupted. After 1, 3 and 130, rerun the
same command to resume.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path

import click
from rich.markup import escape

from instructgen import __version__
from instructgen.cli import datasets, parts, runs, training
from instructgen.cli.printing import err
from instructgen.errors import InstructgenError, StorageError
from instructgen.plugins import suggest
from instructgen.printable import printable, without_secrets


class _Group(click.Group):
    """A group of commands that suggests the most similar name for an unknown command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command named in ``args``; an error for an unknown name lists all names."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            hint = suggest(args[0], list(self.commands))
            raise click.UsageError(f"unknown command {args[0]!r}. {hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 success; 1 failure of the language model or the disk, or a bug; "
    "2 invalid input or options; 3 fewer rows than requested, or no rows; 130 interrupted. After "
    "1, 3 and 130, rerun the same command to resume. Set NO_COLOR=1 to disable colors.",
)
@click.version_option(__version__, prog_name="instructgen")
def cli() -> None:
    """Generate, curate and document instruction data, and train models on it.

    \b
    Examples:
      instructgen run quickstart
      instructgen generate --seeds seeds/general.jsonl --target 200 --out runs/a
      instructgen report runs/a --out report.html

    \b
    Shell completion for bash (for zsh or fish, use zsh_source or fish_source):
      eval "$(_INSTRUCTGEN_COMPLETE=bash_source instructgen)"
    """


for _command in (
    runs.generate,
    runs.preview,
    runs.rebuild,
    runs.snapshot,
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
    *parts.COMMANDS,
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line; an error is printed as one message and sets the exit code."""
    # A pipe that closes early (| head) is not an error.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        try:
            cli(standalone_mode=False)
        finally:
            _flush()
    except click.ClickException as error:
        message = io.StringIO()
        error.show(message)
        click.echo(printable(without_secrets(message.getvalue())), err=True, nl=False)
        sys.exit(error.exit_code)
    except InstructgenError as error:
        if os.environ.get("RANK", "0") != "0":
            # This is not the main process of a training run, and only the main one reports errors.
            sys.exit(error.exit_code)
        err.print(f"[bold red]error:[/] {escape(printable(str(error)))}")
        sys.exit(error.exit_code)
    except OSError as error:
        # For example a name that is too long, or a full device behind a pipe.
        err.print(f"[bold red]error:[/] {escape(printable(without_secrets(str(error))))}")
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        err.print("interrupted. Finished work is kept; rerun the same command to resume.")
        # Threads of an engine may still be running. All state is on disk.
        sys.stderr.flush()
        os._exit(130)


def _flush() -> None:
    """Write what is left of standard output, so that an error does not wait for the end of Python.

    Raises:
        StorageError: it cannot be written, for example because a device is full.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python tries again at its end, and would print a message of its own.
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        raise StorageError(
            f"standard output cannot be written ({error.strerror}).",
            "Redirect it to another place, then rerun the same command.",
        ) from error
