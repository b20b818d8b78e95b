"""Defines the interface of engines, which run language models and other models.

Each engine has its own file in this folder. The file name is the name of the engine in
recipes and on the command line. This module does not depend on generation methods or
filters. `instructgen.engines.supervisor` gives an engine its thread, and restarts it if it dies.
"""

from __future__ import annotations

import queue
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, PrivateAttr

from instructgen.errors import ConfigError, EngineError
from instructgen.schema.messages import Message
from instructgen.schema.sample import Sample
from instructgen.schema.state import StatefulModel

FinishReason = Literal["stop", "length", "error"]
# What a request asks for: a text, a judgment, the score of a row, or the execution of code.
Role = Literal["writer", "judge", "reward", "executor"]
# The order in which completions are used: as they arrive, or as they were requested.
CommitOrder = Literal["arrival", "issued"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters for one completion, with the same names and meanings as in vLLM.

    The completion ends before the first occurrence of any string in ``stop``.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A request for one completion.

    ``prompt`` is plain text (for a base model), messages that the model's own chat
    template renders, or token ids. ``schema`` is a JSON schema that the completion must
    follow; only some engines enforce it (see `Engine.can_enforce_schemas`). ``role`` decides which
    engine answers the request, and ``row`` is the row to score in the role ``reward``. ``stage``,
    the step that asks, and ``model``, the name of the model that is asked, are only for the record.
    """

    prompt: str | tuple[Message, ...] | tuple[int, ...]
    sampling: Sampling
    schema: dict[str, Any] | None = None
    role: Role = "writer"
    stage: str = ""
    model: str = ""
    row: Sample | None = None

    def with_seed(self, seed: int) -> Request:
        """Return the same request with ``seed`` as its sampling seed."""
        return replace(self, sampling=replace(self.sampling, seed=seed))

    def prompt_text(self) -> str:
        """Return the prompt as one text for display, with the role above each message.

        Token ids are shown as numbers on one line.
        """
        if isinstance(self.prompt, str):
            return self.prompt
        tokens = " ".join(str(part) for part in self.prompt if isinstance(part, int))
        messages = [f"[{m.role}]\n{m.content}" for m in self.prompt if isinstance(m, Message)]
        return "\n\n".join([f"[tokens]\n{tokens}", *messages] if tokens else messages)


@dataclass(frozen=True, slots=True)
class Completion:
    """The result of one request: its text, why the text ended, and the number of tokens.

    ``retryable`` is True if the request failed because of a possibly temporary problem of the
    server, so that the same request may succeed later. ``reasoning`` is what a thinking model
    wrote before the text.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None
    retryable: bool = False
    reasoning: str = ""

    @classmethod
    def failed(cls, error: str, prompt_tokens: int = 0, *, retryable: bool = False) -> Completion:
        """Return a completion without text that contains the error of a failed request."""
        return cls("", "error", prompt_tokens, 0, error, retryable)


class Engine(StatefulModel, ABC):
    """Base class for engines, which complete requests with a language model.

    The fields of an engine are the keys of the TOML table ``[engine]`` in a recipe. A field
    marked ``resumable`` does not affect the completions, so its value may change when a
    run is resumed.

    One thread calls `start`, `next`, `restart` and `close`. Any thread may call `submit` and
    `cancel`. A request that fails gives a completion with ``finish_reason="error"`` and does not
    affect the others. An engine that completes a few requests at a time is easier to write as a
    `QueueEngine`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str]
    # Real engines answer at different speeds, so completions are used as they arrive.
    commit_order: ClassVar[CommitOrder] = "arrival"
    # Whether requests beyond the window wait in the engine. A server would get them at once.
    has_queue: ClassVar[bool] = True
    # Whether the engine may enforce JSON schemas, which a test request then decides.
    can_enforce_schemas: ClassVar[bool] = False

    model: str = Field(
        "",
        description="Language model: a folder, the name of a model on the Hugging Face Hub, "
        "or smollm2 (included). For the engine openai: the name of a model on the server. Default "
        "of the other engines: smollm2; with a GPU, HuggingFaceTB/SmolLM3-3B.",
    )
    thinking: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether a model that can reason before it answers does so: auto (as its chat "
        "template decides), on or off. A request with a JSON schema is answered without reasoning.",
    )
    thinking_tokens: int = Field(
        2048,
        ge=0,
        description="Maximum number of tokens of the reasoning, in addition to those of the "
        "answer. For the engine openai: only if thinking is on.",
    )
    max_restarts: int = Field(
        2,
        ge=0,
        description="Maximum number of times that the engine is restarted after its process died. "
        "If it dies once more, the run stops and can be resumed.",
        json_schema_extra={"resumable": True},
    )

    def identity(self) -> dict[str, str]:
        """Return the values that identify the model of a run: here, only its name."""
        return {"model": self.model}

    @abstractmethod
    def has_chat_template(self) -> bool:
        """Return whether the model has a chat template."""

    def user_turn(self, system: str = "") -> tuple[tuple[int, ...], str]:
        """Return the tokens of the chat template before the text of a user, and what follows it.

        A text in ``system`` is the system message before it.

        Raises:
            ConfigError: the engine has no chat template that it can read.
        """
        raise ConfigError(
            f"The engine {self.name} cannot continue the beginning of a chat template.",
            "Use --engine=vllm or --engine=transformers.",
        )

    def start(self) -> None:
        """Load the model, or connect to the server. A second call does nothing.

        Raises:
            EngineError: the engine cannot start.
            ConfigError: an option or the model is invalid.
        """

    @abstractmethod
    def submit(self, number: int, request: Request) -> None:
        """Accept a request and return at once; ``number`` identifies its completion."""

    @abstractmethod
    def cancel(self, number: int) -> None:
        """Give up a request. `next` may still return its completion."""

    @abstractmethod
    def next(self, timeout_s: float = 60.0) -> tuple[int, Completion] | None:
        """Wait for a completion, and return it with the number of its request.

        Returns:
            None if no request was completed within about ``timeout_s`` seconds.

        Raises:
            EngineDied: the engine has died; completions already returned remain valid.
            EngineError: the engine cannot continue.
        """

    def window(self) -> int:
        """Return the number of requests that the engine should have at the same time."""
        return 32

    def slots(self) -> int:
        """Return the number of requests that the engine can work on at the same time."""
        return self.window()

    def restart(self) -> None:
        """Restart the engine after its process has died; submitted requests are forgotten."""
        raise EngineError(f"The {self.name} engine cannot be restarted.", "Rerun the command.")

    def close(self) -> None:
        """Release the model, and give up unfinished requests. A second call does nothing."""


class QueueEngine(Engine):
    """Base class for engines that complete a few requests at a time.

    A subclass implements `complete`, and `at_once` if it completes several requests per call.
    """

    # The requests by number, and the order of the numbers, of which some may be canceled.
    _requests: dict[int, Request] = PrivateAttr(default_factory=dict)
    _order: queue.SimpleQueue[int] = PrivateAttr(default_factory=queue.SimpleQueue)
    _completed: deque[tuple[int, Completion]] = PrivateAttr(default_factory=deque)

    @abstractmethod
    def complete(self, requests: Sequence[Request]) -> Sequence[Completion]:
        """Return the completion of each request, in order."""

    def at_once(self) -> int:
        """Return the maximum number of requests per call of `complete`."""
        return 1

    def submit(self, number: int, request: Request) -> None:
        """Append the request to the queue."""
        self._requests[number] = request
        self._order.put(number)

    def cancel(self, number: int) -> None:
        """Skip the request if its completion has not begun."""
        self._requests.pop(number, None)

    def next(self, timeout_s: float = 60.0) -> tuple[int, Completion] | None:
        """Complete the oldest requests, and return their completions one by one."""
        deadline = time.monotonic() + timeout_s
        while not self._completed:
            batch: dict[int, Request] = {}
            try:
                wait_s = max(0.0, deadline - time.monotonic())
                numbers = [self._order.get(timeout=wait_s)]
                while len(batch) < self.at_once():
                    number = numbers.pop() if numbers else self._order.get_nowait()
                    if (request := self._requests.pop(number, None)) is not None:
                        batch[number] = request
            except queue.Empty:
                if not batch and time.monotonic() >= deadline:
                    return None
            if batch:
                completions = self.complete([*batch.values()])
                self._completed.extend(zip(batch, completions, strict=True))
        return self._completed.popleft()

    def close(self) -> None:
        """Forget the requests that were not completed."""
        while not self._order.empty():
            self._order.get()
        self._requests.clear()
        self._completed.clear()


def operational(default: Any, description: str, **limits: Any) -> Any:
    """Return an engine field that does not affect completions and may change in a resumed run."""
    return Field(default, description=description, json_schema_extra={"resumable": True}, **limits)


def command_line_only(description: str) -> Any:
    """Return a text field that only the command line may set: others may have written a recipe."""
    # Not recorded: the address of a server does not affect its completions.
    extra: dict[str, Any] = {"resumable": True, "command_line_only": True}
    return Field("", description=description, exclude=True, json_schema_extra=extra)


class LocalEngine(Engine):
    """An engine that loads the model on this machine."""

    max_model_len: int = Field(
        4096, ge=256, description="Maximum sum of the tokens in a prompt and in its completion."
    )

    def model_post_init(self, context: Any) -> None:
        """Set the default model, which depends on whether there is a GPU, if none is set."""
        from instructgen.models.folders import default_model

        super().model_post_init(context)
        if not self.model:
            object.__setattr__(self, "model", default_model())

    def identity(self) -> dict[str, str]:
        """Return the name of the model and a digest of its folder."""
        from instructgen.models.folders import model_digest

        return {"model": self.model, "digest": model_digest(self.model)}


# A text that no chat template changes and that no template contains.
_SENTINEL = "Qx7instructgenQx7"


def user_turn_of(tokenizer: Any, system: str) -> tuple[tuple[int, ...], str]:
    """See `Engine.user_turn`; the template is rendered with a sentinel as the user's text."""
    if not tokenizer.chat_template:
        raise ConfigError("The model has no chat template.", "Use another model.")
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": _SENTINEL})
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:
        raise ConfigError(
            f"The chat template cannot be used with a brief ({error}).", "Omit --brief."
        ) from error
    before, found, after = text.partition(_SENTINEL)
    if not found:
        raise ConfigError("The chat template changes the user's text.", "Use another model.")
    end = after.split()
    tokens = tokenizer.encode(before, add_special_tokens=False)
    return tuple(tokens), end[0] if end else ""


def prompt_tokens(tokenizer: Any, request: Request, **variables: bool) -> list[int]:
    """Return the token ids of a request's prompt, with the chat template applied to messages.

    The ``variables`` are passed to the chat template.
    """
    if isinstance(request.prompt, str):
        return list(tokenizer.encode(request.prompt)) if request.prompt else []
    if all(isinstance(part, int) for part in request.prompt):
        return [part for part in request.prompt if isinstance(part, int)]
    messages = [m.to_dict() for m in request.prompt if not isinstance(m, int)]
    return list(
        tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False, **variables
        )
    )


def ask(engine: Engine, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
    """Start an engine in this thread, and yield the position and completion of each request.

    For scripts and tests: an engine that dies is not restarted, and nothing is recorded.
    """
    engine.start()
    for number, request in enumerate(requests):
        engine.submit(number, request)
    waiting = len(requests)
    while waiting:
        result = engine.next()
        if result is not None:
            waiting -= 1
            yield result
