"""Starts the command line for ``instructgen`` and ``python -m instructgen``."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path


def main() -> None:
    """Load and run the command line. If Ctrl-C is pressed during loading, exit with code 130."""
    _open_streams()
    try:
        from instructgen.cli import cli
        from instructgen.cli import main as start
        from instructgen.pipeline.command import run
    except KeyboardInterrupt:
        os._exit(130)
    _die_with_parent()
    cli.add_command(run)
    start()


def _open_streams() -> None:
    """Make the standard streams usable, however this process was started.

    A closed stream is replaced, because otherwise the next file that is opened would get its number
    and what other code prints. A character that an encoding lacks is replaced too.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 (until the end)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _die_with_parent() -> None:
    """If this process is a pipeline step, end it when the pipeline is killed (Linux, prctl(2)).

    Otherwise the step would continue in the background and keep its output folder locked.
    """
    parent = os.environ.pop("INSTRUCTGEN_PARENT", "")
    if not parent.isdecimal():
        # Not set, or set by somebody else.
        return
    import ctypes
    import signal

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if str(os.getppid()) != parent:
        os._exit(1)


if __name__ == "__main__":
    main()
