"""Runs an engine in a process of its own on this machine, with its own GPUs or cores.

vLLM uses the GPUs that its process sees, so each replica needs a process. The program of this
process is `instructgen.distributed.worker`; it ends when the pipe to it is closed.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, Any

from pydantic import PrivateAttr

from instructgen.distributed.hosting import HostedEngine, engine_spec
from instructgen.engines import Completion, Engine, Request
from instructgen.errors import EngineDied, InstructgenError

# Less than a supervisor waits for the end of its engine.
_END_S, _POLL_S = 5.0, 0.02
_WORKER = "from instructgen.distributed.worker import main; main()"


class ProcessEngine(HostedEngine):
    """An engine in a process of its own; see `ProcessEngine.of`."""

    name = "process"

    _environment: dict[str, str] = PrivateAttr(default_factory=dict)
    _cores: tuple[int, ...] = PrivateAttr(())
    _process: subprocess.Popen[bytes] | None = PrivateAttr(None)
    _connection: Connection | None = PrivateAttr(None)
    _messages: IO[bytes] | None = PrivateAttr(None)
    # What is to be sent. A process that does not read must not block who submits a request.
    _outbox: queue.SimpleQueue[Any] = PrivateAttr(default_factory=queue.SimpleQueue)

    @classmethod
    def of(
        cls, model: Engine, environment: Mapping[str, str], cores: tuple[int, ...] = ()
    ) -> ProcessEngine:
        """Return the engine ``model`` in a process of its own.

        Args:
            model: the engine. It is not started in this process.
            environment: variables that the process gets in addition to those of this process.
            cores: the processor cores that the process may use; empty for those of this process.
        """
        engine = cls(model=model.model, max_restarts=model.max_restarts)
        engine._model, engine._environment, engine._cores = model, dict(environment), cores
        return engine

    def start(self) -> None:
        """Start the process, and wait until its engine has loaded the model.

        Raises:
            EngineDied: the process has ended.
            EngineError, ConfigError: the engine cannot start.
        """
        if self._process is not None:
            return
        ours, theirs = Pipe()
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        self._process = subprocess.Popen(  # noqa: S603 (a program of our own)
            # -P: modules in the working folder have no effect.
            [sys.executable, "-P", "-c", _WORKER, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, **self._environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._messages,
            # Ctrl-C ends this process, which then closes the others.
            start_new_session=True,
        )
        theirs.close()
        self._connection, self._outbox = ours, queue.SimpleQueue()
        self._outbox.put((engine_spec(self._model), self._cores))
        threading.Thread(target=_send, args=(ours, self._outbox), daemon=True).start()
        self._ready = self._receive()

    def submit(self, number: int, request: Request) -> None:
        """Send the request to the process."""
        self._outbox.put((number, request))

    def cancel(self, number: int) -> None:
        """Tell the process to give up the request."""
        self._outbox.put((number, None))

    def next(self, timeout_s: float = 60.0) -> tuple[int, Completion] | None:
        """Return the next completion from the process.

        Raises:
            EngineDied: the process has ended.
        """
        assert self._connection is not None
        try:
            waiting = self._connection.poll(timeout_s)
        except OSError:
            waiting = True
        return self._receive() if waiting else None

    def close(self) -> None:
        """End the process and those that it has started, by force if it does not end in 5 s."""
        connection, self._connection = self._connection, None
        process, self._process = self._process, None
        self._outbox.put(None)
        if connection is not None:
            # Unlike `close`, this also ends a call that waits until the process reads.
            with socket.socket(fileno=os.dup(connection.fileno())) as pipe, suppress(OSError):
                pipe.shutdown(socket.SHUT_RDWR)
            connection.close()
        if process is not None:
            _exit_code(process)
            # The group has its number as long as the process is not waited for.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if self._messages is not None:
            self._messages.close()
            self._messages = None

    def _receive(self) -> Any:
        assert self._connection is not None
        try:
            message = self._connection.recv()
        except (EOFError, OSError) as error:
            raise EngineDied(self._death()) from error
        if isinstance(message, InstructgenError):
            raise message
        return message

    def _death(self) -> str:
        """Return how the process ended, with the last line that it has printed."""
        assert self._process is not None and self._messages is not None
        code = _exit_code(self._process)
        if code is None:
            return "The process of a replica does not answer"
        self._messages.seek(0)
        lines = self._messages.read().decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"The process of a replica ended ({how}{': ' * bool(last)}{last[:200]})"


def _send(connection: Connection, outbox: queue.SimpleQueue[Any]) -> None:
    """Send what is put into a queue, until None is."""
    # When the process has ended, `next` reports it.
    with suppress(OSError):
        while (message := outbox.get()) is not None:
            connection.send(message)


def _exit_code(process: subprocess.Popen[bytes]) -> int | None:
    """Wait for the end of a process, and return its code or the negative signal; else None.

    Unlike `Popen.wait`, this keeps the number of the process, and so that of its group.
    """
    deadline = time.monotonic() + _END_S
    while time.monotonic() < deadline:
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None:
            return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        time.sleep(_POLL_S)
    return None
