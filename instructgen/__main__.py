"""The ``instructgen`` command, and ``python -m instructgen``."""

from __future__ import annotations

import os


def main() -> None:
    """Load the command line; Ctrl-C while it loads ends as quietly as later."""
    try:
        from instructgen.cli import main as run
    except KeyboardInterrupt:
        os._exit(130)
    run()


if __name__ == "__main__":
    main()
