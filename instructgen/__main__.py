"""The ``instructgen`` command, and ``python -m instructgen``."""

from __future__ import annotations

import os


def main() -> None:
    """Load the command line; Ctrl-C while it loads ends as quietly as later."""
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
    """As a step of a recipe: end when the process that runs it is killed (Linux, prctl(2)).

    Otherwise it would go on unseen, and hold the folder that the next run wants.
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
