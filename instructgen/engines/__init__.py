"""Defines the interface of engines, which run language models, and restarts engines that died.

Each engine has its own file in this folder. The file name is the name of the engine in
recipes and on the command line. This module does not depend on generation methods or
filters.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from instructgen.errors import EngineDied, EngineError
from instructgen.schema.messages import Message

FinishReason = Literal["stop", "length", "error"]


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
    follow; only some engines enforce it (see `Engine.enforces_schema`).

    Four fields are for the generation method, and engines ignore them: ``stage``,
    ``language``, ``parents`` (positions in the task pool of the examples in the prompt),
    and ``task`` (number of the task that the prompt is about).
    """

    prompt: str | tuple[Message, ...] | tuple[int, ...]
    sampling: Sampling
    schema: dict[str, Any] | None = None
    stage: str = ""
    language: str = ""
    parents: tuple[int, ...] = ()
    task: int | None = None

    def with_seed(self, seed: int) -> Request:
        """Return the same request with ``seed`` as its sampling seed."""
        return replace(self, sampling=replace(self.sampling, seed=seed))

    def prompt_text(self) -> str:
        """Return the prompt as one text for display, with the role above each message."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n\n".join(
            f"[{m.role}]\n{m.content}" if isinstance(m, Message) else str(m) for m in self.prompt
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """The result of one request: its text, why the text ended, and the number of tokens.

    ``retryable`` is True if the request failed because of a possibly temporary problem of the
    server, so that the same request may succeed later.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None
    retryable: bool = False

    @classmethod
    def failed(cls, error: str, prompt_tokens: int = 0, *, retryable: bool = False) -> Completion:
        """Return a completion without text that contains the error of a failed request."""
        return cls("", "error", prompt_tokens, 0, error, retryable)


class Engine(BaseModel, ABC):
    """Base class for engines, which complete requests with a language model.

    The fields of an engine are the keys of the TOML table ``[engine]`` in a recipe.
    An engine loads its model at the first request, not when it is constructed. A field
    marked ``resumable`` does not affect the completions, so its value may change when a
    run is resumed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str]

    model: str = Field(
        "",
        description="Language model: a folder, the name of a model on the Hugging Face Hub, "
        "or smollm2 (included). For the engine openai: the name of a model on the server. Default "
        "of the other engines: smollm2; with a GPU, HuggingFaceTB/SmolLM3-3B.",
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

    def enforces_schema(self) -> bool:
        """Return whether the engine enforces JSON schemas; some engines send a test request."""
        return False

    def start(self) -> None:
        """Load the model now instead of at the first request."""

    @abstractmethod
    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Yield the position in ``requests`` and the completion of each request when it finishes.

        Several threads may call this method at the same time. A request that fails yields a
        completion with ``finish_reason="error"`` and does not affect the others.

        Raises:
            EngineDied: the engine has died; completions already yielded remain valid.
            EngineError: the engine cannot start, or cannot continue.
        """

    def restart(self) -> None:
        """Restart the engine after its process has died."""
        raise EngineError(f"The {self.name} engine cannot be restarted.", "Rerun the command.")

    def close(self) -> None:
        """Release the model. A second call does nothing."""


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

        if not self.model:
            object.__setattr__(self, "model", default_model())

    def identity(self) -> dict[str, str]:
        """Return the name of the model and a digest of its folder."""
        from instructgen.models.folders import model_digest

        return {"model": self.model, "digest": model_digest(self.model)}


def prompt_tokens(tokenizer: Any, request: Request) -> list[int]:
    """Return the token ids of a request's prompt, with the chat template applied to messages."""
    if isinstance(request.prompt, str):
        return list(tokenizer.encode(request.prompt)) if request.prompt else []
    if all(isinstance(part, int) for part in request.prompt):
        return [part for part in request.prompt if isinstance(part, int)]
    messages = [m.to_dict() for m in request.prompt if not isinstance(m, int)]
    return list(
        tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    )


def probe_schema_enforcement(engine: Engine) -> bool:
    """Test with one request whether the engine enforces JSON schemas.

    A server may silently ignore the parameters for structured output. Therefore the test uses a
    schema that allows only one text, which no model writes without the schema.
    """
    import orjson

    expected = {"probe": "q7-instructgen"}
    schema = {
        "type": "object",
        "properties": {"probe": {"const": expected["probe"]}},
        "required": ["probe"],
        "additionalProperties": False,
    }
    request = Request(
        prompt=(Message("user", "Say hello."),),
        sampling=Sampling(temperature=0.0, max_tokens=64),
        schema=schema,
    )
    ((_, completion),) = engine.complete([request])
    if completion.retryable:
        # A server that is down does not show whether it enforces schemas.
        raise EngineError(
            f"The {engine.name} engine does not answer: {completion.error}.",
            "Start the server, or wait until it is ready. Then rerun the same command.",
        )
    try:
        return bool(orjson.loads(completion.text) == expected)
    except orjson.JSONDecodeError:
        return False


class Supervisor:
    """Completes requests through an engine, and restarts the engine when it dies.

    Finished completions are kept; only unfinished requests are sent again. Several threads may
    use one supervisor: if the engine dies, only the first thread that notices restarts it.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.restarts = 0
        self._incarnation = 0
        self._lock = threading.Lock()

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Work like `Engine.complete`, but restart a dead engine up to ``max_restarts`` times."""
        pending = dict(enumerate(requests))
        while pending:
            incarnation = self._incarnation
            positions = list(pending)
            try:
                for i, completion in self.engine.complete([pending[p] for p in positions]):
                    del pending[positions[i]]
                    yield positions[i], completion
            except EngineDied as error:
                self._restart(incarnation, error)

    def _restart(self, incarnation: int, cause: EngineDied) -> None:
        with self._lock:
            # Another thread has already restarted the engine after this death.
            if incarnation != self._incarnation:
                return
            if self.restarts >= self.engine.max_restarts:
                times = self.restarts + 1
                raise EngineError(
                    f"The {self.engine.name} engine died {times} times: {cause.message}",
                    "The run is saved. Rerun the same command to resume it.",
                ) from cause
            self.restarts += 1
            self.engine.restart()
            self._incarnation += 1
