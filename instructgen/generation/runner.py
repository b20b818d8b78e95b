"""Takes a loop to its stop: completions from the journal first, from the engine for the rest.

The engine works on several batches while this thread parses, filters and commits,
so it is never idle for want of work. What to ask and what to keep is the loop's.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from instructgen.engines import Completion, Request, Supervisor
from instructgen.errors import EngineError, RunError
from instructgen.generation.loop import LAG, Loop, request_digest
from instructgen.printable import printable
from instructgen.schema.progress import Progress, Watch
from instructgen.store import Run

_FAILURES_LOOKED_AT = 20
_FAILURES_NEEDED = 10
_SECOND_CHANCES = 3
# Candidates that cannot be parsed before a hint is shown.
_HINT_AFTER = 16


@dataclass(slots=True)
class Session:
    """What this start of a run has done so far: counts, and the engine's time."""

    target: int
    loop: Loop
    started: float = field(default_factory=time.monotonic)
    engine_started: float | None = None
    ended: float | None = None
    busy_until: float = 0.0
    idle_s: float = 0.0
    outstanding: int = 0
    replayed: int = 0
    asked: int = 0
    output_tokens: int = 0

    @property
    def engine_s(self) -> float:
        """Seconds from the engine's being ready to now, or to the end of the run."""
        if self.engine_started is None:
            return 0.0
        return (self.ended or time.monotonic()) - self.engine_started

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second of the engine's time, completions of this session only."""
        return self.output_tokens / self.engine_s if self.engine_s else 0.0

    @property
    def idle_share(self) -> float:
        """Share of the engine's time in which it held no request."""
        return self.idle_s / self.engine_s if self.engine_s else 0.0

    def progress(self) -> Progress:
        """Return what each stage has done and, before the first row, when it is expected."""
        tally = self.loop.tally
        rows, left = tally.kept_rows, None
        # The first rows come late, so that an estimate from few of them is far too high.
        if 10 * rows >= self.target and self.engine_s and not self.replayed:
            left = self.engine_s * (self.target - rows) / rows
        figures: dict[str, float] = {"instructions": tally.kept_instructions}
        if tally.kept_instructions:
            figures["with rows or a reason"] = self.loop.resolved
        figures |= {
            "tokens/s": round(self.tokens_per_s),
            "engine idle": round(self.idle_share, 2),
        }
        notes = [self._first_rows() if not rows else self._latest_row(), self._rejections()]
        return Progress(
            "generate",
            rows,
            self.target,
            figures=figures,
            notes=tuple(note for note in (*notes, self.format_hint()) if note),
            seconds_left=left,
        )

    def _first_rows(self) -> str:
        """The stage that is at work, and when the first rows are expected."""
        stages = self.loop.config.method.stages
        committed = self.loop.batches_committed
        number = min(committed // LAG, len(stages) - 1)
        text = f"stage {number + 1} of {len(stages)}, {stages[number]}"
        done = self.asked - self.outstanding
        if not done or not self.engine_s or self.replayed:
            return f"{text}: waiting for the first completions"
        # A row passes each stage LAG batches after the one before.
        batches = (len(stages) - 1) * LAG + 1
        if committed >= batches:
            return f"{text}: first rows expected soon"
        finished = max(committed, min(done / self.loop.config.generate.batch_size, LAG))
        seconds = self.engine_s / finished * (batches - committed)
        return f"{text}: first rows expected in about {max(1, round(seconds)):,} s"

    def _latest_row(self) -> str:
        row = self.loop.rows[-1]
        text = printable(" ".join(f"{row.instruction} → {row.output}".split()))
        return f"latest row: {text if len(text) <= 110 else text[:109] + '…'}"

    def _rejections(self) -> str:
        tally = self.loop.tally
        reasons: Counter[str] = Counter()
        for (_, name, reason), count in tally.rejected.items():
            reasons[f"{name}/{reason}"] += count
        share = tally.kept / tally.candidates if tally.candidates else 0.0
        note = f"{tally.candidates:,} candidates, {share:.0%} accepted"
        most = ", ".join(f"{name} {count}" for name, count in reasons.most_common(4))
        return f"{note}; rejected: {most}" if most else note

    def format_hint(self) -> str:
        """Return advice if most completions cannot be parsed; otherwise an empty string."""
        tally, method = self.loop.tally, self.loop.config.method.name
        unparsed = sum(n for (_, name, _), n in tally.rejected.items() if name == method)
        if unparsed < _HINT_AFTER or unparsed < 0.7 * tally.candidates or tally.kept_rows:
            return ""
        return (
            f"{unparsed:,} of {tally.candidates:,} candidates cannot be parsed: the model does "
            f"not follow the format of the method {method}. Try another --method or --model."
        )


def run_loop(
    loop: Loop,
    run: Run,
    supervisor: Supervisor | None,
    session: Session,
    watch: Watch | None,
    *,
    batches: int | None = None,
    on_batch: Callable[[int, Sequence[Request]], None] | None = None,
) -> None:
    """Take the loop to its stop: recorded completions first, the engine for the rest.

    Args:
        loop: at its beginning.
        run: where completions are recorded.
        supervisor: the engine; None stops at the first batch that is not recorded whole.
        session: kept up to date.
        watch: called after each completion and commit.
        batches: stop after this many.
        on_batch: called with the number and requests of each batch, before its commit.

    Raises:
        EngineError: the engine cannot continue, or most requests fail.
        RunError: the journal was recorded with other requests.
    """
    desk = InFlightBatches(run, supervisor, session, watch)
    try:
        while loop.stopped is None and (batches is None or loop.batches_committed < batches):
            while loop.batches_built < loop.batches_committed + LAG:
                desk.open(loop.batches_built, loop.build())
            batch = desk.settle(loop.batches_committed)
            if batch is None:
                break
            if on_batch is not None:
                on_batch(loop.batches_committed, batch.requests)
            loop.commit(batch.requests, batch.completions())
            if watch is not None:
                watch(session.progress())
    finally:
        session.ended = time.monotonic()
        # Also on Ctrl-C and when the engine gives up: nothing paid for is lost.
        desk.save()


@dataclass(slots=True)
class _Batch:
    requests: Sequence[Request]
    done: dict[int, Completion] = field(default_factory=dict)
    failed: dict[int, Completion] = field(default_factory=dict)
    again: set[int] = field(default_factory=set)
    asked: bool = False

    @property
    def whole(self) -> bool:
        return len(self.done) + len(self.failed) == len(self.requests)

    def completions(self) -> list[Completion]:
        return [self.done[i] for i in range(len(self.requests))]


class InFlightBatches:
    """Batches under way: what is recorded, and what the engine still owes."""

    def __init__(
        self, run: Run, supervisor: Supervisor | None, session: Session, watch: Watch | None
    ) -> None:
        self._run, self._supervisor, self._session, self._watch = run, supervisor, session, watch
        self._batches: dict[int, _Batch] = {}
        self._inbox: queue.SimpleQueue[tuple[int, int, Completion, float] | Exception] = (
            queue.SimpleQueue()
        )
        self._failures: deque[bool] = deque(maxlen=_FAILURES_LOOKED_AT)
        self._last_failed = False

    def open(self, number: int, requests: Sequence[Request]) -> None:
        """Take what is recorded of a batch; the engine is asked when `settle` has to wait."""
        batch = self._batches[number] = _Batch(requests)
        for i, request in enumerate(requests):
            entry = self._run.recorded(number, i)
            if entry is None:
                continue
            if entry.request_digest != request_digest(request):
                made_by = self._run.info.versions.get("instructgen", "?")
                raise RunError(
                    f"{self._run.folder}: batch {number} was recorded with another prompt.",
                    f"Use the instructgen that made it ({made_by}).",
                )
            batch.done[i] = entry.completion
            self._session.replayed += 1

    def settle(self, number: int) -> _Batch | None:
        """Wait until a batch is complete; return None if it is not and the engine is missing."""
        batch = self._batches[number]
        while not self._inbox.empty():
            self._receive(self._inbox.get())
        if not batch.whole:
            if self._supervisor is None:
                return None
            # Only now, and for every open batch: a run whose last batch is
            # recorded must not buy the one after it.
            for open_number, open_batch in self._batches.items():
                if not open_batch.asked:
                    self._ask(self._supervisor, open_number, open_batch)
        for chance in range(_SECOND_CHANCES + 1):
            while not batch.whole:
                self._receive(self._inbox.get())
            # A failure becomes a row's fate only when the server has answered
            # something since: else it is down, and the request is not to blame.
            doubtful = [i for i, c in batch.failed.items() if c.retryable and self._last_failed]
            if not doubtful or self._supervisor is None or chance == _SECOND_CHANCES:
                break
            for i in doubtful:
                del batch.failed[i]
                batch.again.add(i)
            self._ask(self._supervisor, number, batch)
        for i, completion in sorted(batch.failed.items()):
            self._record(number, i, completion)
        if self._supervisor is not None:
            self._run.sync()
        return self._batches.pop(number)

    def save(self) -> None:
        """Record the finished completions that have arrived by now."""
        while not self._inbox.empty():
            message = self._inbox.get()
            if not isinstance(message, Exception) and message[2].finish_reason != "error":
                self._record(*message[:3])
        self._run.sync()

    def _ask(self, supervisor: Supervisor, number: int, batch: _Batch) -> None:
        batch.asked = True
        missing = [
            i for i in range(len(batch.requests)) if i not in batch.done and i not in batch.failed
        ]
        if not missing:
            return
        p = self._session
        if p.engine_started is None:
            supervisor.engine.start()
            p.engine_started = p.busy_until = time.monotonic()
        if p.outstanding == 0:
            p.idle_s += max(0.0, time.monotonic() - p.busy_until)
        p.outstanding += len(missing)
        p.asked += len(missing)
        requests = [batch.requests[i] for i in missing]

        def work() -> None:
            try:
                for at, completion in supervisor.complete(requests):
                    self._inbox.put((number, missing[at], completion, time.monotonic()))
            except Exception as error:  # noqa: BLE001 (raised again where it is received)
                self._inbox.put(error)

        threading.Thread(target=work, name=f"batch-{number}", daemon=True).start()

    def _receive(self, message: tuple[int, int, Completion, float] | Exception) -> None:
        if isinstance(message, Exception):
            raise message
        number, i, completion, at = message
        p = self._session
        p.outstanding -= 1
        p.busy_until = max(p.busy_until, at)
        p.output_tokens += completion.output_tokens
        failed = self._last_failed = completion.finish_reason == "error"
        batch = self._batches[number]
        if i not in batch.again:
            # A second chance shows the state of its request, not of the server.
            self._failures.append(failed)
        if failed:
            batch.failed[i] = completion
            self._stop_if_most_fail(completion)
        else:
            self._record(number, i, completion)
        if self._watch is not None:
            self._watch(p.progress())

    def _record(self, number: int, i: int, completion: Completion) -> None:
        batch = self._batches[number]
        self._run.record(number, i, request_digest(batch.requests[i]), completion)
        batch.done[i] = completion

    def _stop_if_most_fail(self, last: Completion) -> None:
        looked_at, failed = len(self._failures), sum(self._failures)
        if looked_at >= _FAILURES_NEEDED and 2 * failed > looked_at:
            raise EngineError(
                f"{failed} of the last {looked_at} requests failed; the last: {last.error}.",
                "Fix the cause, then rerun the same command to resume.",
            )
