"""Tests of all engines: a failed request affects no other, and an engine that died restarts."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from pydantic import PrivateAttr

from instructgen.engines import (
    Completion,
    Engine,
    Request,
    Sampling,
    Supervisor,
    probe_schema_enforcement,
)
from instructgen.engines.echo import EchoEngine
from instructgen.errors import EngineDied, EngineError


def requests(n: int) -> list[Request]:
    return [Request(f"word {i} word", Sampling(max_tokens=5, seed=i)) for i in range(n)]


def serve(connection: Any, answers: int) -> None:
    """Answer some requests, then kill this process."""
    for _ in range(answers):
        connection.send(connection.recv().upper())
    connection.recv()
    os.kill(os.getpid(), signal.SIGKILL)


class MortalEngine(Engine):
    """An engine with a real process behind a pipe that dies after ``answers`` answers."""

    name = "mortal"
    answers: int = 3

    _pipe: Any = PrivateAttr(None)
    _process: Any = PrivateAttr(None)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    def has_chat_template(self) -> bool:
        return False

    def start(self) -> None:
        if self._process is None:
            ours, theirs = multiprocessing.Pipe()
            process = multiprocessing.get_context("fork").Process(
                target=serve, args=(theirs, self.answers), daemon=True
            )
            process.start()
            theirs.close()
            object.__setattr__(self, "_pipe", ours)
            object.__setattr__(self, "_process", process)

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        for i, request in enumerate(requests):
            with self._lock:
                self.start()
                try:
                    self._pipe.send(request.prompt)
                    text = self._pipe.recv()
                except (EOFError, OSError) as error:
                    raise EngineDied("the process is gone") from error
            yield i, Completion(text, "stop", 1, 1)

    def restart(self) -> None:
        with self._lock:
            self._process.join()
            object.__setattr__(self, "_process", None)


def test_after_a_restart_only_unfinished_requests_are_sent_again() -> None:
    supervisor = Supervisor(MortalEngine(answers=3, max_restarts=3))
    batch = requests(10)
    answers = list(supervisor.complete(batch))
    assert sorted(i for i, _ in answers) == list(range(10))
    assert all(c.text == str(batch[i].prompt).upper() for i, c in answers)
    assert supervisor.restarts == 3


def test_the_engine_restarts_at_most_max_restarts_times() -> None:
    supervisor = Supervisor(MortalEngine(answers=2, max_restarts=2))
    seen = []
    with pytest.raises(EngineError, match=r"mortal.*\b3\b") as caught:
        for i, _ in supervisor.complete(requests(20)):
            seen.append(i)
    assert len(seen) == 6
    assert supervisor.restarts == 2
    assert isinstance(caught.value.__cause__, EngineDied)
    assert not isinstance(caught.value, EngineDied)
    assert caught.value.hint


def test_a_death_during_two_batches_causes_one_restart() -> None:
    engine = MortalEngine(answers=8, max_restarts=5)
    supervisor = Supervisor(engine)
    results: list[list[tuple[int, Completion]]] = [[], []]

    def work(k: int) -> None:
        results[k].extend(supervisor.complete(requests(8)))

    threads = [threading.Thread(target=work, args=(k,)) for k in (0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert all(sorted(i for i, _ in r) == list(range(8)) for r in results)
    # 16 requests, 8 answers per process: one death, or two if a process also dies at the end.
    assert 1 <= supervisor.restarts <= 2


def test_echo_is_deterministic_and_ends_at_stop_strings() -> None:
    request = Request("a b c\na b d\na", Sampling(max_tokens=50, stop=("\n",), seed=3))
    ((_, first),) = EchoEngine().complete([request])
    ((_, second),) = EchoEngine().complete([request])
    assert first == second
    assert "\n" not in first.text
    assert first.finish_reason == "stop"


@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_empty_prompt_does_not_affect_other_requests(at: int) -> None:
    batch = requests(3)
    batch[at] = Request("", Sampling(max_tokens=5))
    answers = dict(EchoEngine().complete(batch))
    assert answers[at].finish_reason == "error"
    assert all(answers[i].finish_reason != "error" for i in range(3) if i != at)


def test_only_the_expected_json_shows_that_schemas_are_enforced() -> None:
    class FixedText(Engine):
        name = "fixed_text"
        text: str = ""

        def has_chat_template(self) -> bool:
            return True

        def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
            assert requests[0].schema is not None
            yield 0, Completion(self.text, "stop", 1, 1)

    assert probe_schema_enforcement(FixedText(text='{"probe":"q7-instructgen"}'))
    for text in ("Hello!", "{}", '{"probe": "other"}', '{"probe":"q7-instructgen"'):
        assert not probe_schema_enforcement(FixedText(text=text))


def test_a_request_gets_a_seed_without_other_changes() -> None:
    request = requests(1)[0]
    assert request.with_seed(99).sampling.seed == 99
    assert request.with_seed(99).prompt == request.prompt
