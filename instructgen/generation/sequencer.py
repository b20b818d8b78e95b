"""Asks engines, records every request and completion in a journal, and replays the journal.

This is the only module that sends requests to engines. It does not know what is asked: a `Work`
chooses the requests and takes in the completions. The order in which completions are used follows
from the journal alone, so a replay gives the same result on every machine.
"""

from __future__ import annotations

import gc
import hashlib
import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import orjson

from instructgen.engines import CommitOrder, Completion, Engine, Request, Role
from instructgen.engines.supervisor import Received, Supervisor
from instructgen.errors import EngineError, RunError
from instructgen.generation.work import Choice, RequestList, Work
from instructgen.schema.messages import Message
from instructgen.store import GROUP_S, CompletionLine, IssueLine, Run, SessionLine

W = TypeVar("W", bound=Work)
# In issued order, one slow request must not leave the engine without work.
ISSUED_WINDOWS = 8
_FAILURES_LOOKED_AT = 20
_FAILURES_NEEDED = 10
# Failures in a row, without any success, after which the server may be down.
_DOUBTS = 5
# The number of a request that was answered before and is asked again, to see whether the server
# answers. Its second completion is not recorded.
_CHECK = -2
_WATCH_S = 0.1
# New objects after which Python searches for unreachable cycles, and the number of these searches
# after which it looks at older objects too.
_COLLECT_AFTER = (20_000, 20, 20)
# One write and one notification of the engine serve several requests; more would delay the first.
_SENT_AT_ONCE = 16


@dataclass(slots=True)
class Activity:
    """What this start of a run has done so far: counts, and the engine's time.

    ``busy_s`` is the sum over time of the fraction of slots in use, and ``flight_s`` that of the
    number of requests in flight.
    """

    started: float = field(default_factory=time.monotonic)
    engine_started: float | None = None
    ended: float | None = None
    in_flight: int = 0
    window: int = 0
    slots: int = 0
    asked: int = 0
    replayed: int = 0
    output_tokens: int = 0
    busy_s: float = 0.0
    flight_s: float = 0.0
    _changed: float = 0.0

    @property
    def engine_s(self) -> float:
        """Seconds from the engine's being ready to now, or to the end of the run."""
        if self.engine_started is None:
            return 0.0
        return (self.ended or time.monotonic()) - self.engine_started

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second of the engine's time, completions of this start only."""
        return self.output_tokens / self.engine_s if self.engine_s else 0.0

    @property
    def slots_busy(self) -> float:
        """Mean fraction of the engine's slots that had a request."""
        return min(1.0, self.busy_s / self.engine_s) if self.engine_s else 0.0

    @property
    def mean_in_flight(self) -> float:
        """Mean number of requests in flight."""
        return self.flight_s / self.engine_s if self.engine_s else 0.0

    def end(self) -> None:
        """Take in that the run has ended."""
        self.ended = time.monotonic()
        if self.engine_started is not None:
            self.change(0, self.ended)

    def change(self, by: int, at: float) -> None:
        """Add to the number of requests in flight at a time of the monotonic clock."""
        if self.engine_started is None:
            self.engine_started = self._changed = at
        passed = max(0.0, at - self._changed)
        self.flight_s += passed * self.in_flight
        if self.slots:
            self.busy_s += passed * min(1.0, self.in_flight / self.slots)
        self._changed = max(self._changed, at)
        self.in_flight += by


@contextmanager
def _collecting_rarely() -> Iterator[None]:
    """Let Python search for unreachable cycles of objects less often.

    The records of a run are many, stay in memory and form no cycles. To look at them again and
    again took a fourteenth of the loop's time.
    """
    before = gc.get_threshold()
    gc.set_threshold(*_COLLECT_AFTER)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@dataclass(slots=True)
class _Asked:
    request: Request
    digest: str


class Sequencer(Generic[W]):
    """Drives a `Work`: issues requests, records what comes back, and commits it in order.

    Args:
        work: at its beginning.
        run: the run, whose journal is replayed first and then continued; None to record nothing.
        engines: the engines by role, which share one queue of results; empty to replay only.
        order: the order in which completions are used from now on.
        window: the number of requests in flight; None if the engine decides it.
        session: returns the line that records the start of the run.

    The attribute ``watch`` can be set to a function that is called after commits, at most ten times
    per second.
    """

    def __init__(
        self,
        work: W,
        run: Run | None,
        engines: Mapping[Role, Supervisor] | None = None,
        *,
        order: CommitOrder = "arrival",
        window: int | None = None,
        session: Callable[[int], SessionLine] | None = None,
    ) -> None:
        self.work, self.run = work, run
        self.activity = Activity()
        self._engines = engines or {}
        self._order = self._next_order = order
        self._window = window
        self._session = session
        self.watch: Callable[[], None] | None = None
        self._asked: dict[int, _Asked] = {}
        # Completions that are recorded and not committed, in the order of their arrival.
        self._completed: dict[int, Completion] = {}
        self._issued = self.commits = 0
        self._lowest = 0
        self._committed: set[int] = set()
        # Requests that are issued and not committed, by engine; two roles may share one.
        self._open: Counter[Supervisor | None] = Counter()
        # The number of requests of each role that may be open, as of the last `_fill`.
        self._limits: dict[Role, int] = {}
        # Requests that are sent and not completed, and their numbers by engine.
        self._sent: set[int] = set()
        self._in_flight: Counter[Supervisor] = Counter()
        # Whether requests are sent; not before all recorded completions were used.
        self._live = False
        # Requests that are recorded and wait until their engine has room, in their order.
        self._unsent: dict[Supervisor, deque[int]] = {
            supervisor: deque() for supervisor in self._engines.values()
        }
        # Requests of this start that are neither recorded nor sent yet.
        self._new: list[IssueLine] = []
        # Completions that have arrived and are not recorded yet.
        self._finished: list[CompletionLine] = []
        self._doubtful: dict[int, Completion] = {}
        self._repeated: set[int] = set()
        # Those of them that were repeated after the server had answered another request.
        self._last_tries: set[int] = set()
        self._probing: set[Role] = set()
        # The last request of each role that was answered, and the role whose engine is checked.
        self._answered: dict[Role, Request] = {}
        self._checking: Role | None = None
        # The last results of each role: its failure, or None for a success.
        self._failures: dict[Role, deque[Completion | None]] = {
            role: deque(maxlen=_FAILURES_LOOKED_AT) for role in self._engines
        }
        # The activity is about the engine of the first role: that of the writer, if there is one.
        # It may be the engine of the judge too.
        self._first_role = next(iter(self._engines), None)
        self._first_engine = next(iter(self._engines.values()), None)
        self._began_session = False
        self._watched = 0.0

    def request(self, number: int) -> Request:
        """Return the request with this number, which is not committed yet."""
        return self._asked[number].request

    def completion(self, number: int) -> Completion:
        """Return the completion with this number, which is recorded and not committed yet."""
        return self._completed[number]

    # -- replay ---------------------------------------------------------------------------

    def replay(self) -> Iterator[int]:
        """Apply the journal; yield the number of each request just before its commit.

        After the last line, the completions that remain are committed until the work stops.

        Raises:
            RunError: a line does not fit the run, or was recorded by other code.
        """
        yield from self._replay_lines()
        while self.work.stopped is None and (number := self._next()) is not None:
            yield number
            self._commit(number)
        if self.work.stopped is None and not self._asked:
            # The inputs may be exhausted, which only the policy finds out.
            self.work.choose(lambda role: True)

    def _replay_lines(self) -> Iterator[int]:
        for line_number, line in self.run.lines() if self.run is not None else ():
            if isinstance(line, CompletionLine):
                self._replay_completion(line_number, line)
                continue
            while self.commits < line.after:
                number = self._next()
                if number is None:
                    raise self._misfit(line_number, f"{line.after} completions are missing")
                yield number
                self._commit(number)
            if isinstance(line, SessionLine):
                self._order = line.order
            else:
                self._replay_issue(line_number, line)

    def _replay_issue(self, line_number: int, line: IssueLine) -> None:
        if line.n != self._issued:
            raise self._misfit(line_number, f"request {line.n} follows {self._issued - 1}")
        try:
            request = self.work.issue(line.n, Choice(line.draft, line.stage, line.role))
        except (LookupError, ValueError) as error:
            raise self._misfit(line_number, f"request {line.n} is not possible") from error
        self._add(request)

    def _add(self, request: Request) -> None:
        self._asked[self._issued] = _Asked(request, request_digest(request))
        self._open[self._engines.get(request.role)] += 1
        self._issued += 1

    def _replay_completion(self, line_number: int, line: CompletionLine) -> None:
        if line.n in self._completed or line.n in self._committed or 0 <= line.n < self._lowest:
            # Only the first completion of a request counts.
            return
        asked = self._asked.get(line.n)
        if asked is None:
            raise self._misfit(line_number, f"request {line.n} was not made")
        if asked.digest != line.digest:
            raise self._misfit(line_number, f"request {line.n} had another prompt")
        self._completed[line.n] = line.completion
        if not line.completion.retryable:
            self._answered[asked.request.role] = asked.request
        self.activity.replayed += 1

    def _misfit(self, line: int, what: str) -> RunError:
        assert self.run is not None
        made_by = self.run.info.versions.get("instructgen", "?")
        return RunError(
            f"{self.run.folder / 'journal.jsonl'}, line {line}: {what}.",
            f"Use the version of instructgen that made the run ({made_by}).",
        )

    # -- the live run ---------------------------------------------------------------------

    @_collecting_rarely()
    def run_to_stop(self, most: int | None = None) -> None:
        """Replay the journal, and then ask the engines until the work stops.

        Args:
            most: stop after this many commits; None for no limit.

        Raises:
            EngineError: an engine cannot continue, the server is down, or most requests fail.
            RunError: the journal does not fit the run.
            StorageError: the journal cannot be written; the run can be resumed.
        """
        for _ in self._replay_lines():
            pass
        try:
            committed = True
            while self.work.stopped is None and (most is None or self.commits < most):
                # What follows from a completion that has just arrived is asked before new drafts.
                number = None if committed else self._next()
                if number is None:
                    self._fill()
                    if self.work.stopped is not None:
                        break
                    number = self._next()
                committed = number is not None
                if number is not None:
                    self._commit(number)
                elif not self._asked:
                    raise RuntimeError("nothing is asked for, and the work has not stopped")
                elif self._live:
                    self._send_new()
                    self._receive()
                else:
                    self._go_live()
            self._record_new()
            self._watched = 0.0
            self._report()
        finally:
            self.activity.end()
            # Also on Ctrl-C and when an engine gives up: nothing paid for is lost.
            self._end()

    def _fill(self) -> None:
        """Make new requests until the window is full or none is needed; see `_send_new`.

        At a resumption, this happens between the commits of recorded completions too, as it did
        before. They are sent only when no recorded completion is left: the run may end before.
        """
        self._send_unsent()
        # If all requests of a role have failed, another one shows whether the server answers.
        self._probing = {role for role in self._engines if self._all_doubtful(role)}
        self._limits = {role: self._limit(role) for role in self._engines}
        while (choice := self.work.choose(self._free)) is not None:
            self._begin_session()
            self._new.append(IssueLine(self._issued, self.commits, *choice))
            self._add(self.work.issue(self._issued, choice))
            self._probing.discard(choice.role)
        if len(self._new) >= _SENT_AT_ONCE:
            self._send_new()

    def _record_new(self) -> list[IssueLine]:
        """Record the new requests, and return them."""
        lines, self._new = self._new, []
        if lines and self.run is not None:
            self.run.append(*lines)
        return lines

    def _send_new(self) -> None:
        """Record the new requests, and then send those for which the engine has room."""
        lines = self._record_new()
        if self._live:
            for line in lines:
                self._unsent[self._engines[line.role]].append(line.n)
            self._send_unsent()

    def _go_live(self) -> None:
        """Begin to send requests: first those that earlier starts did not complete."""
        self._live = True
        self._begin_session()
        self._record_new()
        for supervisor in set(self._engines.values()):
            if any(self._engines[self._asked[n].request.role] is supervisor for n in self._asked):
                supervisor.start()
        for number, asked in self._asked.items():
            if number not in self._completed:
                self._unsent[self._engines[asked.request.role]].append(number)

    def _send_unsent(self) -> None:
        for supervisor, numbers in self._unsent.items():
            while numbers:
                role = self._asked[numbers[0]].request.role
                full = self._in_flight[supervisor] >= self._room(role)
                if full and not self._all_doubtful(role):
                    break
                self._send(numbers.popleft())

    def _free(self, role: Role) -> bool:
        """Return whether another request may be in flight for a role."""
        return role in self._probing or self._open[self._engines[role]] < self._limits[role]

    def _limit(self, role: Role) -> int:
        """Return the number of requests of a role that may wait for their commit."""
        if self._window is not None:
            return self._window
        window = self._engines[role].engine.window()
        return window * ISSUED_WINDOWS if self._order == "issued" else window

    def _room(self, role: Role) -> int:
        """Return the number of requests of a role that may be sent and not completed."""
        engine = self._engines[role].engine
        return self._limit(role) if engine.has_queue else self._window or engine.window()

    def _send(self, number: int) -> None:
        request = self._asked[number].request
        supervisor = self._engines[request.role]
        supervisor.submit(number, request)
        self._sent.add(number)
        self._in_flight[supervisor] += 1
        self.activity.asked += 1
        if supervisor is self._first_engine:
            self.activity.change(+1, time.monotonic())

    def _receive(self) -> None:
        """Wait for results, and record all that have arrived."""
        if self._first_role is not None:
            self.activity.slots = self._engines[self._first_role].engine.slots()
            self.activity.window = self._room(self._first_role)
        self._report()
        self._repeat_or_stop()
        results = self._results()
        error = self._take(self._wait(results))
        while not results.empty():
            error = self._take(results.get()) or error
        if error is None:
            error = self._most_fail()
        self._record()
        if error is not None:
            raise error

    def _wait(self, results: queue.SimpleQueue[Received]) -> Received:
        """Return the next result; what is recorded is on the disk before a longer wait."""
        if self.run is not None and (age := self.run.unsynced_for()):
            try:
                return results.get(timeout=max(0.0, GROUP_S - age))
            except queue.Empty:
                self.run.sync()
        return results.get()

    def _take(self, received: Received) -> BaseException | None:
        """Take in a result, which `_record` records later; return the error of an engine."""
        number, completion = received.number, received.completion
        if completion is not None and number == _CHECK and self._checking is not None:
            return self._take_check(self._checking, completion, received.at)
        if completion is None or number not in self._sent:
            return received.error
        role = self._asked[number].request.role
        failed = completion.finish_reason == "error"
        if number not in self._repeated:
            # A repetition shows the state of its request, not of the server.
            self._failures[role].append(completion if failed else None)
        if failed and completion.retryable:
            self._doubtful[number] = completion
            return None
        self._finish(number, completion, received.at)
        self._has_answered(role, received.at)
        return None

    def _has_answered(self, role: Role, at: float) -> None:
        """Ask again for what has failed; what has failed between two answers is final."""
        if self._checking == role:
            # The check is no longer needed.
            self._engines[role].cancel(_CHECK)
            self._checking = None
        for number in self._doubtful_of(role):
            if number in self._last_tries:
                self._finish(number, self._doubtful.pop(number), at)
            else:
                self._last_tries.add(number)
                self._repeat(number)

    def _finish(self, number: int, completion: Completion, at: float) -> None:
        request = self._asked[number].request
        if not completion.retryable:
            self._answered[request.role] = request
        self._finished.append(CompletionLine(number, self._asked[number].digest, completion))
        self._sent.discard(number)
        self._in_flight[self._engines[request.role]] -= 1
        if self._engines[request.role] is self._first_engine:
            self.activity.change(-1, at)
            self.activity.output_tokens += completion.output_tokens

    def _doubtful_of(self, role: Role) -> list[int]:
        return [n for n in self._doubtful if self._asked[n].request.role == role]

    def _all_doubtful(self, role: Role) -> bool:
        """Return whether all requests of a role that are in flight have failed."""
        if not self._doubtful:
            return False
        sent = [n for n in self._sent if self._asked[n].request.role == role]
        return bool(sent) and self._doubtful.keys() >= set(sent)

    def _repeat(self, number: int) -> None:
        del self._doubtful[number]
        self._repeated.add(number)
        request = self._asked[number].request
        self._engines[request.role].submit(number, request)

    def _repeat_or_stop(self) -> None:
        """Ask again what failed, unless the server has answered nothing for too long."""
        if not self._doubtful:
            return
        for role in self._engines:
            if not self._all_doubtful(role):
                continue
            doubtful = self._doubtful_of(role)
            if waiting := [n for n in doubtful if n not in self._repeated]:
                for number in waiting:
                    self._repeat(number)
            elif len(doubtful) >= _DOUBTS or self._doubtful.keys() >= self._sent:
                # No other request shows whether the server answers.
                self._check(role, self._doubtful[doubtful[-1]])

    def _check(self, role: Role, failure: Completion) -> None:
        """Ask again what was answered before; raise an error if nothing was."""
        if self._checking is not None:
            return
        if role not in self._answered:
            raise _no_answer(failure)
        self._checking = role
        self._engines[role].submit(_CHECK, self._answered[role])

    def _take_check(self, role: Role, completion: Completion, at: float) -> EngineError | None:
        """Take in the completion of a check; return an error if the server does not answer."""
        self._checking = None
        if completion.retryable:
            return _no_answer(completion)
        self._has_answered(role, at)
        return None

    def _most_fail(self) -> EngineError | None:
        """Return an error if most requests fail; the last failures are then asked again."""
        for role, results in self._failures.items():
            failed = [result for result in results if result is not None]
            if len(results) < _FAILURES_NEEDED or 2 * len(failed) <= len(results):
                continue
            if results[-1] is None:
                continue
            kept = [
                line
                for line in self._finished
                if line.completion.finish_reason != "error"
                or self._asked[line.n].request.role != role
            ]
            self._finished = kept
            return EngineError(
                f"{len(failed)} of the last {len(results)} requests failed; the last: "
                f"{failed[-1].error}.",
                "Fix the cause, then rerun the same command to resume.",
            )
        return None

    def _record(self) -> None:
        lines, self._finished = self._finished, []
        if not lines:
            return
        if self.run is not None:
            self.run.append(*lines)
        for line in lines:
            self._completed[line.n] = line.completion

    def _results(self) -> queue.SimpleQueue[Received]:
        return next(iter(self._engines.values())).results

    def _begin_session(self) -> None:
        if not self._began_session and self._session is not None and self.run is not None:
            self.run.append(self._session(self.commits))
        self._began_session = True
        # Until here, completions are used in the order of the session that recorded them.
        self._order = self._next_order

    def _end(self) -> None:
        if not self._live:
            return
        self._save_arrived()
        for number in list(self._sent):
            self._engines[self._asked[number].request.role].cancel(number)
        if self._checking is not None:
            self._engines[self._checking].cancel(_CHECK)
        self._save_arrived()
        if self.run is not None:
            self.run.sync()

    def _save_arrived(self) -> None:
        """Record what has arrived; it is used if the run continues."""
        results = self._results()
        while not results.empty():
            each = results.get()
            completion = each.completion
            if completion is None or each.number not in self._sent:
                continue
            if completion.finish_reason != "error":
                self._finish(each.number, completion, each.at)
        self._record()

    # -- commits --------------------------------------------------------------------------

    def _next(self) -> int | None:
        """Return the number of the request to commit next, or None if it is not completed."""
        if self._order == "arrival":
            return next(iter(self._completed), None)
        return self._lowest if self._lowest in self._completed else None

    def _commit(self, number: int) -> None:
        self.work.commit(number, self._completed.pop(number))
        self._open[self._engines.get(self._asked.pop(number).request.role)] -= 1
        self._repeated.discard(number)
        self._last_tries.discard(number)
        self._report()
        self.commits += 1
        self._committed.add(number)
        while self._lowest in self._committed:
            self._committed.discard(self._lowest)
            self._lowest += 1

    def _report(self) -> None:
        now = time.monotonic()
        if self.watch is not None and now - self._watched > _WATCH_S:
            self._watched = now
            self.watch()


def _no_answer(failure: Completion) -> EngineError:
    return EngineError(
        f"The server does not answer: {failure.error}.",
        "The run is saved. Fix the cause, then rerun the same command to resume it.",
    )


def request_digest(request: Request) -> str:
    """Return 16 hex digits of a digest of all that decides a completion, with role and model."""
    prompt: object = request.prompt
    if not isinstance(prompt, str):
        prompt = [
            [m.role, m.content, *([m.extras] if not m.plain else ())]
            if isinstance(m, Message)
            else m
            for m in request.prompt
        ]
    s = request.sampling
    sampling = [s.temperature, s.top_p, s.max_tokens, s.presence_penalty, s.frequency_penalty]
    parts = [
        request.role,
        request.model,
        request.stage,
        prompt,
        request.schema,
        sampling,
        s.stop,
        s.seed,
    ]
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()[:16]


def answer_all(
    engine: Engine | Supervisor,
    requests: Sequence[Request],
    run: Run | None = None,
    watch: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Return the completion of each request, in order; recorded completions are not asked again.

    Args:
        engine: the engine, which is closed at the end; or its supervisor, which is not.
        requests: requests that do not depend on each other.
        run: where the completions are recorded; None to record nothing.
        watch: called with the number of completions, at most ten times per second.

    Raises:
        EngineError: the engine cannot continue. With ``run``, the same call continues later.
        RunError: the journal of the run contains other requests.
    """
    work = RequestList(requests)
    supervisor = engine if isinstance(engine, Supervisor) else Supervisor(engine)
    sequencer = Sequencer(work, run, dict.fromkeys({r.role for r in requests}, supervisor))
    if watch is not None:
        sequencer.watch = lambda: watch(sequencer.commits)
    try:
        sequencer.run_to_stop()
    finally:
        if supervisor is not engine:
            supervisor.close()
    return [c for c in work.completions if c is not None]
