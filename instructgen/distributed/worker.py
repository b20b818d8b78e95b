"""The program of a replica's process: runs an engine for the process at the end of a pipe."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from instructgen.distributed.hosting import Ready
from instructgen.engines import Engine
from instructgen.errors import InstructgenError

_WAIT_S = 0.25


def main() -> None:
    """Serve the process at the other end of the pipe whose descriptor is the first argument."""
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    spec, cores = connection.recv()
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        engine = spec.build()
        # The thread that loads a model must also run it; see `VllmEngine.start`.
        engine.start()
        connection.send(Ready(engine.window(), engine.slots()))
        threading.Thread(target=_take, args=(connection, engine), daemon=True).start()
        while True:
            result = engine.next(_WAIT_S)
            if result is not None:
                connection.send(result)
    except InstructgenError as error:
        with suppress(BrokenPipeError):
            connection.send(error)
    except BrokenPipeError:
        # The other process has closed the pipe, or has ended.
        return


def _take(connection: Connection[Any, Any], engine: Engine) -> None:
    """Pass requests to the engine, until the other process closes the pipe or ends."""
    while True:
        try:
            number, request = connection.recv()
        except (EOFError, OSError):
            # A model that is computing cannot be interrupted, and nobody needs its completions.
            os._exit(0)
        if request is None:
            engine.cancel(number)
        else:
            engine.submit(number, request)
