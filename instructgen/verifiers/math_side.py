"""The process that compares results with math-verify, for `instructgen.verifiers.math`.

SymPy can need any amount of time and memory for a short text such as 9**9**9, and a computation in
C cannot be interrupted by an exception. So it runs in a process that can be killed.
"""

from __future__ import annotations

import json
import logging
import resource
import sys

# SymPy alone needs a quarter of it.
_MEMORY = 2 * 2**30


def reply(value: bool) -> None:
    """Write a value as a line of JSON."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Read pairs of answers as JSON lines, and write for each whether they are equal."""
    from math_verify import parse, verify

    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    reply(True)
    for line in sys.stdin:
        expected, given, seconds = json.loads(line)
        try:
            pair = [parse(rf"\boxed{{{t}}}", parsing_timeout=seconds) for t in (expected, given)]
            equal = all(pair) and bool(verify(*pair, timeout_seconds=seconds))
        except Exception:  # noqa: BLE001 (SymPy raises almost any exception for unusual texts)
            equal = False
        reply(equal)


if __name__ == "__main__":
    main()
