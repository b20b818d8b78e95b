"""Runs several replicas of an engine, and divides the requests among them.

The replicas may be processes on this machine, actors on a Ray cluster, or servers. Each request
goes to the replica with the most room. The requests of a replica that dies, hangs or fails are
given to another one. A replica that fails or is slow gets one request at a time, until it answers
as well as the others again.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from pydantic import PrivateAttr

from instructgen.engines import Completion, Engine, Request
from instructgen.engines.supervisor import Received, Supervisor
from instructgen.errors import ConfigError, EngineDied, EngineError

# How often the states of the replicas are reviewed while nothing arrives.
_REVIEW_S = 0.25
# Failures in a row after which a replica rests, for a time that doubles with each further failure.
_FAILURES = 3
_REST_S, _LONGEST_REST_S = 0.5, 60.0
# How often a request is tried, if other requests succeed.
_TRIES = 4
# How long no replica has answered when all requests are given up.
_PATIENCE_S = 60.0
# A replica is slow if it needs more than this multiple of the time of the others per token.
_SLOW, _RECOVERED = 4.0, 2.0
_RATES = 16
_RATES_NEEDED = 8
# A short answer takes time that does not depend on its tokens.
_LEAST_TOKENS = 16
# How much longer than expected a request may take before it is given to another replica.
_HANGS_S = 30.0


@dataclass(slots=True)
class _Replica:
    """A replica, and how it has answered lately."""

    supervisor: Supervisor
    label: str
    outstanding: set[int] = field(default_factory=set)
    failures: int = 0
    rests_until: float = 0.0
    slow: bool = False
    lost: bool = False
    cause: str = ""
    # Seconds per output token of its last answers.
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=_RATES))

    def room(self, now: float) -> int:
        """Return the number of requests that it can get in addition to those that it has."""
        if self.lost or not self.supervisor.ready or now < self.rests_until:
            return 0
        window = 1 if self.slow or self.failures >= _FAILURES else self.supervisor.engine.window()
        return window - len(self.outstanding)

    def rate(self) -> float | None:
        """Return the median of its seconds per token, or None if too few are known."""
        return median(self.rates) if len(self.rates) >= _RATES_NEEDED else None

    def failed(self, now: float, since: float) -> None:
        """Count the failure of a request that it has had since a time."""
        if since < self.rests_until:
            # It was given before the replica began to rest, for the same cause.
            return
        self.failures += 1
        if self.failures >= _FAILURES:
            rest = _REST_S * 2 ** min(16, self.failures - _FAILURES)
            self.rests_until = now + min(rest, _LONGEST_REST_S)


@dataclass(slots=True)
class _Given:
    """A request, the replica that has it and since when, and how often it failed."""

    request: Request
    replica: _Replica | None = None
    since: float = 0.0
    failures: int = 0


class ReplicatedEngine(Engine):
    """An engine that consists of several replicas of the same engine; see `ReplicatedEngine.of`."""

    name = "replicas"
    # A test request shows it, as for any engine.
    can_enforce_schemas = True

    _model: Engine = PrivateAttr()
    _replicas: list[_Replica] = PrivateAttr(default_factory=list)
    _given: dict[int, _Given] = PrivateAttr(default_factory=dict)
    _waiting: deque[int] = PrivateAttr(default_factory=deque)
    _completed: deque[tuple[int, Completion]] = PrivateAttr(default_factory=deque)
    _results: queue.SimpleQueue[Received] = PrivateAttr(default_factory=queue.SimpleQueue)
    _lock: threading.RLock = PrivateAttr(default_factory=threading.RLock)
    # Since when all replicas fail.
    _failing: float | None = PrivateAttr(None)
    _reviewed: float = PrivateAttr(0.0)
    _started: bool = PrivateAttr(False)

    @classmethod
    def of(cls, model: Engine, replicas: Sequence[tuple[str, Engine]]) -> ReplicatedEngine:
        """Return an engine that divides its requests among replicas.

        Args:
            model: an engine with the same model, which answers questions about the model.
            replicas: the replicas, each with a name for messages.
        """
        engine = cls(model=model.model)
        engine._model = model
        engine._replicas = [
            _Replica(Supervisor(each, engine._results, hands_back=True), label)
            for label, each in replicas
        ]
        return engine

    def has_chat_template(self) -> bool:
        """Return whether the model has a chat template."""
        return self._model.has_chat_template()

    def user_turn(self, system: str = "") -> tuple[tuple[int, ...], str]:
        """Return the beginning of a user's message in the chat template, and what follows it."""
        return self._model.user_turn(system)

    def identity(self) -> dict[str, str]:
        """Return the values that identify the model."""
        return self._model.identity()

    def start(self) -> None:
        """Start all replicas, and wait until the first of them is ready.

        Raises:
            ConfigError: an option or the model is invalid.
            EngineError: no replica can start.
        """
        if self._started:
            return
        self._started = True
        for replica in self._replicas:
            replica.supervisor.begin()
        while not any(replica.supervisor.ready for replica in self._replicas):
            try:
                self._take(self._results.get(timeout=_REVIEW_S))
            except queue.Empty:
                continue

    def submit(self, number: int, request: Request) -> None:
        """Give the request to the replica with the most room; it waits until one has room."""
        with self._lock:
            self._given[number] = _Given(request)
            self._waiting.append(number)
            self._assign(time.monotonic())

    def cancel(self, number: int) -> None:
        """Give up a request, wherever it is."""
        with self._lock:
            given = self._given.pop(number, None)
            if given is not None and given.replica is not None:
                given.replica.outstanding.discard(number)
                given.replica.supervisor.cancel(number)

    def next(self, timeout_s: float = 60.0) -> tuple[int, Completion] | None:
        """Return a completion of any replica.

        Raises:
            EngineError: no replica is left.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            now = time.monotonic()
            with self._lock:
                self._review(now)
                self._assign(now)
            if self._completed:
                return self._completed.popleft()
            if now >= deadline:
                return None
            try:
                received = self._results.get(timeout=min(_REVIEW_S, deadline - now))
            except queue.Empty:
                continue
            self._take(received)

    def window(self) -> int:
        """Return the sum of the windows of the replicas that get requests."""
        return max(1, sum(r.supervisor.engine.window() for r in self._active()))

    def slots(self) -> int:
        """Return the sum of the slots of the replicas that get requests."""
        return max(1, sum(r.supervisor.engine.slots() for r in self._active()))

    def close(self) -> None:
        """Close all replicas."""
        for replica in self._replicas:
            replica.supervisor.end()
        for replica in self._replicas:
            replica.supervisor.close()
        with self._lock:
            self._given.clear()
            self._waiting.clear()
            self._completed.clear()

    def _active(self) -> list[_Replica]:
        return [r for r in self._replicas if not r.lost and r.supervisor.ready]

    def _assign(self, now: float) -> None:
        """Give waiting requests to the replicas with the most room, the oldest first."""
        while self._waiting:
            number = self._waiting[0]
            given = self._given.get(number)
            if given is None:
                # It was canceled.
                self._waiting.popleft()
                continue
            best = max(self._replicas, key=lambda replica: replica.room(now))
            if best.room(now) < 1:
                return
            self._waiting.popleft()
            given.replica, given.since = best, now
            best.outstanding.add(number)
            best.supervisor.submit(number, given.request)

    def _take(self, received: Received) -> None:
        """Take in what a replica has sent: a completion, its death, or its end."""
        with self._lock:
            replica = next(r for r in self._replicas if r.supervisor is received.source)
            if received.error is not None:
                self._take_error(replica, received.error)
            elif received.completion is not None:
                self._take_completion(replica, received.number, received.completion, received.at)

    def _take_error(self, replica: _Replica, error: BaseException) -> None:
        if not isinstance(error, EngineDied):
            # What is wrong with the options, or with this program, is wrong for all replicas. But
            # a node of a cluster may lack the model, or have another version.
            others_work = any(r.supervisor.ready for r in self._replicas if r is not replica)
            if not isinstance(error, ConfigError | EngineError):
                raise error
            if isinstance(error, ConfigError) and not others_work:
                raise error
            replica.lost, replica.cause = True, error.message
            if all(r.lost for r in self._replicas):
                raise EngineError(
                    f"None of the {len(self._replicas)} replicas is left; the last, "
                    f"{replica.label}: {error.message}",
                    error.hint,
                ) from error
        self._move(replica)

    def _move(self, replica: _Replica) -> None:
        """Let other replicas answer the requests of a replica, before those that wait."""
        for number in sorted(replica.outstanding, reverse=True):
            replica.supervisor.cancel(number)
            self._given[number].replica = None
            self._waiting.appendleft(number)
        replica.outstanding.clear()

    def _take_completion(
        self, replica: _Replica, number: int, completion: Completion, now: float
    ) -> None:
        given = self._given.get(number)
        if given is None or given.replica is not replica:
            # It was canceled, or another replica has it now.
            return
        replica.outstanding.discard(number)
        given.replica = None
        if completion.retryable:
            replica.failed(now, given.since)
            given.failures += 1
            healthy = any(r.failures < _FAILURES for r in self._active())
            if given.failures < _TRIES or not healthy:
                self._waiting.appendleft(number)
                if healthy:
                    self._failing = None
                elif self._failing is None:
                    self._failing = now
                elif now - self._failing > _PATIENCE_S:
                    self._give_up(completion)
                return
        else:
            self._failing, replica.failures, replica.rests_until = None, 0, 0.0
            if completion.finish_reason != "error":
                seconds = max(0.0, now - given.since)
                replica.rates.append(seconds / max(completion.output_tokens, _LEAST_TOKENS))
        del self._given[number]
        self._completed.append((number, completion))

    def _give_up(self, completion: Completion) -> None:
        """Report the failure of all requests that wait, because no replica answers."""
        for number in self._waiting:
            if self._given.pop(number, None) is not None:
                self._completed.append((number, completion))
        self._waiting.clear()

    def _review(self, now: float) -> None:
        """Find out which replicas are slow, and which hang; take requests from the latter."""
        if now - self._reviewed < _REVIEW_S:
            return
        self._reviewed = now
        rates = {id(r): rate for r in self._active() if (rate := r.rate()) is not None}
        for replica in self._active():
            others = [rate for r, rate in rates.items() if r != id(replica)]
            if not others:
                continue
            usual = median(others)
            if replica.slow:
                if replica.rates and replica.rates[-1] <= _RECOVERED * usual:
                    replica.slow = False
                    replica.rates.clear()
            elif rates.get(id(replica), 0.0) > _SLOW * usual:
                replica.slow = True
                replica.rates.clear()
            if any(self._hangs(number, usual, now) for number in replica.outstanding):
                replica.failures = max(replica.failures, _FAILURES - 1)
                replica.failed(now, since=now)
                self._move(replica)

    def _hangs(self, number: int, rate: float, now: float) -> bool:
        """Return whether a request takes much longer than other replicas would need for it."""
        given = self._given[number]
        tokens = max(given.request.sampling.max_tokens, _LEAST_TOKENS) + self._model.thinking_tokens
        return now - given.since > _HANGS_S + _SLOW * tokens * rate


def incidents(supervisors: Iterable[Supervisor]) -> tuple[int, list[str]]:
    """Return how often engines were restarted, and a sentence for each replica that was lost."""
    restarts, lost = 0, []
    for supervisor in supervisors:
        restarts += supervisor.restarts
        if isinstance(supervisor.engine, ReplicatedEngine):
            for replica in supervisor.engine._replicas:
                restarts += replica.supervisor.restarts
                if replica.lost:
                    lost.append(f"The replica {replica.label} was lost: {replica.cause}")
    return restarts, lost
