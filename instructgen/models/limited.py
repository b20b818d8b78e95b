"""Tries a part of a model, which may be a program, in a process with limits of time and memory."""

from __future__ import annotations

import subprocess
import sys

_LIMITS = """
import resource
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
resource.setrlimit(resource.RLIMIT_CPU, ({seconds}, {seconds}))
"""


def succeeds(program: str, data: bytes, *, seconds: int, memory: int) -> bool:
    """Run a Python program in a new process, and return whether it ends with exit code 0.

    Args:
        program: the source text. Modules in the working folder and the variables of Python in the
            environment have no effect on it.
        data: what the program can read from its standard input.
        seconds: limit of processor time.
        memory: limit of address space in bytes.
    """
    limits = _LIMITS.format(seconds=seconds, memory=memory)
    try:
        done = subprocess.run(  # noqa: S603 (a program of our own)
            [sys.executable, "-I", "-c", limits + program],
            input=data,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=4 * seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
