"""Whether code passes its row's tests, run in a process of its own with limits.

The process has no environment, an empty folder, bounds on time, memory, files and
processes, and on Linux no network where the system lets a user give it up. That keeps
mistakes in; it is no wall against an attacker. Run models you do not trust in a
container.
"""

from __future__ import annotations

import ctypes
import random
import resource
import secrets
import subprocess
import sys
import tempfile

import regex
from pydantic import Field

from instructgen.sample import Sample
from instructgen.verifiers import Verifier, label

_FENCE = regex.compile(r"```(?:python|py)?\s*\n(.*?)```", regex.DOTALL | regex.IGNORECASE)
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
        # Code that leaves early has an exit code of 0 too: only who came to the end
        # of the tests says the word.
        word = secrets.token_hex(16)
        program += f"\nimport sys\nsys.stdout.write({word!r})\n"
        with (
            tempfile.TemporaryDirectory(prefix="instructgen-code-") as folder,
            tempfile.TemporaryFile() as output,
        ):
            try:
                subprocess.run(
                    [sys.executable, "-I", "-S", "-c", "import sys; exec(sys.stdin.read(), {})"],
                    input=program.encode("utf-8", "replace"),
                    cwd=folder,
                    env={},
                    stdout=output,
                    stderr=subprocess.DEVNULL,
                    timeout=2 * self.seconds + 5,
                    preexec_fn=self._limit,
                    start_new_session=True,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return False
            output.seek(0)
            return output.read().endswith(word.encode())

    def _limit(self) -> None:
        bytes_ = self.megabytes * 2**20
        for what, most in (
            (resource.RLIMIT_CPU, self.seconds),
            (resource.RLIMIT_AS, bytes_),
            (resource.RLIMIT_FSIZE, 2**20),
            (resource.RLIMIT_NOFILE, 32),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(what, (most, most))
        # No network, where a user may give it up; where not, the other limits stand.
        ctypes.CDLL(None).unshare(_NEW_USER | _NEW_NETWORK)
