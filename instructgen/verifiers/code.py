"""Checks whether the code in an answer passes the row's tests, in a process with limits.

The process starts in an empty folder without environment variables, and its time, memory and
files are limited. On Linux, it also has no network access and cannot start other processes, if the
system allows these limits. The limits protect against mistakes but not against attacks, because
the code of an answer runs in the same Python interpreter as the tests. Run instructgen in a
container if you do not trust the model that writes the answers.
"""

from __future__ import annotations

import ctypes
import os
import random
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress

import regex
from pydantic import Field

from instructgen.schema.sample import Sample
from instructgen.verifiers import Verifier, label

_FENCE = regex.compile(r"```(?:python|py)?\s*\n(.*?)```", regex.DOTALL | regex.IGNORECASE)
_DRIVER = """
import sys
size = int(sys.stdin.buffer.readline())
program = sys.stdin.buffer.read(size).decode()
exec(compile(program, "answer", "exec"), {"__name__": "__main__"})
sys.stdout.flush()
sys.stdout.buffer.write(sys.stdin.buffer.read())
sys.stdout.buffer.flush()
"""
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000


class Code(Verifier):
    """Scores an answer by whether its code passes the tests in the row's label ``test``."""

    name = "code"

    seconds: int = Field(5, ge=1, description="CPU time limit for the tests, in seconds.")
    megabytes: int = Field(512, ge=64, description="Memory limit for the tests, in MiB.")
    form: float = Field(
        0.1, ge=0, lt=1, description="Reward for code that compiles but fails the tests."
    )

    def task(self, sample: Sample, rng: random.Random) -> Sample | None:
        """Return the row if it has the label ``test``, or None."""
        return sample if label(sample, "test") else None

    def check(self, task: Sample, answer: str) -> float:
        """Return 1 if the tests pass, ``form`` if the code compiles but fails them, otherwise 0."""
        blocks = _FENCE.findall(answer)
        program = blocks[-1] if blocks else answer
        if not program.strip():
            return 0.0
        # Compiled in the other process, because some source texts crash the parser.
        compiles = self._run(f"compile({program!r}, 'answer', 'exec')")
        if not compiles:
            return 0.0
        return 1.0 if self._run(f"{program}\n\n{label(task, 'test')}\n") else self.form

    def _run(self, program: str) -> bool:
        # An exit code of 0 is not enough, because code that exits early has it too. The driver
        # reads a secret token from standard input and prints it only after the tests.
        token = secrets.token_hex(16)
        text = program.encode("utf-8", "replace")
        folder = tempfile.mkdtemp(prefix="instructgen-code-")
        try:
            with tempfile.TemporaryFile() as output:
                process = subprocess.Popen(  # noqa: S603 (running it is the task)
                    [sys.executable, "-I", "-S", "-c", _DRIVER],
                    cwd=folder,
                    env={},
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.DEVNULL,
                    preexec_fn=self._limit,
                    start_new_session=True,
                )
                try:
                    process.communicate(
                        b"%d\n%s%s" % (len(text), text, token.encode()), 2 * self.seconds + 5
                    )
                except subprocess.TimeoutExpired:
                    return False
                finally:
                    # Also end the processes that it started.
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                output.seek(0)
                return output.read().endswith(token.encode())
        finally:
            _remove(folder)

    def _limit(self) -> None:
        bytes_ = self.megabytes * 2**20
        for limit, value in (
            (resource.RLIMIT_CPU, self.seconds),
            (resource.RLIMIT_AS, bytes_),
            (resource.RLIMIT_FSIZE, 2**20),
            (resource.RLIMIT_NOFILE, 32),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_NPROC, 0),
        ):
            resource.setrlimit(limit, (value, value))
        # Remove network access if the system allows it; the call fails silently otherwise.
        ctypes.CDLL(None).unshare(_NEW_USER | _NEW_NETWORK)


def _remove(folder: str) -> None:
    """Remove the folder and everything in it, also if its subfolders are deeply nested."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:
        subprocess.run(["/bin/rm", "-rf", folder], check=False)  # noqa: S603
