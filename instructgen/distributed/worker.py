"""The program of a replica's process: runs an engine for the process at the end of a pipe."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from instructgen.distributed.hosting import Ready
from instructgen.engines.supervisor import Supervisor
from instructgen.errors import EngineDied, InstructgenError


def main() -> None:
    """Serve the process at the other end of the pipe whose descriptor is the first argument."""
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    spec, cores = connection.recv()
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        # An engine that dies is started again in another process.
        engine = spec.build().model_copy(update={"max_restarts": 0})
        supervisor = Supervisor(engine)
        # Also while the model is loaded, this process must end with the other one.
        threading.Thread(target=_take, args=(connection, supervisor), daemon=True).start()
        supervisor.start()
        connection.send(Ready(engine.window(), engine.slots()))
        while True:
            connection.send(supervisor.receive())
    except InstructgenError as error:
        died = isinstance(error.__cause__, EngineDied)
        with suppress(BrokenPipeError):
            connection.send(error.__cause__ if died else error)
    except BrokenPipeError:
        # The other process has closed the pipe, or has ended.
        return


def _take(connection: Connection[Any, Any], supervisor: Supervisor) -> None:
    """Pass requests to the engine, until the other process closes the pipe or ends."""
    try:
        while True:
            number, request = connection.recv()
            if request is None:
                supervisor.cancel(number)
            else:
                supervisor.submit(number, request)
    except (EOFError, OSError):
        supervisor.close()
    finally:
        # The processes of the group too: the core of vLLM holds the memory of the GPU.
        os.killpg(0, signal.SIGKILL)
