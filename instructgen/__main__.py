"""Starts the command line for ``instructgen`` and ``python -m instructgen``."""

from __future__ import annotations

import os


def main() -> None:
    """Load and run the command line. If Ctrl-C is pressed during loading, exit with code 130."""
    try:
        from instructgen.cli import cli
        from instructgen.cli import main as start
        from instructgen.pipeline.command import run
    except KeyboardInterrupt:
        os._exit(130)
    _die_with_parent()
    cli.add_command(run)
    start()


def _die_with_parent() -> None:
    """If this process is a pipeline step, end it when the pipeline is killed (Linux, prctl(2)).

    Otherwise the step would continue in the background and keep its output folder locked.
    """
    parent = os.environ.pop("INSTRUCTGEN_PARENT", None)
    if parent is None:
        return
    import ctypes
    import signal

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != int(parent):
        os._exit(1)


if __name__ == "__main__":
    main()
