"""Runs an engine in a thread of its own, and restarts it if it dies.

The thread calls the engine; other threads submit requests and receive the completions through a
queue, which several supervisors may share.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, replace

import orjson

from instructgen.engines import Completion, Engine, Request, Sampling
from instructgen.errors import ConfigError, EngineDied, EngineError, InstructgenError, first_line
from instructgen.printable import known_secrets, without_keys
from instructgen.schema.messages import Message

# How long the thread waits for a completion before it looks whether it is to end.
_WAIT_S = 0.25
# A model that is computing cannot be interrupted; the thread then ends with the process.
_CLOSE_S = 8.0
# How long secrets are remembered. To read the environment for each completion took a sixth of the
# thread's time.
_SECRETS_S = 1.0


@dataclass(frozen=True, slots=True)
class Received:
    """The completion of a request, and the time of its arrival on the monotonic clock.

    ``error`` is set instead if the engine cannot continue. ``source`` is what received it.
    """

    number: int
    completion: Completion | None
    at: float
    error: BaseException | None = None
    source: Supervisor | None = None


class Supervisor:
    """Runs an engine in its own thread, and restarts it up to ``max_restarts`` times.

    Unfinished requests are submitted again after a restart. The engine starts when the first
    request is submitted.

    Args:
        engine: the engine; no other code may use it while the supervisor runs.
        results: the queue for completions; None for a queue of its own.
        hands_back: whether unfinished requests are forgotten when the engine dies, because another
            engine gets them. The queue then receives the `EngineDied` before the restart.
    """

    def __init__(
        self,
        engine: Engine,
        results: queue.SimpleQueue[Received] | None = None,
        *,
        hands_back: bool = False,
    ) -> None:
        self.engine, self._hands_back = engine, hands_back
        self.results: queue.SimpleQueue[Received] = results or queue.SimpleQueue()
        self.restarts = 0
        self._requests: dict[int, Request] = {}
        self._changed = threading.Condition()
        self._closing = self._restarting = self._ended = False
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        self._secrets: list[str] = []
        self._secrets_read = float("-inf")

    @property
    def outstanding(self) -> int:
        """The number of requests that are submitted and not completed."""
        return len(self._requests)

    @property
    def ready(self) -> bool:
        """Whether the engine has started, and is not restarting and has not ended."""
        return self._started.is_set() and not (self._restarting or self._ended)

    def begin(self) -> None:
        """Start the engine, and do not wait until its model is loaded."""
        self._ensure_thread()

    def start(self) -> None:
        """Start the engine, and wait until its model is loaded.

        Raises:
            EngineError, ConfigError: the engine cannot start.
        """
        self._ensure_thread()
        self._started.wait()
        if not self.results.empty():
            received = self.results.get()
            if received.error is not None:
                raise received.error
            self.results.put(received)

    def submit(self, number: int, request: Request) -> None:
        """Pass a request to the engine. Its completion appears in ``results``."""
        self._ensure_thread()
        with self._changed:
            self._requests[number] = request
            if not (self._restarting or self._ended):
                self._pass_on(number, request)
            self._changed.notify()

    def cancel(self, number: int) -> None:
        """Give up a request; its completion is dropped if it still arrives."""
        with self._changed:
            known = self._requests.pop(number, None) is not None
            if known and not (self._restarting or self._ended):
                self.engine.cancel(number)

    def receive(self, timeout_s: float | None = None) -> tuple[int, Completion] | None:
        """Return the next completion of the queue, or None after ``timeout_s`` seconds.

        Raises:
            EngineError: the engine cannot continue.
        """
        try:
            received = self.results.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if received.error is not None:
            raise received.error
        assert received.completion is not None
        return received.number, received.completion

    def enforces_schemas(self) -> bool:
        """Test with one request whether the engine enforces JSON schemas.

        A server may silently ignore the parameters for structured output. Therefore the test uses
        a schema that allows only one text, which no model writes without the schema. No other
        request may be in flight.

        Raises:
            EngineError: the engine cannot start, or the server does not answer.
        """
        if not self.engine.can_enforce_schemas or not self.engine.has_chat_template():
            return False
        expected = {"probe": "q7-instructgen"}
        schema = {
            "type": "object",
            "properties": {"probe": {"const": expected["probe"]}},
            "required": ["probe"],
            "additionalProperties": False,
        }
        prompt = (Message("user", "Say hello."),)
        sampling = Sampling(temperature=0.0, max_tokens=64)
        self.submit(-1, Request(prompt, sampling, schema=schema))
        answer = self.receive()
        assert answer is not None
        completion = answer[1]
        if completion.retryable:
            # A server that is down does not show whether it enforces schemas.
            raise EngineError(
                f"The {self.engine.name} engine does not answer: {completion.error}.",
                "Start the server, or wait until it is ready. Then rerun the same command.",
            )
        try:
            return bool(orjson.loads(completion.text) == expected)
        except orjson.JSONDecodeError:
            return False

    def judge_enforces_schemas(self) -> bool:
        """Return `enforces_schemas` of an engine that is a judge.

        Raises:
            ConfigError: the judge has no chat template.
        """
        if not self.engine.has_chat_template():
            raise ConfigError(
                f"the judge {self.engine.model or self.engine.name} has no chat template.",
                "Use a chat model as the judge (--judge=MODEL).",
            )
        return self.enforces_schemas()

    def close(self) -> None:
        """Cancel all requests, and close the engine."""
        self.end()
        if self._thread is not None:
            self._thread.join(timeout=_CLOSE_S)

    def end(self) -> None:
        """Cancel all requests, and let the thread close the engine; do not wait for it."""
        with self._changed:
            self._closing = True
            if not (self._restarting or self._ended):
                for number in self._requests:
                    self.engine.cancel(number)
            self._requests.clear()
            self._changed.notify()

    def _ensure_thread(self) -> None:
        if self._thread is None:
            name = f"engine-{self.engine.name}"
            # A daemon: a model that is computing must not delay the end of the process.
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            try:
                self.engine.start()
            except EngineDied as error:
                self._restart(error)
            self._started.set()
            while True:
                with self._changed:
                    while not self._requests and not self._closing:
                        self._changed.wait()
                    if self._closing:
                        return
                try:
                    result = self.engine.next(_WAIT_S)
                except EngineDied as error:
                    self._restart(error)
                    continue
                if result is not None:
                    with self._changed:
                        known = self._requests.pop(result[0], None)
                    if known is not None:
                        self._put(result[0], self._without_keys(result[1]))
        except BaseException as error:  # noqa: BLE001 (raised again where it is received)
            with self._changed:
                self._ended = True
            self._put(-1, None, error)
        finally:
            self._started.set()
            self.engine.close()

    def _restart(self, cause: EngineDied) -> None:
        """Restart the engine; if it dies meanwhile, restart it again."""
        try:
            self._restart_once(cause)
        except EngineDied as error:
            self._restart(error)

    def _restart_once(self, cause: EngineDied) -> None:
        if self.restarts >= self.engine.max_restarts:
            times = self.restarts + 1
            raise EngineError(
                f"The {self.engine.name} engine died {times} times: {cause.message}",
                "The run is saved. Rerun the same command to resume it.",
            ) from cause
        self.restarts += 1
        with self._changed:
            self._restarting = True
            if self._hands_back:
                self._requests.clear()
        if self._hands_back:
            self._put(-1, None, cause)
        # This takes a while, and must not delay the other threads.
        self.engine.restart()
        with self._changed:
            self._restarting = False
            for number, request in [*self._requests.items()]:
                self._pass_on(number, request)

    def _pass_on(self, number: int, request: Request) -> None:
        """Submit a request to the engine; one that it does not accept has failed."""
        try:
            self.engine.submit(number, request)
        except InstructgenError as error:
            # Such as a model without a chat template: no request can be answered.
            self._put(-1, None, error)
        except Exception as error:  # noqa: BLE001 (such as a chat template that rejects a role)
            del self._requests[number]
            self._put(number, Completion.failed(first_line(error)))

    def _put(
        self, number: int, completion: Completion | None, error: BaseException | None = None
    ) -> None:
        self.results.put(Received(number, completion, time.monotonic(), error, self))

    def _without_keys(self, completion: Completion) -> Completion:
        """Return the completion without secrets, which a server could send back to be recorded."""
        now = time.monotonic()
        if now - self._secrets_read > _SECRETS_S:
            self._secrets, self._secrets_read = known_secrets(), now
        c = completion
        text, reasoning, error = (
            without_keys(each, self._secrets) for each in (c.text, c.reasoning, c.error or "")
        )
        if (text, reasoning, error) == (c.text, c.reasoning, c.error or ""):
            return c
        return replace(c, text=text, reasoning=reasoning, error=error or None)
