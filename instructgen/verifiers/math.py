"""Checks whether an answer ends in the correct mathematical result."""

from __future__ import annotations

import atexit
import json
import os
import random
import select
import subprocess
import sys
import threading
import time
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import regex
from pydantic import Field

from instructgen.schema.sample import Sample
from instructgen.verifiers import Verifier

# Commas are between groups of three digits, or of two in India.
_NUMBER = r"-?(?:\d{1,3}(?:,\d{2,3})*,\d{3}|\d+)(?:\.\d+)?(?:/\d+)?|-?\.\d+"
# The mark of GSM8K, and a form that models use instead.
_HASHES = regex.compile(r"####[ \t]*([^\n]+)")
# Without backtracking, because a box may contain any number of pairs of braces.
_BOX = regex.compile(r"\\boxed\{((?:[^{}]++|\{(?:[^{}]++|\{(?:[^{}]++|\{[^{}]*+\})*+\})*+\})*+)\}")
# "Answer: x" as a line, and a word, which a result that is not a number does not contain.
_ANSWER_LINE = regex.compile(r"(?im)^[*_# \t]*(?:final )?answer[*_ \t]*:([^\n]+)$")
_WORD = regex.compile(r"(?<![\\{\p{L}\d])\p{L}{2}")
_ANSWER = regex.compile(rf"(?i)answer(?: is|:)?\s*\$?({_NUMBER})")
_ANY = regex.compile(_NUMBER)
# A number with its currency or unit, which are not compared: "$18", "18 dollars", r"5\text{ cm}". A
# word of one or two letters may be variables; math-verify knows the short units.
_WITH_UNIT = regex.compile(
    rf"\\?\$?\s*({_NUMBER})"
    r"(?:\\?[ ,]?\s*\\(?:text|mathrm)\{[^{}]*\}|\s+\p{L}{3}[\p{L} ]*)?"
)
_LONGEST_NUMBER, _LONGEST = 60, 300
# The process needs about a second for its start.
_START_S = 60.0


class Math(Verifier):
    """Score 1 for the correct final result, and ``form`` for a wrong one marked as final.

    Numbers are compared exactly. Other results, such as fractions, roots, tuples and intervals in
    LaTeX, are compared by math-verify (https://github.com/huggingface/Math-Verify).
    """

    name = "math"

    form: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Score for a wrong result that is marked as the final answer, as in '#### 42'.",
    )
    seconds: int = Field(
        5, ge=1, description="Time limit for reading or comparing a result other than a number."
    )

    def task(self, sample: Sample, rng: random.Random) -> Sample | None:
        """Return the row if its output contains a result, or None."""
        return sample if final_result(sample.output) is not None else None

    def check(self, task: Sample, answer: str) -> float:
        """Return 1 if the final result is correct, ``form`` if it is wrong but marked, else 0."""
        expected, given = final_result(task.output), final_result(answer)
        if expected is None or given is None:
            return 0.0
        if _equal(expected.text, given.text, self.seconds):
            return 1.0
        return self.form if given.marked else 0.0


class Result(NamedTuple):
    """The text of a final result, and whether the answer marks it as final."""

    text: str
    marked: bool


def final_result(text: str) -> Result | None:
    """Return the result in the last line that marks one as final; without marks, the last number.

    Marks are ``####``, a box, and a line "Answer: ...". A line "#### Step 2: ..." is a heading,
    unless nothing else is marked.
    """
    hashes = [(match.start(), _trimmed(match[1])) for match in _HASHES.finditer(text)]
    lines = [(match.start(1), _formula(match[1])) for match in _ANSWER_LINE.finditer(text)]
    found: list[list[tuple[int, Any]]] = [
        [(at, value) for at, value in hashes if not _is_heading(value)],
        [(match.start(), _trimmed(match[1])) for match in _BOX.finditer(text)],
        lines[-1:],
        [(match.start(1), match[1]) for match in _ANSWER.finditer(text)],
    ]
    marked = [last[-1] for each in found if (last := [m for m in each if m[1]])]
    if marked := marked or [m for m in hashes if m[1]][-1:]:
        # Two marks may be in the same line: then the order above counts.
        _, value = max(marked, key=lambda mark: text.count("\n", 0, mark[0]))
        return Result(value, marked=True)
    if formula := _formula(text):
        return Result(formula, marked=False)
    numbers = _ANY.findall(text)
    return Result(numbers[-1], marked=False) if numbers else None


def _trimmed(text: str) -> str:
    return text.strip().strip("$").rstrip(".").strip()


def _is_heading(text: str) -> bool:
    return _WORD.search(text) is not None and _WITH_UNIT.fullmatch(text) is None


def _formula(text: str) -> str | None:
    r"""Return a text that is one formula, such as ``\frac{1}{2}`` or ``(1, 2)``, or None."""
    found = text.strip().strip("*_").strip().rstrip(".").strip("$").strip()
    found = found.removeprefix(r"\(").removesuffix(r"\)").strip()
    if len(found) > _LONGEST or "\n" in found or _WORD.search(found):
        return None
    # The other patterns read numbers, also before a unit or a percent sign.
    plain = _WITH_UNIT.fullmatch(found.removesuffix("%")) or not regex.search(r"\d|\\\p{L}", found)
    return None if plain else found


def _number(text: str) -> Fraction | None:
    match = _WITH_UNIT.fullmatch(text)
    # Exponents are not accepted: the value of 1e999999999 would fill the memory.
    if match is None or len(match[1]) > _LONGEST_NUMBER:
        return None
    try:
        return Fraction(match[1].replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None


def _equal(expected: str, given: str, seconds: int) -> bool:
    numbers = _number(expected), _number(given)
    if None not in numbers:
        return numbers[0] == numbers[1]
    if expected == given:
        return True
    return max(len(expected), len(given)) <= _LONGEST and _compared(expected, given, seconds)


@lru_cache(maxsize=4096)
def _compared(expected: str, given: str, seconds: int) -> bool:
    return _comparer(os.getpid()).equal(expected, given, seconds)


@lru_cache(maxsize=1)
def _comparer(_process: int) -> _Comparer:
    comparer = _Comparer()
    atexit.register(comparer.end)
    return comparer


class _Comparer:
    """The process with math-verify; it is started at the first use, and again after it failed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def equal(self, expected: str, given: str, seconds: int) -> bool:
        """Return whether two results are equal; False if that cannot be decided in time."""
        with self._lock:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "instructgen.verifiers.math_side"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
                self._reply(_START_S)
            with suppress(BrokenPipeError):
                assert self._process.stdin is not None
                # Unlike orjson, json also writes half a surrogate pair.
                request = json.dumps([expected, given, seconds])
                self._process.stdin.write(f"{request}\n".encode())
                self._process.stdin.flush()
            # Two texts are read and compared, and the limits of math-verify interrupt only Python.
            reply = self._reply(3.0 * seconds + 1)
            if reply is None:
                self.end()
            return reply is True

    def end(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _reply(self, seconds: float) -> bool | None:
        assert self._process is not None
        assert self._process.stdout is not None
        fd, end, text = self._process.stdout.fileno(), time.monotonic() + seconds, b""
        while not text.endswith(b"\n"):
            if not select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            if not (part := os.read(fd, 64)):
                return None
            text += part
        return bool(json.loads(text))
