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
    *words: object, cwd: Path | None = None, given: bytes = b"", site: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run an instructgen command line in a folder.

    ``given`` is its standard input; ``site`` is a folder of further installed packages.
    """
    from tests.crash import children

    texts = [str(word) for word in words]
    with tempfile.NamedTemporaryFile() as stdin:
        Path(stdin.name).write_bytes(given)
        more = (1, stdin.name, str(site or ""))
        return _captured(texts, lambda *out: run(children.command, texts, *out, *more), cwd)


def script(code: str, *words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python code as a script, with arguments, in a folder."""
    from tests.crash import children

    texts = [str(word) for word in words]
    return _captured(texts, lambda *out: run(children.script, code, texts, *out), cwd)


def _captured(
    texts: list[str], process: Callable[[str, str, str], int], cwd: Path | None
) -> subprocess.CompletedProcess[str]:
    """Run a process that gets a folder and the files of its errors and its output."""
    with tempfile.TemporaryDirectory() as folder:
        stderr, stdout = (Path(folder) / name for name in ("err", "out"))
        code = process(str(cwd or Path.cwd()), str(stderr), str(stdout))
        output = [path.read_bytes().decode("utf-8", "replace") for path in (stdout, stderr)]
    return subprocess.CompletedProcess(texts, code, *output)
