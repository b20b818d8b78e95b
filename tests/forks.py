"""Starts child processes that tests can kill, without the seconds that imports take.

Each worker has one server process that has imported what the commands need; each child is a
fork of it. Apart from the imports a child behaves, writes files and dies like any process.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.preloaded"])


def start(function: Callable[..., Any], *args: Any) -> BaseProcess:
    """Start a module-level function in its own process and return the process."""
    process = _CONTEXT.Process(target=function, args=args)
    process.start()
    return process


def run(function: Callable[..., Any], *args: Any, timeout_s: float = 120) -> int:
    """Run a function in its own process; return the exit code, negative after a signal."""
    process = start(function, *args)
    process.join(timeout_s)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"{function.__name__} did not end in {timeout_s} s")
    code = process.exitcode
    process.close()
    return code


def command(
    *words: object, cwd: Path | None = None, given: bytes = b""
) -> subprocess.CompletedProcess[str]:
    """Run an instructgen command line in a folder; ``given`` is its standard input."""
    from tests.crash import children

    with tempfile.TemporaryDirectory() as folder:
        stdin, stdout, stderr = (Path(folder) / name for name in ("in", "out", "err"))
        stdin.write_bytes(given)
        texts = [str(word) for word in words]
        place = str(cwd or Path.cwd())
        code = run(children.command, texts, place, str(stderr), str(stdout), 1, str(stdin))
        output = [path.read_bytes().decode("utf-8", "replace") for path in (stdout, stderr)]
    return subprocess.CompletedProcess(texts, code, *output)
