"""Any server with OpenAI's HTTP interface: vLLM, llama.cpp, Ollama, or a paid one.

The key comes from the environment variable OPENAI_API_KEY, is written nowhere, and
goes to no server that only a recipe names. What passes with time (429, 5xx, a
broken connection, half an answer) is tried again; a request that the server refuses
fails alone.
"""

from __future__ import annotations

import email.utils
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import orjson
from pydantic import Field, PrivateAttr

from instructgen.engines import (
    Completion,
    Engine,
    FinishReason,
    Request,
    command_line_only,
    operational,
    probe_schema_enforcement,
)
from instructgen.errors import ConfigError, EngineError

_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_HOPELESS = frozenset({401, 403, 404})
_HERE = "http://127.0.0.1:8000/v1"
_PORTS = {"http": 80, "https": 443}


class _Passing(Exception):
    """Worth another try, after ``wait_s`` if the server said so."""

    def __init__(self, what: str, wait_s: float | None = None) -> None:
        super().__init__(what)
        self.wait_s = wait_s


class OpenAIEngine(Engine):
    """Requests over HTTP, several at a time."""

    name = "openai"

    base_url: str = operational("", "the server; empty: OPENAI_BASE_URL, or vLLM's default here")
    endpoint: str = command_line_only("the server as typed, in place of base_url; it gets the key")
    chat: bool = Field(True, description="The model has a chat template.")
    concurrency: int = operational(32, "requests at the same time", ge=1)
    timeout_s: float = operational(120.0, "silence after which a request has failed", gt=0)
    max_retries: int = operational(6, "further tries of a request", ge=0)
    max_wait_s: float = operational(60.0, "longest wait between two tries", gt=0)

    _client: httpx.Client | None = PrivateAttr(None)
    _closing: threading.Event = PrivateAttr(default_factory=threading.Event)
    _sleep: Callable[[float], object] | None = PrivateAttr(None)
    _now: Callable[[], float] = PrivateAttr(time.time)

    def has_chat_template(self) -> bool:
        """The recipe's value, because the API does not provide this."""
        return self.chat

    def enforces_schema(self) -> bool:
        """Tried on the server, once per start."""
        return self.chat and probe_schema_enforcement(self)

    def start(self) -> None:
        """Open the connection pool.

        Raises:
            ConfigError: no model was named.
        """
        if self._client is not None:
            return
        if not self.model:
            raise ConfigError(
                "The openai engine needs a model.", "Give --model NAME, as the server calls it."
            )
        url = self.endpoint or self.base_url or os.environ.get("OPENAI_BASE_URL") or _HERE
        try:
            if (parsed := httpx.URL(url)).scheme not in _PORTS or not parsed.host:
                raise ValueError("not an http or https address of a host")
            key = os.environ.get("OPENAI_API_KEY") if self._is_named(url) else None
            client = httpx.Client(
                base_url=url.rstrip("/") + "/",
                timeout=self.timeout_s,
                headers={"Authorization": f"Bearer {key}"} if key else {},
                limits=httpx.Limits(max_connections=self.concurrency),
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise ConfigError(f"base_url {url}: {error}.", "Give http://HOST:PORT/v1.") from error
        object.__setattr__(self, "_client", client)

    def _is_named(self, url: str) -> bool:
        """Whether the user named this server: a recipe that names another gets no key."""
        named = [self.endpoint, os.environ.get("OPENAI_BASE_URL", "")]
        if not self.base_url:
            named.append(_HERE)
        return _origin(url) in {_origin(each) for each in named if each}

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """As `Engine.complete`.

        Raises:
            EngineError: the server does not know us, the path or the model.
        """
        self.start()
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        answers: queue.SimpleQueue[tuple[int, Completion] | Exception] = queue.SimpleQueue()
        for i in range(len(requests)):
            todo.put(i)

        def work() -> None:
            while not self._closing.is_set():
                try:
                    i = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    answers.put((i, self._one(requests[i])))
                except Exception as error:  # noqa: BLE001 (raised again below)
                    answers.put(error)

        # Daemons, not a pool: a pool's threads hold up the end of the process
        # for as long as a server is silent.
        for _ in range(min(self.concurrency, len(requests))):
            threading.Thread(target=work, daemon=True).start()
        for _ in requests:
            answer = answers.get()
            if isinstance(answer, Exception):
                while not todo.empty():
                    todo.get()
                raise answer
            yield answer

    def close(self) -> None:
        """Close all connections; requests under way are given up."""
        self._closing.set()
        if self._client is not None:
            self._client.close()

    def _one(self, request: Request) -> Completion:
        last = ""
        for attempt in range(self.max_retries + 1):
            try:
                return self._try(request)
            except _Passing as error:
                last = str(error)
                wait_s = error.wait_s
            if self._closing.is_set():
                break
            if attempt < self.max_retries:
                if wait_s is None:
                    # Full jitter keeps clients that failed together apart.
                    wait_s = min(self.max_wait_s, 0.5 * 2**attempt) * random.uniform(0.5, 1.0)
                (self._sleep or self._closing.wait)(min(wait_s, self.max_wait_s))
        return Completion.failed(f"{last} ({self.max_retries + 1} tries)", retryable=True)

    def _try(self, request: Request) -> Completion:
        assert self._client is not None
        path, body = self._body(request)
        try:
            response = self._client.post(path, json=body)
        except (httpx.HTTPError, RuntimeError) as error:
            # httpx raises RuntimeError once the client was closed.
            raise _Passing(f"{type(error).__name__}: {error}"[:200]) from error
        if response.status_code in _PASSING:
            raise _Passing(f"HTTP {response.status_code}", self._retry_after(response))
        if response.status_code in _HOPELESS:
            hint = "Check the server, --model and OPENAI_API_KEY."
            if os.environ.get("OPENAI_API_KEY") and "authorization" not in response.request.headers:
                hint = (
                    "OPENAI_API_KEY was not sent, because the recipe names this server. To send "
                    "it, give --endpoint URL or set OPENAI_BASE_URL."
                )
            raise EngineError(
                f"{response.request.url} answers HTTP {response.status_code}: "
                f"{_message(response)}.",
                hint,
            )
        if response.status_code != 200:
            return Completion.failed(f"HTTP {response.status_code}: {_message(response)}")
        return _read(response)

    def _body(self, request: Request) -> tuple[str, dict[str, Any]]:
        s = request.sampling
        body: dict[str, Any] = {
            "model": self.model,
            "temperature": s.temperature,
            "top_p": s.top_p,
            "max_tokens": s.max_tokens,
            "presence_penalty": s.presence_penalty,
            "frequency_penalty": s.frequency_penalty,
        }
        if s.stop:
            body["stop"] = list(s.stop)
        if s.seed is not None:
            body["seed"] = s.seed
        if isinstance(request.prompt, str):
            return "completions", {**body, "prompt": request.prompt}
        tokens = [part for part in request.prompt if isinstance(part, int)]
        if tokens:
            return "completions", {**body, "prompt": tokens}
        body["messages"] = [m.to_dict(text=True) for m in request.prompt if not isinstance(m, int)]
        if request.schema is not None:
            schema = {"name": "answer", "schema": request.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return "chat/completions", body

    def _retry_after(self, response: httpx.Response) -> float | None:
        """Return the seconds to wait, from either form of the header, or None without a header."""
        value = response.headers.get("retry-after", "").strip()
        if value.isdecimal():
            return float(value)
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - self._now())
        except ValueError:
            return None


def _origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port: what a credential is bound to (RFC 6454)."""
    parsed = httpx.URL(url)
    return parsed.scheme, parsed.host, parsed.port or _PORTS.get(parsed.scheme)


def _read(response: httpx.Response) -> Completion:
    try:
        answer = orjson.loads(response.content)
        if "error" in answer:
            raise _Passing(f"HTTP 200 with an error: {str(answer['error'])[:200]}")
        choice = answer["choices"][0]
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        usage = answer.get("usage") or {}
        known: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
        reason = known.get(choice.get("finish_reason") or "", "error")
        return Completion(
            text=text or "",
            finish_reason=reason,
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            output_tokens=int(usage.get("completion_tokens") or 0),
            error=None if reason != "error" else f"finish reason {choice.get('finish_reason')}",
        )
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise _Passing(f"an answer that cannot be read ({type(error).__name__})") from error


def _message(response: httpx.Response) -> str:
    return " ".join(response.text.split())[:200] or "no text"
