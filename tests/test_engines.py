"""Tests of the engine interface: threads, cancellation, errors, and restarts after a death."""

from __future__ import annotations

import multiprocessing
import os
import queue
import re
import signal
import sys
import threading
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import PrivateAttr

from instructgen.engines import Completion, Engine, QueueEngine, Request, Sampling, ask
from instructgen.engines import supervisor as supervisors
from instructgen.engines.echo import EchoEngine
from instructgen.engines.supervisor import Received, Supervisor
from instructgen.engines.vllm import VllmEngine
from instructgen.errors import ConfigError, EngineDied, EngineError
from instructgen.models.folders import default_model
from instructgen.plugins import find

# A lost request would make a test wait forever.
pytestmark = pytest.mark.timeout(60)


def requests(n: int) -> list[Request]:
    return [Request(f"word {i} word", Sampling(max_tokens=5, seed=i)) for i in range(n)]


def submit(supervisor: Supervisor, batch: Sequence[Request], first: int = 0) -> None:
    for number, request in enumerate(batch, first):
        supervisor.submit(number, request)


def receive(supervisor: Supervisor, n: int) -> dict[int, Completion]:
    """Return ``n`` completions by the number of their request; each must arrive once."""
    received = [supervisor.receive(30) for _ in range(n)]
    completions = dict(r for r in received if r is not None)
    assert len(completions) == n
    return completions


def serve(connection: Any, answers: int) -> None:
    """Answer some requests, then kill this process."""
    for _ in range(answers):
        connection.send(connection.recv().upper())
    connection.recv()
    os.kill(os.getpid(), signal.SIGKILL)


class MortalEngine(QueueEngine):
    """An engine with a real process behind a pipe that dies after ``answers`` answers."""

    name = "mortal"
    answers: int = 3

    _pipe: Any = PrivateAttr(None)
    _process: Any = PrivateAttr(None)
    _answered: list[str] = PrivateAttr(default_factory=list)

    def has_chat_template(self) -> bool:
        return False

    def start(self) -> None:
        if self._process is None:
            self._pipe, theirs = multiprocessing.Pipe()
            self._process = multiprocessing.get_context("fork").Process(
                target=serve, args=(theirs, self.answers), daemon=True
            )
            self._process.start()
            theirs.close()

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        (request,) = requests
        try:
            self._pipe.send(request.prompt)
            text = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise EngineDied("the process is gone") from error
        self._answered.append(request.prompt_text())
        return [Completion(text, "stop", 1, 1)]

    def restart(self) -> None:
        self._end()
        super().close()
        self.start()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._end()

    def _end(self) -> None:
        self._process.join()
        self._pipe.close()
        self._process = None


class GatedEngine(QueueEngine):
    """An engine that reports when it begins a completion, and then waits until it may end it."""

    name = "gated"

    _began: Any = PrivateAttr(default_factory=lambda: threading.Semaphore(0))
    _may_end: Any = PrivateAttr(default_factory=lambda: threading.Semaphore(0))
    _prompts: list[str] = PrivateAttr(default_factory=list)

    def has_chat_template(self) -> bool:
        return False

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        self._prompts += [r.prompt_text() for r in requests]
        self._began.release()
        self._may_end.acquire()
        return [Completion("x", "stop", 1, 1) for _ in requests]


# -- restarts -----------------------------------------------------------------------------


def test_after_a_restart_only_unfinished_requests_are_sent_again() -> None:
    engine = MortalEngine(answers=3, max_restarts=3)
    supervisor = Supervisor(engine)
    batch = requests(10)
    submit(supervisor, batch)
    answers = receive(supervisor, 10)
    assert all(c.text == str(batch[i].prompt).upper() for i, c in answers.items())
    assert supervisor.restarts == 3
    assert supervisor.outstanding == 0
    supervisor.close()
    assert sorted(engine._answered) == sorted(str(r.prompt) for r in batch)


def test_requests_submitted_after_a_restart_are_answered() -> None:
    supervisor = Supervisor(MortalEngine(answers=2, max_restarts=5))
    for first in (0, 3, 6):
        submit(supervisor, requests(3), first)
        assert sorted(receive(supervisor, 3)) == [first, first + 1, first + 2]
    assert supervisor.restarts == 4
    supervisor.close()


def test_the_engine_restarts_at_most_max_restarts_times() -> None:
    supervisor = Supervisor(MortalEngine(answers=2, max_restarts=2))
    submit(supervisor, requests(20))
    assert sorted(receive(supervisor, 6)) == list(range(6))
    with pytest.raises(EngineError, match=r"mortal.*\b3\b") as caught:
        supervisor.receive(30)
    assert supervisor.restarts == 2
    assert isinstance(caught.value.__cause__, EngineDied)
    assert not isinstance(caught.value, EngineDied)
    assert caught.value.hint
    supervisor.close()


def test_a_death_with_requests_of_two_threads_causes_one_restart() -> None:
    supervisor = Supervisor(MortalEngine(answers=8, max_restarts=5))
    threads = [
        threading.Thread(target=submit, args=(supervisor, requests(8), first)) for first in (0, 8)
    ]
    for t in threads:
        t.start()
    assert sorted(receive(supervisor, 16)) == list(range(16))
    assert supervisor.restarts == 1
    supervisor.close()


def test_a_canceled_request_is_not_sent_again_after_a_restart() -> None:
    engine = MortalEngine(answers=1, max_restarts=5)
    supervisor = Supervisor(engine)
    batch = requests(4)
    with supervisor._changed:
        # The engine cannot receive the first request before the last one is canceled.
        submit(supervisor, batch)
        supervisor.cancel(2)
    assert sorted(receive(supervisor, 3)) == [0, 1, 3]
    supervisor.close()
    assert str(batch[2].prompt) not in engine._answered


# -- threads, cancellation and errors -----------------------------------------------------


def test_the_completion_of_a_canceled_request_is_dropped() -> None:
    engine = GatedEngine()
    supervisor = Supervisor(engine)
    batch = requests(4)
    submit(supervisor, batch)
    engine._began.acquire()
    # Request 0 is being completed, and request 2 waits.
    supervisor.cancel(0)
    supervisor.cancel(2)
    assert supervisor.outstanding == 2
    engine._may_end.release(4)
    assert sorted(receive(supervisor, 2)) == [1, 3]
    assert supervisor.receive(0.05) is None
    supervisor.close()
    assert engine._prompts == [str(batch[i].prompt) for i in (0, 1, 3)]


def test_canceling_an_unknown_or_completed_request_does_nothing() -> None:
    supervisor = Supervisor(EchoEngine())
    supervisor.cancel(7)
    submit(supervisor, requests(1))
    receive(supervisor, 1)
    supervisor.cancel(0)
    submit(supervisor, requests(1), first=1)
    assert list(receive(supervisor, 1)) == [1]
    supervisor.close()


def test_one_thread_calls_the_engine_and_any_thread_submits() -> None:
    names: set[str] = set()

    class Named(EchoEngine):
        name = "named"

        def start(self) -> None:
            names.add(threading.current_thread().name)

        def complete(self, requests: Sequence[Request]) -> list[Completion]:
            names.add(threading.current_thread().name)
            return super().complete(requests)

        def close(self) -> None:
            names.add(threading.current_thread().name)

    supervisor = Supervisor(Named())
    threads = [
        threading.Thread(target=submit, args=(supervisor, requests(20), first))
        for first in (0, 20, 40)
    ]
    for t in threads:
        t.start()
    assert sorted(receive(supervisor, 60)) == list(range(60))
    supervisor.close()
    assert names == {"engine-named"}


@pytest.mark.parametrize("error", [ConfigError("no model"), EngineError("no GPU"), ValueError("x")])
def test_an_error_at_the_start_is_raised_where_the_engine_is_started(error: Exception) -> None:
    class Broken(EchoEngine):
        name = "broken"

        def start(self) -> None:
            raise error

    supervisor = Supervisor(Broken())
    with pytest.raises(type(error)) as caught:
        supervisor.start()
    assert caught.value is error
    supervisor.close()
    supervisor = Supervisor(Broken())
    submit(supervisor, requests(1))
    with pytest.raises(type(error)):
        supervisor.receive(30)
    supervisor.close()


@pytest.mark.parametrize("error", [EngineError("the disk is full"), ZeroDivisionError("a bug")])
def test_an_error_of_the_engine_is_raised_where_results_are_received(error: Exception) -> None:
    closed = threading.Event()

    class Failing(EchoEngine):
        name = "failing"

        def complete(self, requests: Sequence[Request]) -> list[Completion]:
            if "word 2" in requests[0].prompt_text():
                raise error
            return super().complete(requests)

        def close(self) -> None:
            closed.set()

    supervisor = Supervisor(Failing())
    submit(supervisor, requests(5))
    assert sorted(receive(supervisor, 2)) == [0, 1]
    with pytest.raises(type(error)) as caught:
        supervisor.receive(30)
    assert caught.value is error
    assert closed.wait(5)
    supervisor.close()


def test_two_supervisors_share_one_queue_of_results() -> None:
    results: queue.SimpleQueue[Received] = queue.SimpleQueue()
    gated = GatedEngine()
    slow, fast = Supervisor(gated, results), Supervisor(EchoEngine(), results)
    submit(slow, requests(2))
    submit(fast, requests(3), first=10)
    # The slow engine does not delay the fast one.
    assert sorted(receive(slow, 3)) == [10, 11, 12]
    gated._may_end.release(2)
    assert sorted(receive(fast, 2)) == [0, 1]
    assert results.empty()
    slow.close()
    fast.close()


def test_the_error_of_one_supervisor_does_not_hide_completions_of_another() -> None:
    class Broken(EchoEngine):
        name = "broken"

        def start(self) -> None:
            raise EngineError("no GPU")

    results: queue.SimpleQueue[Received] = queue.SimpleQueue()
    good, bad = Supervisor(EchoEngine(), results), Supervisor(Broken(), results)
    submit(good, requests(1))
    submit(bad, requests(1), first=1)
    received = [results.get(timeout=30), results.get(timeout=30)]
    assert sorted(r.number for r in received if r.completion is not None) == [0]
    assert [type(r.error) for r in received if r.error is not None] == [EngineError]
    assert all(0 <= time.monotonic() - r.at < 30 for r in received)
    good.close()
    bad.close()


def test_close_does_not_wait_for_an_engine_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisors, "_CLOSE_S", 0.2)
    engine = GatedEngine()
    supervisor = Supervisor(engine)
    submit(supervisor, requests(3))
    engine._began.acquire()
    began = time.monotonic()
    supervisor.close()
    assert time.monotonic() - began < 10
    assert supervisor.outstanding == 0
    engine._may_end.release(3)
    # What still arrives is dropped, and the engine begins nothing new.
    assert supervisor.receive(0.3) is None
    assert len(engine._prompts) == 1


@pytest.mark.parametrize("submitted", [0, 40])
def test_close_cancels_what_waits_and_ends_the_thread(submitted: int) -> None:
    supervisor = Supervisor(EchoEngine(delay_s=0.5))
    submit(supervisor, requests(submitted))
    began = time.monotonic()
    supervisor.close()
    supervisor.close()
    # One request may be computed; all of them take 20 s.
    assert time.monotonic() - began < 10
    assert supervisor._thread is None or not supervisor._thread.is_alive()


def test_the_engine_starts_at_the_first_request_and_is_closed_once() -> None:
    calls: list[str] = []

    class Counted(EchoEngine):
        name = "counted"

        def start(self) -> None:
            calls.append("start")

        def close(self) -> None:
            calls.append("close")

    supervisor = Supervisor(Counted())
    assert calls == []
    supervisor.start()
    supervisor.start()
    submit(supervisor, requests(2))
    receive(supervisor, 2)
    supervisor.close()
    assert calls == ["start", "close"]


def test_requests_that_wait_are_completed_together() -> None:
    sizes: list[int] = []

    class Batched(EchoEngine):
        name = "batched"

        def at_once(self) -> int:
            return 4

        def complete(self, requests: Sequence[Request]) -> list[Completion]:
            sizes.append(len(requests))
            return super().complete(requests)

    answers = dict(ask(Batched(), requests(10)))
    assert sorted(answers) == list(range(10))
    assert sizes == [4, 4, 2]
    assert answers == dict(ask(EchoEngine(), requests(10)))


def test_next_returns_after_the_timeout() -> None:
    engine = EchoEngine()
    began = time.monotonic()
    assert engine.next(0.1) is None
    assert 0.05 < time.monotonic() - began < 10


def test_the_data_type_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from instructgen.models.loading import fastest_dtype

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert fastest_dtype() == "bfloat16"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
    if {"avx512bw", "avx512vl", "avx512dq"} <= flags:
        assert fastest_dtype() == "bfloat16"
    elif "avx2" in flags and not {"avx512f", "avx_ne_convert"} & flags:
        assert fastest_dtype() == "float32"
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert fastest_dtype() == "bfloat16"


def test_an_engine_that_cannot_restart_says_so() -> None:
    with pytest.raises(EngineError):
        EchoEngine().restart()


# -- completions --------------------------------------------------------------------------


def test_echo_is_deterministic_and_ends_at_stop_strings() -> None:
    request = Request("a b c\na b d\na", Sampling(max_tokens=50, stop=("\n",), seed=3))
    ((_, first),) = ask(EchoEngine(), [request])
    ((_, second),) = ask(EchoEngine(), [request])
    assert first == second
    assert "\n" not in first.text
    assert first.finish_reason == "stop"


@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_empty_prompt_does_not_affect_other_requests(at: int) -> None:
    batch = requests(3)
    batch[at] = Request("", Sampling(max_tokens=5))
    answers = dict(ask(EchoEngine(), batch))
    assert answers[at].finish_reason == "error"
    assert all(answers[i].finish_reason != "error" for i in range(3) if i != at)


class FixedText(QueueEngine):
    """An engine with one answer, which it can give only to a request with a schema."""

    name = "fixed_text"
    can_enforce_schemas = True
    text: str = ""
    chat: bool = True

    def has_chat_template(self) -> bool:
        return self.chat

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        assert requests[0].schema is not None
        return [Completion(self.text, "stop", 1, 1)]


def enforces_schemas(engine: Engine) -> bool:
    supervisor = Supervisor(engine)
    try:
        return supervisor.enforces_schemas()
    finally:
        supervisor.close()


def test_only_the_expected_json_shows_that_schemas_are_enforced() -> None:
    assert enforces_schemas(FixedText(text='{"probe":"q7-instructgen"}'))
    for text in ("Hello!", "{}", '{"probe": "other"}', '{"probe":"q7-instructgen"'):
        assert not enforces_schemas(FixedText(text=text))


def test_an_engine_without_chat_template_or_schemas_is_not_started_for_a_test() -> None:
    for engine in (FixedText(text='{"probe":"q7-instructgen"}', chat=False), EchoEngine()):
        supervisor = Supervisor(engine)
        assert not supervisor.enforces_schemas()
        assert supervisor._thread is None


def test_a_request_gets_a_seed_without_other_changes() -> None:
    request = requests(1)[0]
    assert request.with_seed(99).sampling.seed == 99
    assert request.with_seed(99).prompt == request.prompt


@pytest.mark.parametrize("name", ["vllm", "transformers"])
def test_a_local_engine_has_a_default_model(name: str) -> None:
    engine = find("engines", name)()
    assert engine.model == default_model()
    assert engine.identity()["model"] == engine.model


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("chosen", [None, 8])
def test_vllm_chooses_the_number_of_sequences_itself_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, gpu: bool, chosen: int | None
) -> None:
    """The class of vLLM is replaced, because there may be no GPU; test_real_engines.py has it."""
    passed: list[dict[str, Any]] = []
    module = types.ModuleType("vllm")
    module.LLM = lambda **options: passed.append(options)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr("instructgen.engines.vllm.has_gpu", lambda: gpu)
    monkeypatch.setattr("instructgen.engines.vllm._work_around_llvmlite", lambda: None)
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CPU_OMP_THREADS_BIND"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    VllmEngine(model=str(tiny), max_num_seqs=chosen).load()
    (options,) = passed
    assert options.get("max_num_seqs") == (chosen or (None if gpu else 64))
    assert ("gpu_memory_utilization" in options) == gpu
