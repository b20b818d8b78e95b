"""Whether code passes its row's tests, run in a process of its own with limits.

The process has no environment, an empty folder, bounds on time, memory and files, and on
Linux no network and no further processes where the system lets a user give them up. That
keeps mistakes in; it is no wall against an attacker, who runs in the interpreter that
runs the tests. Run models you do not trust in a container.
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
    """1 where the label ``test``, run after the answer's code, ends without an error."""

    name = "code"

    seconds: int = Field(5, ge=1, description="processor time of a test")
    megabytes: int = Field(512, ge=64, description="memory of a test")
    form: float = Field(0.1, ge=0, lt=1, description="for code that compiles and fails")

    def task(self, sample: Sample, rng: random.Random) -> Sample | None:
        """The row, where it has tests."""
        return sample if label(sample, "test") else None

    def judge(self, task: Sample, answer: str) -> float:
        """Whether the tests pass."""
        blocks = _FENCE.findall(answer)
        program = blocks[-1] if blocks else answer
        if not program.strip():
            return 0.0
        # Compiled there and not here: a parser can be brought down by what it parses.
        compiles = self._run(f"compile({program!r}, 'answer', 'exec')")
        if not compiles:
            return 0.0
        return 1.0 if self._run(f"{program}\n\n{label(task, 'test')}\n") else self.form

    def _run(self, program: str) -> bool:
        # Code that leaves early has an exit code of 0 too: only who comes to the end of
        # the tests reads the word, which follows the program, and says it.
        word = secrets.token_hex(16)
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
                        b"%d\n%s%s" % (len(text), text, word.encode()), 2 * self.seconds + 5
                    )
                except subprocess.TimeoutExpired:
                    return False
                finally:
                    # What it started goes with it.
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                output.seek(0)
                return output.read().endswith(word.encode())
        finally:
            _remove(folder)

    def _limit(self) -> None:
        bytes_ = self.megabytes * 2**20
        for what, most in (
            (resource.RLIMIT_CPU, self.seconds),
            (resource.RLIMIT_AS, bytes_),
            (resource.RLIMIT_FSIZE, 2**20),
            (resource.RLIMIT_NOFILE, 32),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_NPROC, 0),
        ):
            resource.setrlimit(what, (most, most))
        # No network, where a user may give it up; where not, the other limits stand.
        ctypes.CDLL(None).unshare(_NEW_USER | _NEW_NETWORK)


def _remove(folder: str) -> None:
    """Remove what a program left, however deep it dug."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:
        subprocess.run(["/bin/rm", "-rf", folder], check=False)  # noqa: S603
