"""The sequencer: failures of a server, small windows, several engines, and resumption."""

from __future__ import annotations

import gc
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import PrivateAttr

from instructgen.engines import (
    CommitOrder,
    Completion,
    QueueEngine,
    Request,
    Role,
    Sampling,
)
from instructgen.engines.echo import EchoEngine
from instructgen.engines.supervisor import Received, Supervisor
from instructgen.errors import EngineError
from instructgen.filters import ScoringFilter
from instructgen.generation.loop import Loop
from instructgen.generation.methods import (
    Accept,
    Draft,
    Method,
    Outcome,
    PromptSetup,
    Propose,
    Stage,
    child_sample,
)
from instructgen.generation.options import Config
from instructgen.generation.seed_pool import seeds_digest
from instructgen.generation.sequencer import Sequencer, answer_all
from instructgen.generation.settings import RunSettings
from instructgen.generation.work import Choice, RequestList, Stop
from instructgen.schema.sample import Sample, Score
from instructgen.store import FORMAT, CompletionLine, IssueLine, Run, RunInfo, Seeds

GOOD = Completion("x", "stop", 1, 1)
DOWN = Completion.failed("HTTP 503", retryable=True)
BAD = Completion.failed("HTTP 400")


class Scripted(QueueEngine):
    """Answers each request as ``answers`` says, by its prompt; otherwise with a good completion."""

    name = "scripted"

    _answers: dict[str, Completion] = PrivateAttr(default_factory=dict)
    _asked: list[str] = PrivateAttr(default_factory=list)
    _submissions: list[int] = PrivateAttr(default_factory=list)
    _window: int = PrivateAttr(32)
    _seconds: float = PrivateAttr(0.0)

    def has_chat_template(self) -> bool:
        return False

    def window(self) -> int:
        return self._window

    def submit(self, number: int, request: Request) -> None:
        self._submissions.append(number)
        super().submit(number, request)

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        time.sleep(self._seconds)
        self._asked += [str(r.prompt) for r in requests]
        return [self._answers.get(str(r.prompt), GOOD) for r in requests]


def engine(answers: dict[str, Completion] | None = None, **settings: Any) -> Scripted:
    made = Scripted()
    made._answers = answers or {}
    for name, value in settings.items():
        setattr(made, f"_{name}", value)
    return made


def requests(count: int, role: Role = "writer") -> list[Request]:
    return [Request(f"{role} {i}", Sampling(seed=i), role=role) for i in range(count)]


@contextmanager
def sequencer(
    work: RequestList, engines: dict[Role, Scripted], run: Run | None = None, **options: Any
) -> Iterator[Sequencer[RequestList]]:
    results: queue.SimpleQueue[Received] = queue.SimpleQueue()
    supervisors = {role: Supervisor(e, results) for role, e in engines.items()}
    try:
        yield Sequencer(work, run, supervisors, **options)
    finally:
        for supervisor in supervisors.values():
            supervisor.close()


@contextmanager
def journal(folder: Path) -> Iterator[Run]:
    if (folder / "run.json").exists():
        with Run.open(folder) as run:
            yield run
        return
    info = RunInfo(FORMAT, "0" * 16, {}, Seeds(seeds_digest([]), 0), {"instructgen": "x"})
    with Run.create(folder, info, []) as run:
        yield run


def test_a_request_that_always_fails_does_not_stop_the_others() -> None:
    """Its failure is final, because the server has answered others since."""
    for order in ("arrival", "issued"):
        work = RequestList(requests(40))
        scripted = engine({"writer 3": DOWN}, window=4)
        with sequencer(work, {"writer": scripted}, order=order) as driver:
            driver.run_to_stop()
        failed = [i for i, c in enumerate(work.completions) if c is not None and c.error]
        assert failed == [3]
        assert scripted._asked.count("writer 3") == 2
        assert all(scripted._asked.count(f"writer {i}") == 1 for i in range(40) if i != 3)


@pytest.mark.parametrize("order", ["arrival", "issued"])
@pytest.mark.parametrize("bad", [[11], [6, 7, 8, 9, 10, 11], [0]])
def test_requests_without_others_may_always_fail(order: str, bad: list[int]) -> None:
    """When no other request is left, an earlier one shows that the server answers."""
    work = RequestList(requests(12))
    scripted = engine({f"writer {i}": DOWN for i in bad})
    with sequencer(work, {"writer": scripted}, order=order) as driver:
        driver.run_to_stop()
    assert [i for i, c in enumerate(work.completions) if c is not None and c.error] == bad


def test_an_outage_at_the_end_costs_no_request() -> None:
    """What failed before the server answered again is asked once more after that."""

    class Outage(Scripted):
        def complete(self, requests: Sequence[Request]) -> list[Completion]:
            before = len(self._asked)
            answered = super().complete(requests)
            # The last request and its repetition fail, and the check succeeds.
            return [DOWN if before + i in (7, 8) else GOOD for i in range(len(answered))]

    work, outage = RequestList(requests(8)), Outage()
    outage._window = 1
    with sequencer(work, {"writer": outage}) as driver:
        driver.run_to_stop()
    assert work.completions == [GOOD] * 8
    assert outage._asked[7:] == ["writer 7", "writer 7", "writer 6", "writer 7"]


def test_a_run_restores_the_settings_of_the_garbage_collector() -> None:
    before = gc.get_threshold()
    inside = set()

    class Looking(Scripted):
        def complete(self, requests: Sequence[Request]) -> list[Completion]:
            inside.add(gc.get_threshold())
            return [DOWN] * len(requests)

    with (
        sequencer(RequestList(requests(3)), {"writer": Looking()}) as driver,
        pytest.raises(EngineError),
    ):
        driver.run_to_stop()
    assert before not in inside
    assert gc.get_threshold() == before


def test_each_role_is_checked() -> None:
    """The writer's answers do not show that the judge's server answers."""
    both = [*requests(6), *requests(6, "judge")]
    work = RequestList(both)
    engines: dict[Role, Scripted] = {
        "writer": engine({"writer 5": DOWN}),
        "judge": engine({"judge 5": DOWN}),
    }
    with sequencer(work, engines) as driver:
        driver.run_to_stop()
    failed = [r.prompt for r, c in zip(both, work.completions, strict=True) if c is None or c.error]
    assert failed == ["writer 5", "judge 5"]


def test_a_run_with_only_failing_requests_left_can_be_resumed(tmp_path: Path) -> None:
    """What the journal says was answered is asked again, and its completion is not used."""
    first = RequestList(requests(8))
    with (
        journal(tmp_path / "run") as run,
        sequencer(first, {"writer": engine(window=1)}, run) as driver,
    ):
        driver.run_to_stop(most=7)
    work, scripted = RequestList(requests(8)), engine({"writer 7": DOWN})
    with journal(tmp_path / "run") as run:
        with sequencer(work, {"writer": scripted}, run) as driver:
            driver.run_to_stop()
        kept = [line.n for _, line in run.lines() if isinstance(line, CompletionLine)]
    assert scripted._asked == ["writer 7"] * 2 + ["writer 6", "writer 7", "writer 6"]
    assert [c.error for c in work.completions if c is not None] == [None] * 7 + [DOWN.error]
    assert kept == list(range(8))


def test_a_server_that_stops_answering_fails_the_check_too() -> None:
    class Lost(Scripted):
        def complete(self, requests: Sequence[Request]) -> list[Completion]:
            answered = super().complete(requests)
            return answered if len(self._asked) <= 4 else [DOWN] * len(requests)

    work, lost = RequestList(requests(6)), Lost()
    lost._window = 1
    with sequencer(work, {"writer": lost}) as driver, pytest.raises(EngineError):
        driver.run_to_stop()
    assert lost._asked.count("writer 4") == 2
    assert lost._asked[-1] == "writer 3"
    assert sum(c is not None for c in work.completions) == 4


@pytest.mark.parametrize("order", ["arrival", "issued"])
def test_a_window_that_shrinks_while_the_first_request_fails(order: str) -> None:
    """Completions that wait for the failed request fill the window only for a while."""

    class Shrinking(Scripted):
        def complete(self, requests: Sequence[Request]) -> list[Completion]:
            self._window = 2
            return super().complete(requests)

    work, shrinking = RequestList(requests(100)), Shrinking()
    shrinking._answers, shrinking._window = {"writer 0": DOWN}, 4
    with sequencer(work, {"writer": shrinking}, order=order) as driver:
        driver.run_to_stop()
    failed = [i for i, c in enumerate(work.completions) if c is not None and c.error]
    assert failed == [0]


@pytest.mark.parametrize("window", [1, 2, 64])
def test_a_server_that_is_down_stops_the_run_without_a_final_failure(
    tmp_path: Path, window: int
) -> None:
    work = RequestList(requests(30))
    down = engine({r.prompt: DOWN for r in work.requests}, window=window)  # type: ignore[misc]
    with journal(tmp_path / "run") as run, sequencer(work, {"writer": down}, run) as driver:
        with pytest.raises(EngineError, match="503"):
            driver.run_to_stop()
        assert not any(isinstance(line, CompletionLine) for _, line in run.lines())
    # The same requests are asked again when the server is back.
    work, up = RequestList(requests(30)), engine(window=window)
    with journal(tmp_path / "run") as run, sequencer(work, {"writer": up}, run) as driver:
        driver.run_to_stop()
    assert work.completions == [GOOD] * 30
    assert sorted(up._asked) == sorted(r.prompt for r in work.requests)  # type: ignore[type-var]


def test_an_answer_of_another_role_does_not_make_a_failure_final() -> None:
    work = RequestList([*requests(3), *requests(8, "reward")])
    down = engine({f"writer {i}": DOWN for i in range(3)})
    engines: dict[Role, Scripted] = {"writer": down, "reward": engine(seconds=0.02)}
    with sequencer(work, engines) as driver, pytest.raises(EngineError, match="503"):
        driver.run_to_stop()
    assert work.completions[:3] == [None] * 3


def test_a_server_that_rejects_everything_stops_the_run(tmp_path: Path) -> None:
    """The requests that it rejected last are asked again."""
    work = RequestList(requests(60))
    bad = engine({r.prompt: BAD for r in work.requests}, window=30)  # type: ignore[misc]
    bad._seconds = 0.005
    with journal(tmp_path / "run") as run, sequencer(work, {"writer": bad}, run) as driver:
        with pytest.raises(EngineError, match="400"):
            driver.run_to_stop()
        assert sum(isinstance(line, CompletionLine) for _, line in run.lines()) < 10


class Slow(Scripted):
    """Answers its first request after ``others`` others; counts what it has at once."""

    _others: int = PrivateAttr(0)
    _held: dict[int, Request] = PrivateAttr(default_factory=dict)
    _most: int = PrivateAttr(0)

    def submit(self, number: int, request: Request) -> None:
        self._submissions.append(number)
        self._most = max(self._most, len(self._submissions) - len(self._asked))
        if number == 0:
            self._held[0] = request
        else:
            QueueEngine.submit(self, number, request)

    def next(self, timeout_s: float = 60.0) -> tuple[int, Completion] | None:
        if len(self._asked) == self._others and self._held:
            QueueEngine.submit(self, 0, self._held.pop(0))
        return super().next(0.01)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("has_queue", [True, False])
@pytest.mark.parametrize("fixed", [None, 4])
def test_in_issued_order_a_slow_request_does_not_leave_the_engine_idle(
    monkeypatch: pytest.MonkeyPatch, fixed: int | None, has_queue: bool
) -> None:
    """Eight windows may wait for their commit; a server has one window at a time.

    A window that the user has set is not exceeded.
    """
    monkeypatch.setattr(Slow, "has_queue", has_queue)
    work, slow = RequestList(requests(100)), Slow()
    slow._window, slow._others = 4, 31 if fixed is None else 3
    with sequencer(work, {"writer": slow}, order="issued", window=fixed) as driver:
        driver.run_to_stop()
    assert work.completions == [GOOD] * 100
    assert slow._asked.index("writer 0") == slow._others
    most = 32 if has_queue and fixed is None else 4
    assert most // 2 < slow._most <= most


def test_a_server_of_two_roles_gets_their_requests_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Scripted, "has_queue", False)
    work = RequestList(
        [r for pair in zip(requests(60), requests(60, "judge"), strict=True) for r in pair]
    )
    shared, results = engine(window=4, seconds=0.001), queue.SimpleQueue()  # type: ignore[var-annotated]
    supervisor = Supervisor(shared, results)
    roles: dict[Role, Supervisor] = {"writer": supervisor, "judge": supervisor}
    Sequencer(work, None, roles, order="issued").run_to_stop()
    supervisor.close()
    assert shared._submissions == sorted(shared._submissions) == list(range(120))


def test_a_server_whose_window_shrinks_gets_no_more_until_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In issued order, requests wait that were made for the larger window."""
    most: list[int] = []

    class Shrinking(Scripted):
        def complete(self, requests: Sequence[Request]) -> list[Completion]:
            self._window = 8 if len(self._asked) < 20 else 2
            if len(self._asked) > 40:
                most.append(len(self._submissions) - len(self._asked))
            return super().complete(requests)

    monkeypatch.setattr(Shrinking, "has_queue", False)
    work, shrinking = RequestList(requests(200)), Shrinking()
    shrinking._window = 8
    with sequencer(work, {"writer": shrinking}, order="issued") as driver:
        driver.run_to_stop()
    assert work.completions == [GOOD] * 200
    assert len(most) > 100
    assert max(most) <= 2


class Following:
    """Drafts with two requests each; the second, which comes first, follows from the first."""

    def __init__(self, drafts: int) -> None:
        self.stopped: Stop | None = None
        self._drafts, self._begun, self._left = drafts, 0, 2 * drafts
        self._following: deque[int] = deque()
        self._open: dict[int, Choice] = {}

    def choose(self, free: Callable[[Role], bool]) -> Choice | None:
        if not free("writer"):
            return None
        if self._following:
            return Choice(self._following[0], "second")
        return Choice(self._begun, "first") if self._begun < self._drafts else None

    def issue(self, number: int, choice: Choice) -> Request:
        if choice.stage == "second":
            self._following.popleft()
        else:
            self._begun += 1
        self._open[number] = choice
        return Request(f"{choice.stage} {choice.draft}", Sampling())

    def commit(self, number: int, completion: Completion) -> None:
        choice = self._open.pop(number)
        if choice.stage == "first":
            self._following.append(choice.draft)
        self._left -= 1
        if not self._left:
            self.stopped = Stop("complete", "")


def test_what_follows_from_an_answer_is_asked_before_a_larger_window_is_filled() -> None:
    """A server with few slots answers in order, so the first row would wait for all new drafts."""

    class Growing(Scripted):
        def complete(self, requests: Sequence[Request]) -> list[Completion]:
            # The first requests must have been sent before the window grows.
            answers = super().complete(requests)
            self._window = 30
            return answers

    growing = Growing()
    growing._window, growing._seconds = 2, 0.01
    supervisor = Supervisor(growing)
    try:
        Sequencer(Following(40), None, {"writer": supervisor}).run_to_stop()
    finally:
        supervisor.close()
    assert growing._asked[:3] == ["first 0", "first 1", "second 0"]
    assert len(growing._asked) == 80


def test_a_resumed_run_sends_no_more_than_its_window(tmp_path: Path) -> None:
    first = engine(window=200, seconds=0.05)
    with journal(tmp_path / "run") as run:
        with sequencer(RequestList(requests(300)), {"writer": first}, run) as driver:
            driver.run_to_stop(3)
        issued = driver._issued
    assert issued > 150
    work, second = RequestList(requests(300)), engine(window=4)
    with journal(tmp_path / "run") as run, sequencer(work, {"writer": second}, run) as driver:
        driver.run_to_stop(20)
        assert len(second._submissions) <= 20 + 4
    work, third = RequestList(requests(300)), engine(window=4)
    with journal(tmp_path / "run") as run, sequencer(work, {"writer": third}, run) as driver:
        driver.run_to_stop()
    assert work.completions == [GOOD] * 300


@pytest.mark.parametrize("order", ["arrival", "issued"])
def test_a_request_is_recorded_before_it_is_sent_and_not_sent_again_when_completed(
    order: CommitOrder, tmp_path: Path
) -> None:
    class Checking(Scripted):
        _run: Any = PrivateAttr(None)

        def submit(self, number: int, request: Request) -> None:
            lines = [line for _, line in self._run.lines()]
            assert number in [line.n for line in lines if isinstance(line, IssueLine)]
            super().submit(number, request)

    completed: list[int] = []
    for most in (3, 40, None):
        work, checking = RequestList(requests(90)), Checking()
        checking._window = 7
        with journal(tmp_path / "run") as run:
            checking._run = run
            with sequencer(work, {"writer": checking}, run, order=order) as driver:
                driver.run_to_stop(most)
            assert not {n for n in checking._submissions if n in completed}
            completed = [line.n for _, line in run.lines() if isinstance(line, CompletionLine)]
        assert len(set(checking._submissions)) == len(checking._submissions)
    assert work.completions == [GOOD] * 90


def test_an_engine_error_reaches_the_caller_and_nothing_is_lost(tmp_path: Path) -> None:
    class Ending(Scripted):
        def complete(self, requests: Sequence[Request]) -> list[Completion]:
            if len(self._asked) == 5:
                raise EngineError("HTTP 401", "Check the key.")
            return super().complete(requests)

    with journal(tmp_path / "run") as run:
        with pytest.raises(EngineError, match="401"):
            answer_all(Ending(), requests(20), run)
        done = [line.n for _, line in run.lines() if isinstance(line, CompletionLine)]
        assert sorted(done) == [0, 1, 2, 3, 4]
    again = engine()
    with journal(tmp_path / "run") as run:
        assert answer_all(again, requests(20), run) == [GOOD] * 20
    assert len(again._asked) == 15


# -- rows that wait for scores ---------------------------------------------------------------------


class TwoStages(Method):
    """Four instructions per draft, and one row per instruction."""

    name = "two_stages"
    stages = (Stage("a", 4.0), Stage("b"))

    def start(self, pool: Any, rng: Any, number: int, form: PromptSetup) -> Draft:
        return Draft(number, "a", child_sample(pool, (0,), "en"), (0,))

    def request(self, pool: Any, draft: Draft, form: PromptSetup) -> Request:
        return Request("p", Sampling(), stage=draft.stage)

    def read(self, draft: Draft, completion: Completion, form: PromptSetup) -> list[Outcome]:
        if draft.stage == "b":
            return [Accept(replace(draft.sample, output="out"))]
        texts = [f"do {draft.number} {i}" for i in range(4)]
        return [
            Propose(replace(draft, stage="b", sample=replace(draft.sample, instruction=text)))
            for text in texts
        ]


class Scored(ScoringFilter):
    """A filter whose scores the test passes to the loop."""

    name = "scored"

    @property
    def score_name(self) -> str:
        return "scored/x"

    def scores(self, samples: Sequence[Sample]) -> list[Score]:
        raise AssertionError("the loop asks for scores with requests")


def scored_loop(target: int) -> Loop:
    seed = Sample(instruction="seed task", output="o", language="en")
    settings = RunSettings(target=target)
    config = Config(settings, TwoStages(), EchoEngine(), (Scored(min=0.5),))
    return Loop(config, PromptSetup("completion", False), [seed], "run")


def test_waiting_for_scores_is_not_a_lack_of_rows() -> None:
    loop = scored_loop(5_000)
    waiting: list[int] = []
    for number in range(2_000):
        choice = loop.choose(lambda role: role == "writer" or len(waiting) < 32)
        assert choice is not None and loop.stopped is None
        request = loop.issue(number, choice)
        if request.role == "reward":
            waiting.append(number)
        else:
            loop.commit(number, GOOD)
    assert len(waiting) == 32
    unscored = loop.in_progress()["score scored/x"]
    assert unscored > 200
    _, rejected, tally = loop.finish()
    assert sum(r.rejection.reason == "not_scored" for r in rejected) == unscored
    assert tally.candidates == tally.kept + sum(tally.rejected.values())
    for number in waiting:
        loop.commit(number, Completion('{"value":0.9,"error":null}', "stop"))
    assert len(loop.rows) == 32


def test_low_scores_end_the_run() -> None:
    loop, number = scored_loop(5_000), 0
    while loop.stopped is None and number < 3_000:
        choice = loop.choose(lambda role: True)
        assert choice is not None
        request = loop.issue(number, choice)
        low = Completion('{"value":0.1,"error":null}', "stop")
        loop.commit(number, low if request.role == "reward" else GOOD)
        number += 1
    assert loop.stopped is not None
    assert loop.stopped.reason == "acceptance_floor"
    assert not loop.rows


def test_requests_of_all_roles_keep_the_slots_of_a_shared_engine_busy() -> None:
    """Without a judge of its own, the writer's engine is also the judge."""
    supervisor = Supervisor(engine())
    work = RequestList([*requests(4), *requests(3, "judge")])
    both = Sequencer(work, None, {"writer": supervisor, "judge": supervisor})
    try:
        both.run_to_stop()
    finally:
        supervisor.close()
    assert (both.activity.asked, both.activity.output_tokens) == (7, 7 * GOOD.output_tokens)
    # Another engine's requests do not use the writer's slots.
    work = RequestList([*requests(4), *requests(3, "judge")])
    with sequencer(work, {"writer": engine(), "judge": engine()}) as apart:
        apart.run_to_stop()
    assert (apart.activity.asked, apart.activity.output_tokens) == (7, 4 * GOOD.output_tokens)
