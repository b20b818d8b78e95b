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

import instructgen
from instructgen.commands.options import GenerateOptions
from instructgen.engines import Completion, Request, Sampling
from instructgen.engines.openai import OpenAIEngine
from instructgen.errors import ConfigError, EngineError
from instructgen.generation.loop import LAG
from instructgen.schema.messages import Message
from instructgen.store import read_rows
from tests.conftest import ROOT, default_filters

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

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
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
    threading.Event().wait(3)


def engine_for(server: Server, **options: Any) -> tuple[OpenAIEngine, list[float]]:
    """Return an engine with a virtual clock, and the list of the waits that it records."""
    engine = OpenAIEngine(model="m", base_url=server.url, **options)
    slept: list[float] = []
    object.__setattr__(engine, "_sleep", slept.append)
    object.__setattr__(engine, "_now", lambda: NOW)
    return engine, slept


def complete(engine: OpenAIEngine, n: int = 1) -> list[Completion]:
    """Return the completions of ``n`` prompts in order."""
    requests = [Request(f"prompt {i}", Sampling(max_tokens=9, seed=i)) for i in range(n)]
    completions = dict(engine.complete(requests))
    return [completions[i] for i in range(n)]


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
    ((_, answer),) = engine.complete([request])
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
    engine, slept = engine_for(server, timeout_s=0.5)
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


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_rejected_request_fails_alone_and_is_not_repeated(status: int, at: int) -> None:
    reject = reply(status, {"error": {"message": "too long"}})
    script = [reply(), reply(), reply()]
    script[at] = reject
    server = Server(*script, reply())
    engine, slept = engine_for(server, concurrency=1)
    answers = complete(engine, 3)
    assert [a.finish_reason for a in answers].count("error") == 1
    assert "too long" in str(answers[at].error)
    assert len(server.bodies) == 3
    assert slept == []


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_path_or_model_raises_an_error_at_once(status: int) -> None:
    server = Server(reply(status, {"error": "who are you"}))
    engine, _ = engine_for(server, concurrency=1)
    with pytest.raises(EngineError, match=f"HTTP {status}") as caught:
        complete(engine, 3)
    assert "OPENAI_API_KEY" in caught.value.hint


def test_an_unknown_finish_reason_is_an_error() -> None:
    server = Server(reply(200, {"choices": [{"text": "x", "finish_reason": "content_filter"}]}))
    engine, _ = engine_for(server)
    assert complete(engine)[0].finish_reason == "error"


def test_a_server_that_is_down_gives_no_result_about_schemas() -> None:
    server = Server(reply(503))
    engine, _ = engine_for(server, max_retries=0)
    with pytest.raises(EngineError, match="HTTP 503"):
        engine.enforces_schema()
    server = Server(reply(400, {"error": "no response_format here"}))
    engine, _ = engine_for(server)
    assert not engine.enforces_schema()


def test_the_process_does_not_wait_for_a_silent_server(tmp_path: Path) -> None:
    server = Server(hang)
    code = (
        "import sys, threading, time\n"
        "from instructgen.engines import Request, Sampling\n"
        "from instructgen.engines.openai import OpenAIEngine\n"
        "engine = OpenAIEngine(model='m', base_url=sys.argv[1], timeout_s=100)\n"
        "work = lambda: list(engine.complete([Request('x', Sampling())]))\n"
        "threading.Thread(target=work, daemon=True).start()\n"
        "time.sleep(0.5); engine.close()\n"
    )
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", code, server.url], check=True, timeout=30)
    assert time.monotonic() - began < 15


def test_a_missing_model_is_an_error_that_names_the_flag() -> None:
    with pytest.raises(ConfigError, match="--model"):
        list(OpenAIEngine().complete([Request("x", Sampling())]))


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
[method]
style = "completion"
[engine]
name = "openai"
model = "m"
base_url = "{url}"
chat = false
concurrency = 1
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
        instructgen.generate(seeds, 20, tmp_path / "run", recipe=recipe, batch_size=8)
    assert "resume" in caught.value.hint
    paid = 39
    server.fail_from = None
    result = instructgen.generate(seeds, 20, tmp_path / "run", recipe=recipe, batch_size=8)
    assert result.rows == 20
    assert result.replayed >= paid - 1
    answered = Counter((b["prompt"], b["seed"]) for b in server.answered)
    # Only requests in flight when the run stopped are repeated, at most one per open batch.
    assert sum(n - 1 for n in answered.values()) <= LAG

    undisturbed = EchoServer()
    other = tmp_path / "other"
    other.mkdir()
    instructgen.generate(
        seeds, 20, other / "run", recipe=recipe_for(undisturbed, other), batch_size=8
    )
    assert [r["id"] for r in read_rows(other / "run")] == [
        r["id"] for r in read_rows(tmp_path / "run")
    ]


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
    result = instructgen.generate(seeds, 10, tmp_path / "run", recipe=recipe, batch_size=4)
    assert result.rows == 10
    assert result.facts.failed_requests > 0
    assert "engine_error" in {r.reason for r in result.rejections}


CANARY = "sk-canary-2f9a1c"


def keys(server: Server) -> set[str | None]:
    """Return the API keys of all requests to the server."""
    return {headers.get("Authorization") for headers in server.headers}


def keys_sent(server: Server, **fields: Any) -> set[str | None]:
    """Send one request, and return the API keys that the server received."""
    engine = OpenAIEngine(model="m", **fields)
    list(engine.complete([Request("x", Sampling())]))
    engine.close()
    return keys(server)


def test_a_server_named_by_a_recipe_gets_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    # The user and the recipe name different servers.
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    server = EchoServer()
    seeds, recipe = ROOT / "seeds" / "general.jsonl", recipe_for(server, tmp_path)
    instructgen.generate(seeds, 5, tmp_path / "run", recipe=recipe, batch_size=8)
    instructgen.preview(seeds, 5, recipe=recipe, batch_size=4)
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
    if "@" not in url:
        assert keys_sent(server, base_url=named) == {f"Bearer {CANARY}"}
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
    instructgen.generate(
        seeds, 5, out, recipe=recipe, batch_size=8, endpoint=server.url, engine="openai"
    )
    assert keys(server) == {f"Bearer {CANARY}"}
    assert other.headers == []
    # The address of the server does not affect the run, so another server can resume it.
    again = instructgen.generate(seeds, 5, out, recipe=recipe, batch_size=8)
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
    instructgen.generate(seeds, 5, out, recipe=recipe_for(server, tmp_path), batch_size=8)
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
