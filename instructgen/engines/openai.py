"""Any server with OpenAI's HTTP interface, such as vLLM, llama.cpp, Ollama or a paid service.

The API key comes from the environment variable OPENAI_API_KEY. It is not written to any file, and
not sent to a server that only a recipe names. Temporary failures (429, 5xx, a broken connection, a
partial answer) are retried; a request that the server rejects fails alone.
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import random
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson
import uvloop
from pydantic import Field, PrivateAttr

from instructgen.engines import (
    Completion,
    Engine,
    FinishReason,
    Request,
    command_line_only,
    operational,
)
from instructgen.engines.thinking import split_reasoning, template_options
from instructgen.engines.window import MeasuredWindow
from instructgen.errors import ConfigError, EngineError
from instructgen.printable import remember_url

_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_HOPELESS = frozenset({401, 403, 404})
# An answer is text of a few thousand tokens.
_MOST_BYTES = 16 * 2**20
_PART_BYTES = 2**16
# A token of any vocabulary is much shorter on average. An answer that exceeds this was not limited
# to the tokens that were requested, and to read its items and to compare them would take minutes.
_CHARACTERS_PER_TOKEN, _MORE_CHARACTERS = 200, 10_000
# Token counts above this are not those of any model.
_MOST_TOKENS = 2**31
_HERE = "http://127.0.0.1:8000/v1"
_PORTS = {"http": 80, "https": 443}


def _api_key() -> str | None:
    """Return the API key in OPENAI_API_KEY without spaces at its ends, or None if it is not set."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(
            "OPENAI_API_KEY contains characters that a key cannot have.",
            "Set it to one line of ASCII letters, digits and signs, without spaces.",
        )
    return key or None


class _Passing(Exception):
    """A failure to retry, after ``wait_s`` seconds if the server said so.

    ``overload`` is true if the server has too many requests.
    """

    def __init__(self, what: str, wait_s: float | None = None, *, overload: bool = False) -> None:
        super().__init__(what)
        self.wait_s, self.overload = wait_s, overload


class OpenAIEngine(Engine):
    """Sends requests over HTTP, as many at the same time as the server can use."""

    name = "openai"
    has_queue = False
    # Tested on the server when a run starts.
    can_enforce_schemas = True
    renamed: ClassVar[Mapping[str, str]] = {"concurrency": "in_flight, in the table [generate]"}

    base_url: str = operational(
        "",
        "URL of the server. Default: the environment variable OPENAI_BASE_URL, or else vLLM's "
        "default address on this machine.",
    )
    endpoint: str = command_line_only(
        "URL of the server, given by the user instead of base_url. The API key is sent to it."
    )
    chat: bool = Field(True, description="Whether the model has a chat template.")
    timeout_s: float = operational(
        120.0, "Seconds without any data from the server after which a request has failed.", gt=0
    )
    deadline_s: float = operational(
        3600.0,
        "Seconds for a whole answer, after which a request has failed even if data arrives.",
        gt=0,
    )
    max_retries: int = operational(6, "Maximum number of retries of a request.", ge=0)
    max_wait_s: float = operational(60.0, "Maximum seconds to wait between two tries.", gt=0)

    _session: aiohttp.ClientSession | None = PrivateAttr(None)
    _loop: asyncio.AbstractEventLoop | None = PrivateAttr(None)
    _url: str = PrivateAttr("")
    _proxy: str | None = PrivateAttr(None)
    _measured: MeasuredWindow = PrivateAttr(default_factory=MeasuredWindow)
    _submitted: deque[tuple[int, Request, str, bytes]] = PrivateAttr(default_factory=deque)
    _canceled: deque[int] = PrivateAttr(default_factory=deque)
    _waking: bool = PrivateAttr(False)
    _stopping: bool = PrivateAttr(False)
    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _tasks: dict[int, asyncio.Task[None]] = PrivateAttr(default_factory=dict)
    _completed: deque[tuple[int, Completion]] = PrivateAttr(default_factory=deque)
    _failure: BaseException | None = PrivateAttr(None)
    _sleep: Callable[[float], Awaitable[object]] = PrivateAttr(
        default_factory=lambda: asyncio.sleep
    )
    _now: Callable[[], float] = PrivateAttr(time.time)

    def has_chat_template(self) -> bool:
        """Return the value of ``chat``, because servers do not provide this information."""
        return self.chat

    def window(self) -> int:
        """Return the number of requests in flight that the measurements suggest."""
        return self._measured.size

    def start(self) -> None:
        """Open the connections.

        Raises:
            ConfigError: no model is set, or the URL is invalid.
        """
        if self._loop is not None:
            return
        if not self.model:
            raise ConfigError(
                "The openai engine needs a model.", "Pass --model=NAME, as the server calls it."
            )
        url = self.endpoint or self.base_url or os.environ.get("OPENAI_BASE_URL") or _HERE
        try:
            parsed = urlsplit(url)
            if parsed.scheme not in _PORTS or not parsed.hostname or parsed.port == 0:
                raise ValueError("not an http or https address of a host")
        except ValueError as error:
            raise ConfigError(f"base_url {url}: {error}.", "Pass http://HOST:PORT/v1.") from error
        # User and password in the URL are sent in the same header as the key, and come first.
        remember_url(url)
        key = _api_key() if self._is_named(url) and not parsed.username else None
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self._url = url.rstrip("/") + "/"
        if not proxy_bypass(parsed.netloc.rpartition("@")[2]):
            self._proxy = getproxies().get(parsed.scheme)

        async def connect() -> aiohttp.ClientSession:
            # The sequencer limits the number of requests in flight.
            connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=300)
            timeout = aiohttp.ClientTimeout(
                total=self.deadline_s, sock_connect=self.timeout_s, sock_read=self.timeout_s
            )
            return aiohttp.ClientSession(
                connector=connector,
                timeout=timeout,
                headers=headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                # A few bytes of a compressed answer can become gigabytes.
                auto_decompress=False,
            )

        loop = uvloop.new_event_loop()
        session = loop.run_until_complete(connect())
        # Another thread may submit a request now, and must find both.
        with self._lock:
            self._loop, self._session = loop, session

    def submit(self, number: int, request: Request) -> None:
        """Accept a request; the thread that calls `next` sends it."""
        path, body = self._body(request)
        with self._lock:
            self._submitted.append((number, request, path, orjson.dumps(body)))
            self._wake()

    def cancel(self, number: int) -> None:
        """Close the connection of a request."""
        with self._lock:
            self._canceled.append(number)
            self._wake()

    def next(self, timeout_s: float = 60.0) -> tuple[int, Completion] | None:
        """Send and receive until there is a completion.

        Raises:
            EngineError: the server rejects the API key, or does not have the path or the model.
        """
        assert self._loop is not None
        if not self._completed:
            self._take()
            timer = self._loop.call_later(timeout_s, self._stop)
            try:
                self._loop.run_forever()
            finally:
                self._stopping = False
                timer.cancel()
        if self._completed:
            return self._completed.popleft()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return None

    def close(self) -> None:
        """Close all connections; unfinished requests are canceled."""
        loop, session = self._loop, self._session
        if loop is None or session is None:
            return
        with self._lock:
            self._loop = self._session = None
            self._submitted.clear()
            self._canceled.clear()
            self._waking = False
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()

        async def finish() -> None:
            await asyncio.gather(*tasks, return_exceptions=True)
            await session.close()

        loop.run_until_complete(finish())
        loop.close()
        # The numbers of the requests may be used again after the next start.
        self._completed.clear()
        self._failure = None

    def _is_named(self, url: str) -> bool:
        """Return whether the user named this server; one that only a recipe names gets no key."""
        named = [self.endpoint, os.environ.get("OPENAI_BASE_URL", "")]
        if not self.base_url:
            named.append(_HERE)
        return _origin(url) in {_origin(each) for each in named if each}

    def _wake(self) -> None:
        """Notify the event loop that requests were submitted or canceled."""
        if self._loop is not None and not self._waking:
            self._waking = True
            self._loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        """Start a task for each submitted request, and cancel those that were given up."""
        if self._loop is None:
            # The engine was closed after the event loop was notified.
            return
        with self._lock:
            self._waking = False
            submitted, canceled = list(self._submitted), list(self._canceled)
            self._submitted.clear()
            self._canceled.clear()
        for number, request, path, body in submitted:
            answer = self._answer(number, request, path, body)
            self._tasks[number] = self._loop.create_task(answer)
        for number in canceled:
            if (task := self._tasks.get(number)) is not None:
                task.cancel()

    async def _answer(self, number: int, request: Request, path: str, body: bytes) -> None:
        try:
            completion = self._limited(request, await self._with_retries(path, body))
            # Some servers separate the reasoning themselves.
            if not completion.reasoning:
                opened = None if self.thinking == "on" else False
                completion = split_reasoning(completion, request, opened=opened)
            self._completed.append((number, completion))
        except Exception as error:  # noqa: BLE001 (raised again by `next`)
            self._failure = error
        finally:
            self._tasks.pop(number, None)
            self._stop()

    def _stop(self) -> None:
        """Let `next` continue. A second stop would end the next run of the event loop."""
        if self._loop is not None and not self._stopping:
            self._stopping = True
            self._loop.stop()

    def _most_tokens(self, request: Request) -> int:
        thinks = self.thinking == "on" and request.schema is None
        return request.sampling.max_tokens + (self.thinking_tokens if thinks else 0)

    def _limited(self, request: Request, completion: Completion) -> Completion:
        """Return the completion, or a failure if it is too long for the requested tokens."""
        tokens = self._most_tokens(request)
        size = len(completion.text) + len(completion.reasoning)
        if size <= _CHARACTERS_PER_TOKEN * tokens + _MORE_CHARACTERS:
            return completion
        error = f"the answer has {size:,} characters, but at most {tokens:,} tokens were requested"
        # Its tokens are counted, because a paid service charges for them.
        return replace(completion, text="", reasoning="", finish_reason="error", error=error)

    async def _with_retries(self, path: str, body: bytes) -> Completion:
        last = ""
        for attempt in range(self.max_retries + 1):
            level, began = self._measured.sent(), time.monotonic()
            try:
                completion = await self._try(path, body)
            except _Passing as error:
                last, wait_s = str(error), error.wait_s
                if error.overload:
                    self._measured.rejected(level)
            else:
                seconds = time.monotonic() - began
                self._measured.answered(level, seconds, completion.output_tokens)
                return completion
            if attempt < self.max_retries:
                if wait_s is None:
                    # Random waits spread the retries of requests that failed together.
                    wait_s = min(self.max_wait_s, 0.5 * 2**attempt) * random.uniform(0.5, 1.0)
                await self._sleep(min(wait_s, self.max_wait_s))
        return Completion.failed(f"{last} ({self.max_retries + 1} tries)", retryable=True)

    async def _try(self, path: str, body: bytes) -> Completion:
        assert self._session is not None
        try:
            # Another server must not get the key, so redirects are not followed.
            async with self._session.post(
                self._url + path, data=body, allow_redirects=False, proxy=self._proxy
            ) as response:
                content = await _content(response)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            silent = isinstance(error, asyncio.TimeoutError)
            raise _Passing(f"{type(error).__name__}: {error}"[:200], overload=silent) from error
        if content is None:
            return Completion.failed(
                f"HTTP {response.status}: the answer is compressed or too long"
            )
        if response.status in _PASSING:
            wait_s = self._retry_after(response)
            raise _Passing(f"HTTP {response.status}", wait_s, overload=response.status == 429)
        if response.status in _HOPELESS:
            hint = "Check the server, --model and OPENAI_API_KEY."
            if os.environ.get("OPENAI_API_KEY") and "Authorization" not in self._session.headers:
                hint = (
                    "OPENAI_API_KEY was not sent, because the recipe names this server. To send "
                    "it, pass --endpoint=URL or set OPENAI_BASE_URL."
                )
            raise EngineError(
                f"{self._url}{path} answers HTTP {response.status}: {_message(content)}.", hint
            )
        if response.status != 200:
            return Completion.failed(f"HTTP {response.status}: {_message(content)}")
        return _read(content)

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
        if self.thinking != "auto":
            body["chat_template_kwargs"] = template_options(request, self.thinking)
        body["max_tokens"] = self._most_tokens(request)
        if request.schema is not None:
            schema = {"name": "answer", "schema": request.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return "chat/completions", body

    def _retry_after(self, response: aiohttp.ClientResponse) -> float | None:
        """Return the seconds to wait, from either form of the header, or None without a header."""
        value = response.headers.get("retry-after", "").strip()
        if value.isdecimal():
            return float(value)
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - self._now())
        except (ValueError, OverflowError):
            return None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Return scheme, host and port, for which a credential is valid (RFC 6454)."""
    parsed = urlsplit(url)
    return parsed.scheme, parsed.hostname, parsed.port or _PORTS.get(parsed.scheme)


async def _content(response: aiohttp.ClientResponse) -> bytes | None:
    """Return the body of a response, or None if it is compressed or has more than 16 MiB."""
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        return None
    parts, size = [], 0
    async for part in response.content.iter_chunked(_PART_BYTES):
        parts.append(part)
        size += len(part)
        if size > _MOST_BYTES:
            response.close()
            return None
    return b"".join(parts)


def _count(usage: Any, name: str) -> int:
    """Return a number of tokens, 0 if the server does not state it.

    Raises:
        AttributeError, TypeError, ValueError: it is not a number of tokens.
    """
    count = usage.get(name)
    if count is None:
        return 0
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(name)
    if not 0 <= count <= _MOST_TOKENS:
        raise ValueError(name)
    return count


def _read(content: bytes) -> Completion:
    """Return the completion in an answer; whatever is recorded has the right types."""
    try:
        answer = orjson.loads(content)
        if answer.get("error"):
            raise _Passing(f"HTTP 200 with an error: {str(answer['error'])[:200]}")
        choice = answer["choices"][0]
        message = choice if "text" in choice else choice["message"]
        text = message["text"] if "text" in message else message["content"]
        # Servers use two names for it.
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        if text is not None and not isinstance(text, str):
            raise TypeError("the text of an answer")
        usage, said = answer.get("usage") or {}, choice.get("finish_reason")
        if not isinstance(said, str | None):
            raise TypeError("the reason for the end of an answer")
        known: dict[str | None, FinishReason] = {"stop": "stop", "length": "length"}
        reason = known.get(said, "error")
        return Completion(
            text=text or "",
            finish_reason=reason,
            prompt_tokens=_count(usage, "prompt_tokens"),
            output_tokens=_count(usage, "completion_tokens"),
            error=None if reason != "error" else f"finish reason {str(said)[:40]}",
            reasoning=reasoning if isinstance(reasoning, str) else "",
        )
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise _Passing(f"an answer that cannot be read ({type(error).__name__})") from error


def _message(content: bytes) -> str:
    text = content.decode("utf-8", "replace")
    return " ".join(text.split())[:200] or "no text"
