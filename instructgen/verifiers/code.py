"""Checks whether the code in an answer passes the row's tests.

The answer's code runs in one sandbox and the tests in another; the tests call its functions over a
pipe. So the code never sees the tests, and only the process with the tests can write the verdict.
See `instructgen.verifiers.sandbox` for the limits.
"""

from __future__ import annotations

import os
import random
import select
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from importlib.resources import files
from io import FileIO

import orjson
import regex
from pydantic import Field

from instructgen.schema.sample import Sample
from instructgen.verifiers import Verifier, label, sandbox
from instructgen.verifiers.sandbox import Limits, Process

# All blocks, so that the end of one in another language is not read as a beginning.
_FENCE = regex.compile(r"```([^\n`]*+)\n(.*?)```", regex.DOTALL)
_PYTHON = ("", "py", "python", "python3")
_DEFINED = regex.compile(r"(?m)^(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)")
_LONGEST_VERDICT = 4096
LONGEST_PROGRAM = 500_000


class Code(Verifier):
    """Scores an answer by the fraction of the tests in the row's label ``test`` that it passes."""

    name = "code"

    seconds: int = Field(5, ge=1, description="CPU time limit for an answer, in seconds.")
    megabytes: int = Field(512, ge=64, description="Memory limit, in MiB.")
    form: float = Field(
        0.1, ge=0, lt=1, description="Minimum reward for code that can be run without an error."
    )

    unsafe: bool = Field(
        False, description="Whether code may run without a sandbox: it can then read your files."
    )

    def require(self) -> None:
        """Raise ConfigError if this machine has no sandbox."""
        sandbox.check(unsafe=self.unsafe)

    def task(self, sample: Sample, rng: random.Random) -> Sample | None:
        """Return the row if it has the label ``test``, or None."""
        return sample if label(sample, "test") else None

    def check(self, task: Sample, answer: str) -> float:
        """Return the fraction of passed tests; at least ``form`` if the code runs, otherwise 0.

        Raises:
            ConfigError: this machine has no sandbox.
        """
        self.require()
        blocks = code_blocks(answer)
        program = blocks[-1] if blocks else answer
        if not program.strip() or len(program) > LONGEST_PROGRAM:
            return 0.0
        counts = self.run(program, label(task, "test") or "", defined_names(_code(task.output)))
        if not counts["loaded"]:
            return 0.0
        passed, failed = counts["passed"], counts["failed"]
        share = passed / (passed + failed) if passed + failed else 0.0
        return max(self.form, share)

    def run(self, program: str, tests: str, own: Sequence[str] = ()) -> dict[str, int]:
        """Execute tests against the functions of a program, in the sandbox.

        Args:
            program: the code.
            tests: assertions.
            own: names of Python and its modules that the tests use for something of the program.
                It cannot replace others, such as ``abs`` or ``math``.

        Returns:
            ``loaded`` is 1 if the program ran without an error, ``passed`` and ``failed`` are the
            numbers of tests, and ``false`` is the number of those that failed because an assertion
            was false.
        """
        verdict = self._verdict(program, tests, own)
        return {name: int(verdict.get(name, 0)) for name in ("loaded", "passed", "failed", "false")}

    def _verdict(self, program: str, tests: str, own: Sequence[str]) -> dict[str, int]:
        task_of = {
            "program": _clean(program),
            "tests": _clean(tests),
            "own": [_clean(name) for name in own],
            "seconds": 2 * self.seconds,
        }
        text = orjson.dumps(task_of) + b"\n"
        with ExitStack() as stack:
            (to_answer, from_tests), (to_tests, from_answer), task, verdict = (
                _pipe(stack) for _ in range(4)
            )
            theirs = [to_answer, from_answer]
            stack.callback(self._process(theirs, "answer_side").end)
            ours = [to_tests, from_tests, task[0], verdict[1]]
            stack.callback(self._process(ours, "answer_side", "test_side").end)
            for pipe in (*theirs, *ours):
                pipe.close()
            _write(task[1].fileno(), text, self._limits.clock_s)
            return _read(verdict[0].fileno(), self._limits.clock_s)

    @property
    def _limits(self) -> Limits:
        return Limits(self.seconds, 2.0 * self.seconds + 5, self.megabytes * 2**20)

    def _process(self, pipes: list[FileIO], *names: str) -> Process:
        fds = [pipe.fileno() for pipe in pipes]
        return Process(_source(*names), self._limits, fds, unsafe=self.unsafe)


def code_blocks(text: str) -> list[str]:
    """Return the blocks of Python code in a text with Markdown fences, in order."""
    return [code for kind, code in _FENCE.findall(text) if kind.strip().lower() in _PYTHON]


def _code(answer: str) -> str:
    return "\n".join(code_blocks(answer)) or answer


def defined_names(program: str) -> list[str]:
    """Return the names of the functions and classes of a program, without those in others."""
    names: list[str] = _DEFINED.findall(program)
    return names


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _pipe(stack: ExitStack) -> tuple[FileIO, FileIO]:
    """Return a pipe as (reading end, writing end)."""
    reading, writing = os.pipe()
    # A file object is closed once, so it never closes a descriptor of another thread.
    return stack.enter_context(FileIO(reading)), stack.enter_context(FileIO(writing, "w"))


@cache
def _source(*names: str) -> str:
    folder = files("instructgen.verifiers")
    return "\n".join((folder / f"{name}.py").read_text("utf-8") for name in names)


def _write(fd: int, data: bytes, seconds: float) -> None:
    os.set_blocking(fd, False)
    end = time.monotonic() + seconds
    while data and select.select([], [fd], [], max(0.0, end - time.monotonic()))[1]:
        try:
            data = data[os.write(fd, data) :]
        except BrokenPipeError:
            return


def _read(fd: int, seconds: float) -> dict[str, int]:
    """Return the verdict, or {} if there is none in time."""
    data, end = b"", time.monotonic() + seconds
    while select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
        part = os.read(fd, _LONGEST_VERDICT)
        data += part
        if not part or len(data) > _LONGEST_VERDICT:
            break
    try:
        verdict: dict[str, int] = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return verdict
