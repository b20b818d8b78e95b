"""Replicas of an engine: who gets which request, and what happens when one fails."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import PrivateAttr

import instructgen
from instructgen.distributed import replicas as module
from instructgen.distributed.placement import Placement, gpu_groups
from instructgen.distributed.processes import ProcessEngine
from instructgen.distributed.replicas import ReplicatedEngine, incidents
from instructgen.engines import Completion, Engine, QueueEngine, Request, Sampling, ask
from instructgen.engines.echo import EchoEngine
from instructgen.engines.openai import OpenAIEngine
from instructgen.engines.supervisor import Supervisor
from instructgen.errors import ConfigError, EngineDied, EngineError
from instructgen.generation.sequencer import answer_all
from instructgen.plugins import load_plugin
from tests.conftest import ROOT
from tests.test_openai import Server, reply

pytestmark = pytest.mark.timeout(60)
DOWN = Completion.failed("HTTP 503", retryable=True)


class Scripted(QueueEngine):
    """Answers with its own name, after what ``_script`` does with the number of its answers."""

    name = "scripted"
    _label: str = PrivateAttr("")
    _script: Callable[[int, Request], Completion | None] = PrivateAttr()
    _asked: list[str] = PrivateAttr(default_factory=list)
    _window: int = PrivateAttr(4)
    _starts: int = PrivateAttr(0)
    _closed: bool = PrivateAttr(False)

    def has_chat_template(self) -> bool:
        return False

    def window(self) -> int:
        return self._window

    def start(self) -> None:
        self._starts += 1
        self._closed = False

    def submit(self, number: int, request: Request) -> None:
        assert not self._closed
        super().submit(number, request)

    def cancel(self, number: int) -> None:
        assert not self._closed
        super().cancel(number)

    def close(self) -> None:
        self._closed = True
        super().close()

    def restart(self) -> None:
        self.close()
        self.start()

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        self._asked += [str(r.prompt) for r in requests]
        found = [self._script(len(self._asked), r) for r in requests]
        return [c or Completion(self._label, "stop", 1, 16) for c in found]


def scripted(
    label: str,
    script: Callable[[int, Request], Completion | None] = lambda count, request: None,
    seconds: float = 0.002,
) -> Scripted:
    engine = Scripted()
    engine._label = label

    def slowed(count: int, request: Request) -> Completion | None:
        time.sleep(seconds)
        return script(count, request)

    engine._script = slowed
    return engine


def requests(count: int) -> list[Request]:
    return [Request(f"question {i}", Sampling(seed=i, max_tokens=16)) for i in range(count)]


@contextmanager
def running(*engines: Engine) -> Iterator[Supervisor]:
    labeled = [(f"r{i}", each) for i, each in enumerate(engines)]
    supervisor = Supervisor(ReplicatedEngine.of(engines[0], labeled))
    try:
        yield supervisor
    finally:
        supervisor.close()


def texts(supervisor: Supervisor, count: int) -> list[str]:
    return [completion.text for completion in answer_all(supervisor, requests(count))]


def test_each_request_is_answered_once_and_the_work_is_divided() -> None:
    engines = [scripted(name) for name in "abc"]
    with running(*engines) as supervisor:
        found = texts(supervisor, 120)
        assert supervisor.engine.window() == supervisor.engine.slots() == 12
    assert {name: found.count(name) for name in "abc"} == {e._label: len(e._asked) for e in engines}
    assert sum(len(e._asked) for e in engines) == 120
    assert min(found.count(name) for name in "abc") >= 20


def test_a_faster_replica_gets_more() -> None:
    slow, fast = scripted("slow", seconds=0.02), scripted("fast", seconds=0.005)
    with running(slow, fast) as supervisor:
        found = texts(supervisor, 100)
    assert found.count("fast") > 2 * found.count("slow")


def test_the_requests_of_a_replica_that_dies_go_to_another_one() -> None:
    def dies(count: int, request: Request) -> None:
        if count == 5:
            raise EngineDied("killed")

    dying, other = scripted("dying", dies), scripted("other")
    with running(dying, other) as supervisor:
        assert "" not in texts(supervisor, 60)
        restarts, lost = incidents([supervisor])
    assert (restarts, lost) == (1, [])
    # It was started again, and got requests again.
    assert dying._starts == 2
    assert len(dying._asked) > 5
    assert len(dying._asked) + len(other._asked) == 61


def test_a_replica_that_is_lost_for_good() -> None:
    def rejects(count: int, request: Request) -> None:
        raise EngineError("HTTP 401", "Check the key.")

    with running(scripted("lost", rejects), scripted("other")) as supervisor:
        assert set(texts(supervisor, 30)) == {"other"}
        restarts, lost = incidents([supervisor])
    assert restarts == 0
    assert len(lost) == 1 and "r0" in lost[0] and "401" in lost[0]


def test_all_replicas_are_lost() -> None:
    def rejects(count: int, request: Request) -> None:
        raise EngineError("HTTP 401", "Check the key.")

    with (
        running(scripted("a", rejects), scripted("b", rejects)) as supervisor,
        pytest.raises(EngineError, match="401"),
    ):
        texts(supervisor, 30)


def test_a_replica_that_dies_again_and_again_is_lost() -> None:
    def dies(count: int, request: Request) -> None:
        raise EngineDied("killed")

    dying = scripted("dying", dies)
    with running(dying, scripted("other", seconds=0.01)) as supervisor:
        assert set(texts(supervisor, 60)) == {"other"}
        assert incidents([supervisor])[0] == dying.max_restarts
        assert len(incidents([supervisor])[1]) == 1


def test_an_actor_hands_over_what_was_completed_before_it_died() -> None:
    from instructgen.distributed.actors import EngineActor
    from instructgen.engines.supervisor import Received

    actor = EngineActor(None, "")  # type: ignore[arg-type]
    actor._supervisor = supervisor = Supervisor(scripted("a"))
    done = Completion("x", "stop", 1, 1)
    for number in range(3):
        supervisor.results.put(Received(number, done, 0.0, None, supervisor))
    supervisor.results.put(Received(-1, None, 0.0, EngineError("died", ""), supervisor))
    assert actor.take(1.0) == [(0, done), (1, done), (2, done)]
    assert isinstance(actor.take(1.0), EngineError)


def test_a_replica_that_fails_rests_and_is_brought_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REST_S", 0.05)

    def fails(count: int, request: Request) -> Completion | None:
        return DOWN if count <= 6 else None

    failing, other = scripted("failing", fails), scripted("other", seconds=0.02)
    with running(failing, other) as supervisor:
        found = texts(supervisor, 100)
    # Its failures cost a few tries, and it answers again afterwards.
    assert set(found) == {"failing", "other"}
    assert len(failing._asked) + len(other._asked) == 106
    assert found.count("failing") > 10


def test_a_request_that_always_fails_fails_alone() -> None:
    def fails(count: int, request: Request) -> Completion | None:
        return DOWN if request.prompt == "question 7" else None

    engines = [scripted(name, fails) for name in "ab"]
    with running(*engines) as supervisor:
        # Others are still answered after its last try, so the server is not considered to be down.
        completions = answer_all(supervisor, requests(400))
    assert [i for i, c in enumerate(completions) if c.error] == [7]
    asked = [prompt for e in engines for prompt in e._asked]
    # The sequencer repeats it once.
    assert asked.count("question 7") <= 2 * module._TRIES
    assert all(asked.count(f"question {i}") == 1 for i in range(400) if i != 7)


def test_what_fails_at_the_same_time_counts_once() -> None:
    """A server that was away for a moment has many failures, and rests for half a second."""
    replica = module._Replica(Supervisor(scripted("a")), "a")
    for number in range(32):
        replica.failed(10.0 + number / 1000, since=9.0)
    assert replica.failures == module._FAILURES
    assert replica.rests_until == pytest.approx(10.0 + module._REST_S, abs=0.01)
    replica.failed(11.0, since=10.9)
    assert replica.rests_until == pytest.approx(11.0 + 2 * module._REST_S)


def test_a_request_that_an_engine_does_not_accept_fails_alone() -> None:
    class Picky(Scripted):
        def submit(self, number: int, request: Request) -> None:
            if request.prompt == "question 3":
                raise ValueError("System role not supported")
            super().submit(number, request)

    def picky() -> Picky:
        engine = Picky()
        engine._script = lambda count, request: None
        return engine

    with running(picky(), picky()) as supervisor:
        completions = answer_all(supervisor, requests(10))
    assert [i for i, c in enumerate(completions) if c.error] == [3]
    assert "System role" in str(completions[3].error)


def test_an_engine_that_accepts_no_request_says_why() -> None:
    class Mute(Scripted):
        def submit(self, number: int, request: Request) -> None:
            raise ConfigError("the model has no chat template.", "Use another model.")

    engine = Mute()
    engine._script = lambda count, request: None
    supervisor = Supervisor(engine)
    with pytest.raises(ConfigError, match="no chat template"):
        answer_all(supervisor, requests(3))
    supervisor.close()
    with (
        running(engine, engine.model_copy()) as both,
        pytest.raises(EngineError, match=r"None of the 2 .* no chat template"),
    ):
        answer_all(both, requests(3))


def test_a_request_that_is_given_back_is_answered_once() -> None:
    engine = scripted("a")
    for number, request in enumerate(requests(4)):
        engine.submit(number, request)
    engine.cancel(1)
    engine.cancel(2)
    engine.submit(2, requests(4)[2])
    found = []
    while (result := engine.next(0.05)) is not None:
        found.append(result[0])
    assert sorted(found) == [0, 2, 3]
    assert engine._requests == {}


def test_one_badly_equipped_replica_is_lost_and_the_others_go_on() -> None:
    class Late(Scripted):
        def start(self) -> None:
            time.sleep(0.3)
            raise ConfigError("the folder model/ does not exist.", "Copy it.")

    bad = Late()
    bad._script = lambda count, request: None
    with running(scripted("good", seconds=0.01), bad) as supervisor:
        assert set(texts(supervisor, 60)) == {"good"}
        (lost,) = incidents([supervisor])[1]
    assert "model/" in lost


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REST_S", 0.01)
    monkeypatch.setattr(module, "_PATIENCE_S", 0.3)
    down: Callable[[int, Request], Completion] = lambda count, request: DOWN  # noqa: E731
    with (
        running(scripted("a", down), scripted("b", down)) as supervisor,
        pytest.raises(EngineError, match="503"),
    ):
        answer_all(supervisor, requests(30))


def test_a_replica_that_hangs_loses_its_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HANGS_S", 0.2)
    released = threading.Event()

    def hangs(count: int, request: Request) -> None:
        if count == 3:
            released.wait(20)

    hanging, other = scripted("hanging", hangs), scripted("other")
    began = time.monotonic()
    with running(hanging, other) as supervisor:
        found = texts(supervisor, 80)
        assert time.monotonic() - began < 10
        released.set()
    assert found.count("hanging") == 2
    assert found.count("other") == 78


def test_a_slow_replica_gets_one_request_at_a_time() -> None:
    slow, fast = scripted("slow", seconds=0.1), scripted("fast", seconds=0.002)
    slow._window = fast._window = 2
    with running(slow, fast) as supervisor:
        texts(supervisor, 1500)
        replicated = supervisor.engine
        assert isinstance(replicated, ReplicatedEngine)
        assert replicated._replicas[0].slow and not replicated._replicas[1].slow


def test_a_canceled_request_is_not_answered() -> None:
    engine = ReplicatedEngine.of(EchoEngine(), [("a", scripted("a")), ("b", scripted("b"))])
    engine.start()
    try:
        for number, request in enumerate(requests(40)):
            engine.submit(number, request)
        for number in range(20, 40):
            engine.cancel(number)
        answered = set()
        while (result := engine.next(0.5)) is not None:
            answered.add(result[0])
        assert answered >= set(range(20))
        assert engine._given == {}
        assert all(not replica.outstanding for replica in engine._replicas)
    finally:
        engine.close()


# -- processes --------------------------------------------------------------------------------


def test_an_engine_in_a_process_answers_as_it_does_here() -> None:
    asked = [Request(f"the cat {i} sat on the mat", Sampling(seed=i)) for i in range(20)]
    here = dict(ask(EchoEngine(), asked))
    engine = ProcessEngine.of(EchoEngine(), {"INSTRUCTGEN_TEST": "1"})
    try:
        assert dict(ask(engine, asked)) == here
        process = engine._process
        assert process is not None
    finally:
        engine.close()
    assert process.poll() == -signal.SIGKILL


def test_a_process_that_is_killed_is_started_again() -> None:
    with running(*(ProcessEngine.of(EchoEngine(delay_s=0.005), {}) for _ in range(2))) as driver:
        driver.start()
        replicated = driver.engine
        assert isinstance(replicated, ReplicatedEngine)
        first = replicated._replicas[0].supervisor.engine
        assert isinstance(first, ProcessEngine) and first._process is not None
        pid = first._process.pid
        threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
        completions = answer_all(driver, requests(300))
        assert all(c.finish_reason != "error" for c in completions)
        assert incidents([driver]) == (1, [])


def test_a_process_ends_with_the_one_that_started_it() -> None:
    code = (
        "from instructgen.distributed.processes import ProcessEngine\n"
        "from instructgen.engines.echo import EchoEngine\n"
        "import time\n"
        "engine = ProcessEngine.of(EchoEngine(), {})\n"
        "engine.start()\n"
        "print(engine._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        if state == "Z":
            return
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def ends(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


PARENT = ROOT / "tests" / "parent_engine.py"


@pytest.fixture
def parent(tmp_path: Path) -> tuple[Any, Path]:
    """An engine that starts a process, and the file with the number of this process."""
    (kind,) = load_plugin(PARENT)
    return kind(file=str(tmp_path / "pid")), tmp_path / "pid"


@pytest.mark.parametrize("killed", [False, True])
def test_what_a_process_has_started_ends_with_it(parent: tuple[Any, Path], killed: bool) -> None:
    engine = ProcessEngine.of(parent[0], {})
    engine.start()
    child = int(parent[1].read_text())
    assert alive(child) and engine._process is not None
    if killed:
        os.kill(engine._process.pid, signal.SIGKILL)
        with pytest.raises(EngineDied, match="signal 9"):
            engine.next(10.0)
    engine.close()
    assert ends(child)


def test_a_process_does_not_accept_one_request_and_answers_the_others(
    parent: tuple[Any, Path],
) -> None:
    asked = [Request(p, Sampling(seed=1)) for p in ("the cat", "bad", "the dog")]
    engine = ProcessEngine.of(parent[0], {})
    try:
        found = dict(ask(engine, asked))
    finally:
        engine.close()
    assert [bool(found[i].error) for i in range(3)] == [False, True, False]
    assert "alternate" in str(found[1].error)


def test_a_process_that_does_not_read_blocks_nobody() -> None:
    engine = ProcessEngine.of(EchoEngine(), {})
    engine.start()
    assert engine._process is not None
    pid = engine._process.pid
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    for number in range(500):
        engine.submit(number, Request("word " * 1000, Sampling()))
    assert time.monotonic() - began < 10
    engine.close()
    assert time.monotonic() - began < 30
    assert not alive(pid)


def test_a_process_that_is_loading_ends_with_the_one_that_started_it(
    tmp_path: Path,
) -> None:
    code = (
        "import sys\n"
        "from instructgen.distributed.processes import ProcessEngine\n"
        "from instructgen.plugins import load_plugin\n"
        "(kind,) = load_plugin(sys.argv[1])\n"
        "ProcessEngine.of(kind(file=sys.argv[2], seconds=50), {}).start()\n"
    )
    file = tmp_path / "pid"
    argv = [sys.executable, "-c", code, str(PARENT), str(file)]
    with subprocess.Popen(argv, cwd=ROOT) as starter:
        deadline = time.monotonic() + 30
        while not (file.exists() and file.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        starter.kill()
    assert ends(int(file.read_text()))


def test_an_engine_that_cannot_start_in_its_process() -> None:
    missing = ProcessEngine.of(OpenAIEngine(), {})
    with pytest.raises(ConfigError, match="model"):
        missing.start()
    missing.close()
    broken = ProcessEngine.of(EchoEngine(), {"PYTHONHOME": "nowhere"})
    with pytest.raises(EngineDied, match="exit code"):
        broken.start()
    broken.close()
    supervisor = Supervisor(broken)
    with pytest.raises(EngineError, match="3 times"):
        supervisor.start()
    assert supervisor.restarts == broken.max_restarts == 2
    supervisor.close()


# -- servers ----------------------------------------------------------------------------------


def run(out: Path, seeds: Path, target: int = 12, **options: Any) -> Any:
    return instructgen.generate(seeds, target=target, out=out, **options)


@pytest.fixture
def servers() -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def start(*script: Callable[[Any], None]) -> Server:
        started.append(Server(*script))
        return started[-1]

    yield start
    for server in started:
        server.server.shutdown()
        server.server.server_close()


def pooled(*servers: Server) -> Supervisor:
    placement = Placement(endpoints=tuple(server.url for server in servers))
    with placement.engine(OpenAIEngine(model="m", chat=False)) as engine:
        return Supervisor(engine)


def test_two_servers_share_the_requests(servers: Callable[..., Server]) -> None:
    one, two = servers(reply()), servers(reply())
    supervisor = pooled(one, two)
    try:
        completions = answer_all(supervisor, requests(200))
    finally:
        supervisor.close()
    assert {c.text for c in completions} == {"fine"}
    assert len(one.bodies) + len(two.bodies) == 200
    assert min(len(one.bodies), len(two.bodies)) > 40


def test_a_server_that_goes_away_and_one_that_rejects_the_key(
    servers: Callable[..., Server],
) -> None:
    def closes(handler: Any) -> None:
        handler.connection.close()

    good = servers(reply())
    flaky = servers(*[reply()] * 10, closes)
    closed = servers(reply(401, {"error": "no"}))
    supervisor = pooled(good, flaky, closed)
    try:
        completions = answer_all(supervisor, requests(300))
        lost = incidents([supervisor])[1]
    finally:
        supervisor.close()
    assert {c.text for c in completions} == {"fine"}
    assert len(lost) == 1 and closed.url in lost[0]
    assert len(closed.bodies) < 40
    assert len(flaky.bodies) >= 10


def test_a_server_that_has_too_many_requests(servers: Callable[..., Server]) -> None:
    busy = servers(*[reply(429, {"error": "busy"})] * 5, reply())
    supervisor = pooled(servers(reply()), busy)
    try:
        assert {c.text for c in answer_all(supervisor, requests(800))} == {"fine"}
    finally:
        supervisor.close()
    assert len(busy.bodies) > 5


# -- commands ---------------------------------------------------------------------------------


def test_replicas_do_not_change_the_rows(tmp_path: Path, seeds_file: Path) -> None:
    options: dict[str, Any] = {"engine": "echo", "recipe": "self_instruct", "target": 8}
    runs = [
        instructgen.generate(seeds_file, out=tmp_path / f"run-{count}", replicas=count, **options)
        for count in (1, 2)
    ]
    digests = [(run.out / "data").glob("*.parquet") for run in runs]
    assert [p.read_bytes() for p in digests[0]] == [p.read_bytes() for p in digests[1]]
    assert runs[0].facts == runs[1].facts


def test_what_does_not_fit_is_one_message(tmp_path: Path, seeds_file: Path) -> None:
    def rejected(**options: Any) -> str:
        with pytest.raises(ConfigError) as error:
            instructgen.generate(seeds_file, target=1, out=tmp_path / "run", **options)
        assert not (tmp_path / "run").exists()
        return str(error.value)

    server = {"engine": "openai", "model": "m"}
    assert "endpoint" in rejected(**server, replicas=2)
    assert "twice" in rejected(**server, endpoint=["http://a/v1", "http://a/v1"])
    assert "cores" in rejected(engine="transformers", model="smollm2", replicas=10_000)


def test_each_replica_has_its_own_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert gpu_groups(2, 2) == [["4", "5"], ["6", "7"]]
    assert gpu_groups(4, 1) == [["4"], ["5"], ["6"], ["7"]]
    with pytest.raises(ConfigError, match="4"):
        gpu_groups(3, 2)


def test_the_same_options_reach_the_process() -> None:
    engine = EchoEngine(delay_s=0.25)
    from instructgen.distributed.hosting import engine_spec

    built = engine_spec(engine).build()
    assert isinstance(built, EchoEngine) and built.delay_s == 0.25


# -- the address of a cluster ------------------------------------------------------------------

REPLIES = {
    "a head node": (b"\0\0\6\4\0\0\0\0\0\0\5\0\0\x40\0", None),
    "a web server": (b"HTTP/1.1 400 Bad Request\r\n\r\n", ConfigError),
    "a mail server": (b"220 ready\r\n", ConfigError),
    "a program that says nothing": (b"", ConfigError),
}


@pytest.mark.parametrize("name", REPLIES)
def test_only_a_head_node_is_connected_to(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would wait for minutes."""
    from instructgen.distributed import cluster

    monkeypatch.setattr(cluster, "_CONNECT_S", 0.5)
    said, error = REPLIES[name]
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(said)
                # Until the other side gives up; it may close with what was said unread.
                with contextlib.suppress(ConnectionResetError):
                    while connection.recv(1024):
                        pass

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if error is None:
            cluster._check_address(address)
        else:
            with pytest.raises(error, match="another program"):
                cluster._check_address(address)
        thread.join(5)


def test_the_address_of_a_cluster_that_was_killed_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray keeps the address in a file, and would wait for minutes."""
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray._private import services

    from instructgen.distributed import cluster

    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster._running() is None
    (tmp_path / "ray").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    (tmp_path / "ray" / "ray_current_cluster").write_text(address)
    assert cluster._running() is None
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=address):
        cluster._running()
