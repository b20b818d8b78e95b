"""Tests of the openai engine with a server that fails in every way; clock and sleep are virtual."""

from __future__ import annotations

import email.utils
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest
import uvloop

import instructgen
from instructgen.commands.options import GenerateOptions
from instructgen.engines import Completion, Request, Sampling, ask
from instructgen.engines.openai import OpenAIEngine
from instructgen.engines.supervisor import Supervisor
from instructgen.errors import ConfigError, EngineError
from instructgen.schema.messages import Message
from instructgen.store import CompletionLine, Run, read_rows
from tests.conftest import ROOT, default_filters

# A lost request would make a test wait forever.
pytestmark = pytest.mark.timeout(60)
NOW = 1_800_000_000.0
GOOD = {
    "choices": [{"text": "fine", "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3},
}


class Server:
    """A server that gives one scripted answer per request, and then repeats the last one."""

    def __init__(self, *script: Callable[[Any], None]) -> None:
        self.script = list(script)
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                self.body = orjson.loads(body)
                with outer.lock:
                    outer.bodies.append(orjson.loads(body))
                    outer.paths.append(self.path)
                    outer.headers.append(dict(self.headers))
                    step = outer.script.pop(0) if len(outer.script) > 1 else outer.script[0]
                step(self)

            def log_message(self, *args: Any) -> None:
                pass

        class Listener(ThreadingHTTPServer):
            # Many clients connect at the same time.
            daemon_threads, request_queue_size = True, 128

            def handle_error(self, *args: Any) -> None:
                """Print nothing: clients close connections on purpose."""

        self.server = Listener(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"


def reply(
    status: int = 200, body: Any = GOOD, headers: dict[str, str] | None = None
) -> Callable[[Any], None]:
    """Return a step of a script that sends this response."""
    data = body if isinstance(body, bytes) else orjson.dumps(body)

    def step(handler: Any) -> None:
        handler.send_response(status)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return step


def half_a_body(handler: Any) -> None:
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()
    handler.connection.close()


def reset(handler: Any) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def hang(handler: Any) -> None:
    """Answer nothing until the client closes the connection."""
    handler.connection.settimeout(20)
    handler.connection.recv(1)


def patience(step: Callable[[Any], None]) -> float:
    """Return seconds that only a server that hangs exceeds, also on a machine that is busy."""
    return 1.0 if step is hang else 20.0


def engine_for(server: Server, **options: Any) -> tuple[OpenAIEngine, list[float]]:
    """Return an engine with a virtual clock, and the list of the waits that it records."""
    engine = OpenAIEngine(model="m", base_url=server.url, **options)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    engine._sleep, engine._now = sleep, lambda: NOW
    return engine, slept


def complete(engine: OpenAIEngine, n: int = 1) -> list[Completion]:
    """Return the completions of ``n`` prompts in order."""
    try:
        completions = dict(ask(engine, prompts(n)))
    finally:
        engine.close()
    return [completions[i] for i in range(n)]


def test_a_request_submitted_while_the_engine_starts_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, _ = engine_for(Server(reply()))
    loop = uvloop.new_event_loop()
    run = loop.run_until_complete

    def later(awaitable: Any) -> Any:
        # Another thread calls submit in the middle of start.
        thread = threading.Thread(target=engine.submit, args=(0, prompts(1)[0]))
        thread.start()
        thread.join()
        monkeypatch.setattr(loop, "run_until_complete", run)
        return run(awaitable)

    monkeypatch.setattr(loop, "run_until_complete", later)
    monkeypatch.setattr(uvloop, "new_event_loop", lambda: loop)
    engine.start()
    try:
        number, completion = engine.next() or (-1, None)
    finally:
        engine.close()
    assert number == 0
    assert completion is not None
    assert completion.text == "fine"


def test_an_answer_that_is_too_long_for_its_tokens_fails() -> None:
    """An item of 9 tokens may be long, but not megabytes that take minutes to compare."""

    def sized(characters: int) -> Completion:
        body = orjson.loads(orjson.dumps(GOOD))
        body["choices"][0]["text"] = "x" * characters
        return complete(engine_for(Server(reply(200, body)))[0])[0]

    assert sized(9_000).text == "x" * 9_000
    long = sized(20_000)
    assert (long.text, long.finish_reason) == ("", "error")
    assert "20,000 characters" in str(long.error)


def prompts(n: int) -> list[Request]:
    return [Request(f"prompt {i}", Sampling(max_tokens=9, seed=i)) for i in range(n)]


def next_within(engine: OpenAIEngine, seconds: float) -> tuple[int, Completion] | None:
    """Return the next completion; `OpenAIEngine.next` may return None earlier."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if (result := engine.next(left)) is not None:
            return result
    return None


def test_a_prompt_is_completed_and_its_tokens_are_counted() -> None:
    server = Server(reply())
    engine, _ = engine_for(server)
    assert complete(engine) == [Completion("fine", "stop", 7, 3)]
    assert server.paths == ["/v1/completions"]
    body = server.bodies[0]
    assert body["model"] == "m"
    assert body["prompt"] == "prompt 0"
    assert (body["seed"], body["max_tokens"]) == (0, 9)
    assert "stop" not in body


def test_messages_and_a_schema_are_sent_to_the_chat_endpoint() -> None:
    chat = {"choices": [{"message": {"content": "hi"}, "finish_reason": "length"}]}
    server = Server(reply(body=chat))
    engine, _ = engine_for(server)
    schema = {"type": "object"}
    request = Request((Message("user", "Hello"),), Sampling(stop=("x",)), schema=schema)
    ((_, answer),) = ask(engine, [request])
    engine.close()
    assert answer == Completion("hi", "length", 0, 0)
    assert server.paths == ["/v1/chat/completions"]
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "Hello"}]
    assert server.bodies[0]["response_format"]["json_schema"]["schema"] == schema
    assert server.bodies[0]["stop"] == ["x"]


LATER = email.utils.formatdate(NOW + 9, usegmt=True)
TRANSIENT = {
    "408": (reply(408), None),
    "429": (reply(429), None),
    "429, seconds": (reply(429, headers={"Retry-After": "5"}), 5.0),
    "429, date": (reply(429, headers={"Retry-After": LATER}), 9.0),
    "429, a past date": (
        reply(429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        0.0,
    ),
    "429, unreadable": (reply(429, headers={"Retry-After": "soon"}), None),
    "429, an hour": (reply(429, headers={"Retry-After": "3600"}), 60.0),
    "500": (reply(500), None),
    "502": (reply(502, b"<html>"), None),
    "503": (reply(503), None),
    "529": (reply(529), None),
    "half a body": (half_a_body, None),
    "reset": (reset, None),
    "invalid JSON": (reply(200, b"{"), None),
    "no choices": (reply(200, {"choices": []}), None),
    "choices of another shape": (reply(200, {"choices": [{"delta": {}}]}), None),
    "not an object": (reply(200, [1]), None),
    "200 with an error": (reply(200, {"error": {"message": "overloaded"}}), None),
    "hang": (hang, None),
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_a_transient_failure_is_retried(name: str) -> None:
    step, wait_s = TRANSIENT[name]
    server = Server(step, step, reply())
    engine, slept = engine_for(server, timeout_s=patience(step))
    assert complete(engine) == [Completion("fine", "stop", 7, 3)]
    assert len(server.bodies) == 3
    if wait_s is not None:
        assert slept == [wait_s, wait_s]
    else:
        assert 0.25 <= slept[0] <= 0.5
        assert 0.5 <= slept[1] <= 1.0


def test_waits_double_up_to_a_limit_and_retries_end() -> None:
    server = Server(reply(503))
    engine, slept = engine_for(server, max_retries=8, max_wait_s=10.0)
    (answer,) = complete(engine)
    assert answer.finish_reason == "error"
    assert answer.error is not None
    assert "HTTP 503" in answer.error and "9" in answer.error
    assert answer.retryable
    assert len(server.bodies) == 9
    assert len(slept) == 8
    caps = [min(10.0, 0.5 * 2**n) for n in range(8)]
    assert all(c / 2 <= s <= c for s, c in zip(slept, caps, strict=True))


def by_prompt(steps: dict[str, Callable[[Any], None]]) -> Callable[[Any], None]:
    """Return a step that depends on the prompt; other prompts are completed."""
    return lambda handler: steps.get(handler.body["prompt"], reply())(handler)


@pytest.mark.parametrize("status", [301, 307, 400, 413, 422])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_rejected_request_fails_alone_and_is_not_repeated(status: int, at: int) -> None:
    reject = reply(status, {"error": {"message": "too long"}})
    server = Server(by_prompt({f"prompt {at}": reject}))
    engine, slept = engine_for(server)
    answers = complete(engine, 3)
    assert [a.finish_reason == "error" for a in answers] == [i == at for i in range(3)]
    assert "too long" in str(answers[at].error)
    assert not answers[at].retryable
    assert len(server.bodies) == 3
    assert slept == []


@pytest.mark.parametrize("step", [reply(503), reset, half_a_body, hang, reply(200, b"{")])
def test_a_request_that_fails_for_long_delays_no_other(step: Callable[[Any], None]) -> None:
    server = Server(by_prompt({"prompt 1": step}))
    engine, slept = engine_for(server, max_retries=2, timeout_s=patience(step))
    order = [number for number, _ in ask(engine, prompts(4))]
    engine.close()
    assert sorted(order) == [0, 1, 2, 3]
    assert order[-1] == 1 or step is not hang
    assert len(server.bodies) == 3 + 3
    assert len(slept) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_path_or_model_raises_an_error_at_once(status: int) -> None:
    server = Server(reply(status, {"error": "who are you"}))
    engine, slept = engine_for(server)
    with pytest.raises(EngineError, match=f"HTTP {status}") as caught:
        complete(engine, 3)
    assert "OPENAI_API_KEY" in caught.value.hint
    assert slept == []


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    other = Server(reply())
    server = Server(reply(status, {}, {"Location": f"{other.url}/completions"}))
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    (answer,) = complete(OpenAIEngine(model="m"))
    assert (answer.finish_reason, answer.retryable) == ("error", False)
    assert len(server.bodies) == 1
    assert other.bodies == []


def test_an_unknown_finish_reason_is_an_error() -> None:
    server = Server(reply(200, {"choices": [{"text": "x", "finish_reason": "content_filter"}]}))
    engine, _ = engine_for(server)
    assert complete(engine)[0].finish_reason == "error"


ODD = {
    "usage is a list": {**GOOD, "usage": [1]},
    "usage is a text": {**GOOD, "usage": "7"},
    "usage with texts": {**GOOD, "usage": {"prompt_tokens": "many"}},
    "choices are a text": {"choices": "fine"},
    "a choice is a number": {"choices": [1]},
    "the reason is a list": {"choices": [{"text": "x", "finish_reason": ["stop"]}]},
    "a number": 5,
    "a text": "fine",
    "null": None,
}


@pytest.mark.parametrize("name", ODD)
def test_an_answer_of_another_form_is_a_failure_of_its_request(name: str) -> None:
    server = Server(reply(200, ODD[name]))
    engine, _ = engine_for(server, max_retries=1)
    (answer,) = complete(engine)
    assert (answer.finish_reason, answer.retryable) == ("error", True)
    assert len(server.bodies) == 2


@pytest.mark.parametrize("date", ["Wed, 21 Oct 99999999999999 07:28:00 GMT", "9" * 400, "²", "-5"])
def test_an_impossible_time_to_wait_is_limited_or_ignored(date: str) -> None:
    server = Server(reply(429, headers={"Retry-After": date.encode().decode("latin-1")}), reply())
    engine, slept = engine_for(server)
    assert complete(engine) == [Completion("fine", "stop", 7, 3)]
    assert len(slept) == 1
    assert 0.25 <= slept[0] <= 60


def test_a_server_that_is_down_gives_no_result_about_schemas() -> None:
    def enforces_schemas(step: Callable[[Any], None]) -> bool:
        engine, _ = engine_for(Server(step), max_retries=0)
        supervisor = Supervisor(engine)
        try:
            return supervisor.enforces_schemas()
        finally:
            supervisor.close()

    with pytest.raises(EngineError, match="HTTP 503"):
        enforces_schemas(reply(503))
    assert not enforces_schemas(reply(400, {"error": "no response_format here"}))
    chat = {"message": {"content": '{"probe": "q7-instructgen"}'}, "finish_reason": "stop"}
    assert enforces_schemas(reply(200, {"choices": [chat]}))


@pytest.mark.parametrize("last", ["supervisor.close()", ""])
def test_the_process_does_not_wait_for_a_silent_server(last: str) -> None:
    arrived = threading.Event()

    def silent(handler: Any) -> None:
        arrived.set()
        hang(handler)

    code = (
        "import sys\n"
        "from instructgen.engines import Request, Sampling\n"
        "from instructgen.engines.openai import OpenAIEngine\n"
        "from instructgen.engines.supervisor import Supervisor\n"
        "engine = OpenAIEngine(model='m', base_url=sys.argv[1], timeout_s=100)\n"
        "supervisor = Supervisor(engine)\n"
        "supervisor.submit(0, Request('x', Sampling()))\n"
        f"sys.stdin.read(); {last}\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, Server(silent).url],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert arrived.wait(30)
        began = time.monotonic()
        _, errors = process.communicate(timeout=50)
        assert time.monotonic() - began < 40
        assert (process.returncode, errors) == (0, b"")
    finally:
        process.kill()


def test_a_missing_model_is_an_error_that_names_the_flag() -> None:
    with pytest.raises(ConfigError, match="--model"):
        OpenAIEngine().start()


@pytest.mark.parametrize("url", ["ftp://a", "http://", "a", "http://a:0", "http://a:99999", "//a"])
def test_an_invalid_url_is_an_error(url: str) -> None:
    with pytest.raises(ConfigError, match="base_url"):
        OpenAIEngine(model="m", base_url=url).start()


@pytest.mark.parametrize("bypass", [False, True])
def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch, bypass: bool) -> None:
    proxy, server = Server(reply()), Server(reply())
    monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
    monkeypatch.setenv("no_proxy", "127.0.0.1" if bypass else "")
    monkeypatch.delenv("NO_PROXY", raising=False)
    engine, _ = engine_for(server)
    assert complete(engine) == [Completion("fine", "stop", 7, 3)]
    assert proxy.paths == ([] if bypass else [f"{server.url}/completions"])
    assert len(server.paths) == int(bypass)


# -- requests at the same time ------------------------------------------------------------


def test_all_requests_are_in_flight_at_the_same_time_in_one_thread() -> None:
    n = 40
    others = set(threading.enumerate())
    clients: set[str] = set()

    def look() -> None:
        new = {t.name for t in threading.enumerate() if t not in others}
        clients.update(name for name in new if "process_request" not in name)

    barrier = threading.Barrier(n, action=look)

    def together(handler: Any) -> None:
        barrier.wait(20)
        reply()(handler)

    server = Server(together)
    others.update(threading.enumerate())
    engine, _ = engine_for(server)
    assert complete(engine, n) == [Completion("fine", "stop", 7, 3)] * n
    assert len(server.bodies) == n
    assert clients == set()


def test_completions_arrive_as_they_finish() -> None:
    gate = threading.Event()

    def late(handler: Any) -> None:
        gate.wait(20)
        reply()(handler)

    server = Server(by_prompt({"prompt 0": late}))
    engine, _ = engine_for(server)
    order = []
    for number, _ in ask(engine, prompts(3)):
        order.append(number)
        if len(order) == 2:
            gate.set()
    engine.close()
    assert sorted(order[:2]) == [1, 2]
    assert order[2] == 0


@pytest.mark.parametrize("waits", [False, True])
def test_cancel_closes_the_connection_of_its_request_only(waits: bool) -> None:
    arrived, closed, gate = threading.Semaphore(0), threading.Event(), threading.Event()

    def watched(handler: Any) -> None:
        arrived.release()
        handler.connection.settimeout(20)
        if handler.connection.recv(1) == b"":
            closed.set()

    def gated(handler: Any) -> None:
        arrived.release()
        gate.wait(20)
        reply()(handler)

    server = Server(by_prompt({"prompt 0": watched, "prompt 1": gated}))
    engine, _ = engine_for(server)
    engine.start()
    for number, request in enumerate(prompts(2)):
        engine.submit(number, request)

    def cancel() -> None:
        arrived.acquire()
        arrived.acquire()
        engine.cancel(0)

    canceling = threading.Thread(target=cancel)
    if waits:
        canceling.start()
    else:
        # The requests are sent in `next`, and canceled between two calls of it.
        assert engine.next(0.5) is None
        canceling.run()
    began = time.monotonic()
    # The canceled request ends `next`; the loop closes the socket when it runs again.
    assert engine.next(15) is None
    assert engine.next(0.1) is None
    assert time.monotonic() - began < 10
    assert closed.wait(5)
    gate.set()
    assert next_within(engine, 10) == (1, Completion("fine", "stop", 7, 3))
    assert engine.next(0.05) is None
    engine.close()
    assert len(server.bodies) == 2


def test_a_request_canceled_before_it_is_sent_is_never_sent() -> None:
    server = Server(reply())
    engine, _ = engine_for(server)
    engine.start()
    for number, request in enumerate(prompts(3)):
        engine.submit(number, request)
    engine.cancel(1)
    assert {next_within(engine, 10), next_within(engine, 10)} == {
        (0, Completion("fine", "stop", 7, 3)),
        (2, Completion("fine", "stop", 7, 3)),
    }
    assert engine.next(0.05) is None
    engine.close()
    assert sorted(b["prompt"] for b in server.bodies) == ["prompt 0", "prompt 2"]


def test_a_request_submitted_while_next_waits_is_sent_at_once() -> None:
    server = Server(reply())
    engine, _ = engine_for(server)
    engine.start()
    timer = threading.Timer(0.2, engine.submit, (7, prompts(1)[0]))
    timer.start()
    began = time.monotonic()
    assert engine.next(30) == (7, Completion("fine", "stop", 7, 3))
    assert time.monotonic() - began < 10
    engine.close()


def test_answers_at_the_same_time_do_not_end_a_later_wait() -> None:
    engine, _ = engine_for(Server(reply()))
    engine.start()
    for number, request in enumerate(prompts(8)):
        engine.submit(number, request)
    received = 0
    while received < 8:
        received += next_within(engine, 10) is not None
        # Meanwhile, all others arrive.
        time.sleep(0.2)
    began = time.monotonic()
    assert engine.next(0.2) is None
    assert time.monotonic() - began > 0.15
    engine.close()


def test_next_returns_after_the_timeout() -> None:
    server = Server(hang)
    engine, _ = engine_for(server)
    engine.start()
    engine.submit(0, prompts(1)[0])
    began = time.monotonic()
    assert engine.next(0.2) is None
    assert 0.1 < time.monotonic() - began < 10
    engine.close()


def test_a_request_that_waits_to_be_retried_delays_no_other() -> None:
    server = Server(by_prompt({"prompt 0": reply(503, headers={"Retry-After": "30"})}))
    engine = OpenAIEngine(model="m", base_url=server.url)
    engine.start()
    for number, request in enumerate(prompts(3)):
        engine.submit(number, request)
    began = time.monotonic()
    first, second = next_within(engine, 10), next_within(engine, 10)
    assert first is not None and second is not None
    assert {first[0], second[0]} == {1, 2}
    engine.close()
    assert time.monotonic() - began < 10


def test_an_engine_that_was_closed_starts_again_without_the_old_requests(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server(by_prompt({"prompt 0": hang}))
    engine, _ = engine_for(server)
    engine.close()
    engine.start()
    for number, request in enumerate(prompts(4)):
        engine.submit(number, request)
    assert next_within(engine, 10) is not None
    # The other two answers arrive at the same time, and one of them is not taken.
    time.sleep(0.1)
    assert next_within(engine, 10) is not None
    for number in range(4):
        engine.cancel(number)
    engine.submit(9, prompts(1)[0])
    engine.close()
    engine.close()
    fresh = [Request(f"fresh {i}", Sampling()) for i in range(4)]
    server.script = [reply(200, {**GOOD, "usage": {"prompt_tokens": 1, "completion_tokens": 1}})]
    assert dict(ask(engine, fresh)) == {i: Completion("fine", "stop", 1, 1) for i in range(4)}
    engine.close()
    # asyncio logs the errors of callbacks and of tasks that nothing waits for.
    assert [r for r in caplog.records if r.name == "asyncio"] == []


def test_rejections_at_the_same_time_halve_the_window_once() -> None:
    n = 20
    barrier = threading.Barrier(n)

    def busy(handler: Any) -> None:
        barrier.wait(20)
        reply(429)(handler)

    server = Server(*[busy] * n, reply())
    engine, slept = engine_for(server)
    assert engine.window() == 32
    assert complete(engine, n) == [Completion("fine", "stop", 7, 3)] * n
    assert len(slept) == n
    # Then it grows by one when as many requests were answered.
    assert engine.window() == 17


@pytest.mark.parametrize(
    ("step", "window"), [(reply(429), 16), (hang, 16), (reply(503), 32), (reset, 32)]
)
def test_only_too_many_requests_and_silence_halve_the_window(
    step: Callable[[Any], None], window: int
) -> None:
    engine, _ = engine_for(Server(step, reply()), timeout_s=patience(step))
    complete(engine)
    assert engine.window() == window


def test_the_window_grows_when_it_was_full_and_requests_are_answered() -> None:
    engine, _ = engine_for(Server(reply()))
    sizes = [engine.window()]
    engine.start()
    for number, request in enumerate(prompts(34)):
        engine.submit(number, request)
        assert next_within(engine, 10) is not None
        sizes.append(engine.window())
    engine.close()
    assert sizes == [32] * 32 + [128] * 3


# -- whole runs ---------------------------------------------------------------------------


def echoing(handler: Any) -> None:
    """Answer as the echo engine does."""
    from instructgen.engines.echo import _continue

    body = handler.body
    request = Request(
        body["prompt"],
        Sampling(
            max_tokens=body["max_tokens"], stop=tuple(body.get("stop", ())), seed=body["seed"]
        ),
    )
    completion = _continue(request)
    reply(
        200,
        {
            "choices": [{"text": completion.text, "finish_reason": completion.finish_reason}],
            "usage": {
                "prompt_tokens": completion.prompt_tokens,
                "completion_tokens": completion.output_tokens,
            },
        },
    )(handler)


class EchoServer(Server):
    """A server that answers as echo does, and with 503 from request number ``fail_from``."""

    def __init__(self, fail_from: int | None = None) -> None:
        self.fail_from = fail_from
        self.answered: list[dict[str, Any]] = []
        super().__init__(self._answer)

    def _answer(self, handler: Any) -> None:
        down = self.fail_from is not None and len(self.bodies) >= self.fail_from
        if not down:
            self.answered.append(handler.body)
        (reply(503) if down else echoing)(handler)


RECIPE = """
[generate]
in_flight = 1
[method]
style = "completion"
[engine]
name = "openai"
model = "m"
base_url = "{url}"
chat = false
max_retries = 1
max_wait_s = 0.01
"""


def recipe_for(server: Server, tmp_path: Path) -> str:
    """Write a recipe that names the server, with the default filters; return its path."""
    path = tmp_path / "server.toml"
    filters = default_filters()
    path.write_text(RECIPE.format(url=server.url) + filters)
    return str(path)


def test_an_outage_stops_the_run_and_no_completion_is_paid_for_twice(tmp_path: Path) -> None:
    seeds = ROOT / "seeds" / "general.jsonl"
    server = EchoServer(fail_from=40)
    recipe = recipe_for(server, tmp_path)
    with pytest.raises(EngineError, match="HTTP 503") as caught:
        instructgen.generate(seeds, 20, tmp_path / "run", recipe=recipe)
    assert "resume" in caught.value.hint
    paid = 39
    assert recorded(tmp_path / "run") == paid
    server.fail_from = None
    result = instructgen.generate(seeds, 20, tmp_path / "run", recipe=recipe)
    assert result.rows == 20
    assert result.replayed == paid
    answered = Counter((b["prompt"], b["seed"]) for b in server.answered)
    assert set(answered.values()) == {1}
    assert recorded(tmp_path / "run") == len(server.answered) == paid + result.asked
    rows = list(read_rows(tmp_path / "run"))
    instructgen.rebuild(tmp_path / "run")
    assert list(read_rows(tmp_path / "run")) == rows


def recorded(folder: Path) -> int:
    """Return the number of completions in the journal of a run."""
    with Run.view(folder) as run:
        return sum(isinstance(line, CompletionLine) for _, line in run.lines())


def test_the_old_option_for_requests_at_the_same_time_names_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "old.toml"
    path.write_text('[engine]\nname = "openai"\nmodel = "m"\nconcurrency = 8\n')
    with pytest.raises(ConfigError, match=r"engine\.concurrency.*in_flight"):
        instructgen.generate(
            ROOT / "seeds" / "general.jsonl", 5, tmp_path / "run", recipe=str(path)
        )


@pytest.mark.parametrize("in_flight", [1, 6])
def test_in_flight_limits_the_requests_at_the_server(tmp_path: Path, in_flight: int) -> None:
    counts: Counter[int] = Counter()
    lock = threading.Lock()
    now = [0]

    class Counting(EchoServer):
        def _answer(self, handler: Any) -> None:
            with lock:
                now[0] += 1
                counts[now[0]] += 1
            # Long enough for the other requests to arrive.
            time.sleep(0.02)
            with lock:
                now[0] -= 1
            super()._answer(handler)

    recipe = recipe_for(Counting(), tmp_path)
    seeds, out = ROOT / "seeds" / "general.jsonl", tmp_path / "run"
    result = instructgen.generate(seeds, 8, out, recipe=recipe, in_flight=in_flight)
    assert result.rows >= 8
    assert max(counts) == in_flight


@pytest.mark.parametrize("share", [1, 2])
def test_a_request_that_always_fails_is_rejected_and_the_run_continues(
    tmp_path: Path, share: int
) -> None:
    """A prompt that always makes the server fail must not block the run."""

    class Poisoned(EchoServer):
        def _answer(self, handler: Any) -> None:
            poison = handler.body["seed"] % 10 < share
            (reply(500) if poison else echoing)(handler)

    server = Poisoned()
    seeds = ROOT / "seeds" / "general.jsonl"
    recipe = recipe_for(server, tmp_path)
    result = instructgen.generate(seeds, 10, tmp_path / "run", recipe=recipe)
    assert result.rows == 10
    assert result.facts.failed_requests > 0
    assert "engine_error" in {r.reason for r in result.rejections}


CANARY = "sk-canary-2f9a1c"


def keys(server: Server) -> set[str | None]:
    """Return the API keys of all requests to the server."""
    return {headers.get("Authorization") for headers in server.headers}


def keys_sent(server: Server, **fields: Any) -> set[str | None]:
    """Send one request, and return the API keys that the server received."""
    complete(OpenAIEngine(model="m", **fields))
    return keys(server)


def test_a_server_named_by_a_recipe_gets_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    # The user and the recipe name different servers.
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    server = EchoServer()
    seeds, recipe = ROOT / "seeds" / "general.jsonl", recipe_for(server, tmp_path)
    instructgen.generate(seeds, 5, tmp_path / "run", recipe=recipe)
    instructgen.preview(seeds, 5, recipe=recipe)
    assert len(server.headers) > 5
    assert keys(server) == {None}


@pytest.mark.parametrize("url", ["{}", "{}/", "{}/deep/path", "http://user:word@{host}/v1"])
def test_a_key_is_sent_only_to_the_server_that_the_user_named(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    server, other = Server(reply()), Server(reply())
    named = url.format(server.url, host=f"127.0.0.1:{server.server.server_port}")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    # User and password in the URL replace the key.
    key = "Basic dXNlcjp3b3Jk" if "@" in url else f"Bearer {CANARY}"
    assert keys_sent(server, base_url=named) == {key}
    # Another port of the same machine is another server.
    assert keys_sent(other, base_url=other.url) == {None}
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert keys_sent(other, base_url=other.url) == {None}


def test_an_endpoint_given_as_an_option_gets_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    server, other = EchoServer(), EchoServer()
    seeds, recipe = ROOT / "seeds" / "general.jsonl", recipe_for(other, tmp_path)
    out = tmp_path / "run"
    instructgen.generate(seeds, 5, out, recipe=recipe, endpoint=server.url, engine="openai")
    assert keys(server) == {f"Bearer {CANARY}"}
    assert other.headers == []
    # The address of the server does not affect the run, so another server can resume it.
    again = instructgen.generate(seeds, 5, out, recipe=recipe)
    assert again.asked == 0


def test_a_recipe_cannot_set_an_endpoint(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[engine]\nname = "openai"\nmodel = "m"\nendpoint = "http://127.0.0.1:9"\n')
    seeds = ROOT / "seeds" / "general.jsonl"
    with pytest.raises(ConfigError) as caught:
        instructgen.generate(seeds, 5, tmp_path / "run", recipe=path)
    assert "engine.endpoint" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        instructgen.generate(seeds, 5, tmp_path / "run", engine="echo", endpoint="http://a")
    # The Python function names its parameter, the command line its flag.
    assert str(caught.value).startswith("endpoint: ")
    options = GenerateOptions(
        seeds=seeds, target=5, out=tmp_path / "run", engine="echo", endpoint="http://a"
    )
    with pytest.raises(ConfigError) as caught:
        instructgen.generate.run(options)
    assert str(caught.value).startswith("--endpoint: ")
    with pytest.raises(ConfigError, match="endpoint"):
        instructgen.prefer(tmp_path, tmp_path / "p", score=["verifiers:math"], endpoint="http://a")


def test_a_pipeline_cannot_name_a_folder_whose_code_is_run(tmp_path: Path) -> None:
    """Tasks of lm-eval are YAML files that may call functions of a file in the same folder."""
    from instructgen.pipeline.definition import load_steps

    path = tmp_path / "pipeline.toml"
    path.write_text(
        '[[steps]]\nname = "a"\nrun = "evaluate smollm2"\nsuite = "lm-eval"\n'
        'set = { "lm-eval.tasks" = ["mine"], "lm-eval.include_path" = "tasks" }\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_steps(str(path), tmp_path / "out", {}, small=False)
    assert "lm-eval.include_path" in str(caught.value)


@pytest.mark.parametrize("words", ["", " --endpoint http://127.0.0.1:9/v1"])
def test_a_pipeline_cannot_set_an_endpoint(tmp_path: Path, words: str) -> None:
    from instructgen.pipeline.definition import load_steps

    path = tmp_path / "pipeline.toml"
    path.write_text(
        f'[[steps]]\nname = "a"\nrun = "generate{words}"\nengine = "openai"\nmodel = "m"\n'
        f'seeds = "{ROOT / "seeds" / "general.jsonl"}"\ntarget = 5\n'
        + ("" if words else 'endpoint = "http://127.0.0.1:9/v1"\n')
    )
    with pytest.raises(ConfigError) as caught:
        load_steps(str(path), tmp_path / "out", {}, small=False)
    assert "endpoint" in str(caught.value)


def test_no_file_of_a_run_contains_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    server = EchoServer()
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    seeds = ROOT / "seeds" / "general.jsonl"
    out = tmp_path / "run"
    instructgen.generate(seeds, 5, out, recipe=recipe_for(server, tmp_path))
    assert keys(server) == {f"Bearer {CANARY}"}
    for path in out.rglob("*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes(), path


def test_the_error_about_a_missing_key_names_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    server = Server(reply(401, {"error": "who are you"}))
    with pytest.raises(EngineError) as caught:
        keys_sent(server, base_url=server.url)
    assert "--endpoint" in caught.value.hint
