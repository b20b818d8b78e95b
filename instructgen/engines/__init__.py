"""What the loop asks of a language model, and how a dead engine is brought back.

One file per engine beside this one; the file's name is the engine's name in
recipes and on the command line. Nothing here knows about methods or filters.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from instructgen.errors import EngineDied, EngineError
from instructgen.schema.sample import Message

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample one completion; names and meanings are vLLM's.

    ``stop`` strings end the completion and are not part of its text.
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
    """One completion to ask for.

    ``prompt`` is plain text for a base model, messages that the model's own chat
    template renders, or tokens. ``schema`` is a JSON schema that the completion must
    follow, where the engine binds it. ``stage``, ``language``, ``parents`` and
    ``task`` belong to the method that made the request; engines ignore them.
    """

    prompt: str | tuple[Message, ...] | tuple[int, ...]
    sampling: Sampling
    schema: dict[str, Any] | None = None
    stage: str = ""
    language: str = ""
    parents: tuple[int, ...] = ()
    task: int | None = None

    def with_seed(self, seed: int) -> Request:
        """The same request, sampled from ``seed``."""
        return replace(self, sampling=replace(self.sampling, seed=seed))

    def prompt_text(self) -> str:
        """The prompt as one readable text, the same for every engine."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n\n".join(
            f"[{m.role}]\n{m.content}" if isinstance(m, Message) else str(m) for m in self.prompt
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """What came back: the text, why it ended, and what it cost in tokens.

    ``retryable`` marks an error that may be the server's state rather than the
    request's fault.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None
    retryable: bool = False

    @classmethod
    def failed(cls, error: str, prompt_tokens: int = 0, *, retryable: bool = False) -> Completion:
        """The completion of a request that failed alone."""
        return cls("", "error", prompt_tokens, 0, error, retryable)


class Engine(BaseModel, ABC):
    """A language model that answers requests. Its fields are its recipe keys.

    Constructing one is cheap and starts nothing; the model loads at the first
    request. Fields marked ``resumable`` cannot change what a recorded run means
    and may differ when a run is resumed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str]

    model: str = Field(
        "", description="path, Hub name, or smollm2; empty: the default for the machine"
    )
    max_restarts: int = Field(
        2,
        ge=0,
        description="restarts of a dead engine before the run stops",
        json_schema_extra={"resumable": True},
    )

    def identity(self) -> dict[str, str]:
        """What the recorded completions depend on: the model's name and digest."""
        return {"model": self.model}

    @abstractmethod
    def chats(self) -> bool:
        """Whether the model has a chat template."""

    def binds_schema(self) -> bool:
        """Whether a JSON schema really constrains completions, tried on the running model."""
        return False

    def start(self) -> None:
        """Load the model now rather than at the first request."""

    @abstractmethod
    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Yield (position in requests, completion) as each finishes, each position once.

        May be called from several threads at a time. A bad request yields a
        completion with ``finish_reason="error"`` and hurts no other.

        Raises:
            EngineDied: the engine is gone; positions already yielded stay good.
            EngineError: it cannot start, or cannot go on.
        """

    def restart(self) -> None:
        """Make a dead engine usable again."""
        raise EngineError(f"The {self.name} engine cannot be restarted.")

    def close(self) -> None:
        """Release the model. Safe to call twice."""


def operational(default: Any, description: str, **limits: Any) -> Any:
    """A field of an engine that cannot change what recorded completions mean."""
    return Field(default, description=description, json_schema_extra={"resumable": True}, **limits)


def typed_only(description: str) -> Any:
    """A text field of an engine that no recipe may set, only who types the command."""
    # Not recorded: where a server is does not change what its completions mean.
    extra: dict[str, Any] = {"resumable": True, "typed_only": True}
    return Field("", description=description, exclude=True, json_schema_extra=extra)


class LocalEngine(Engine):
    """An engine that loads the model itself."""

    max_model_len: int = Field(4096, ge=256, description="tokens of prompt and completion together")

    def model_post_init(self, context: Any) -> None:
        """Fill in the machine's default model."""
        from instructgen.models.folders import default_model

        if not self.model:
            object.__setattr__(self, "model", default_model())

    def identity(self) -> dict[str, str]:
        """The model's name and a digest of its folder."""
        from instructgen.models.folders import model_digest

        return {"model": self.model, "digest": model_digest(self.model)}


def prompt_tokens(tokenizer: Any, request: Request) -> list[int]:
    """A request's prompt as the model's token ids; messages through its chat template."""
    if isinstance(request.prompt, str):
        return list(tokenizer.encode(request.prompt)) if request.prompt else []
    if all(isinstance(part, int) for part in request.prompt):
        return [part for part in request.prompt if isinstance(part, int)]
    messages = [
        {"role": m.role, "content": m.content} for m in request.prompt if not isinstance(m, int)
    ]
    return list(
        tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    )


def check_schema_binds(engine: Engine) -> bool:
    """Ask for a JSON object that no model would write unasked, and see whether it comes.

    Old or misspelt structured-output parameters fail open (free text, no
    error), so the only trustworthy answer is a completion.
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
        # A server that is down does not tell what it can do.
        raise EngineError(
            f"The {engine.name} engine does not answer: {completion.error}.",
            "Start it, or wait for it; then give the same command.",
        )
    try:
        return bool(orjson.loads(completion.text) == expected)
    except orjson.JSONDecodeError:
        return False


class Supervisor:
    """Completes requests through an engine and restarts it when it dies.

    Finished completions are kept; only the unfinished ones are asked again.
    Thread-safe: two batches that meet the same death cause one restart.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.restarts = 0
        self._life = 0
        self._lock = threading.Lock()

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """As `Engine.complete`; raises EngineError once the restarts are used up."""
        left = dict(enumerate(requests))
        while left:
            life = self._life
            positions = list(left)
            try:
                for i, completion in self.engine.complete([left[p] for p in positions]):
                    del left[positions[i]]
                    yield positions[i], completion
            except EngineDied as death:
                self._revive(life, death)

    def _revive(self, life: int, death: EngineDied) -> None:
        with self._lock:
            if life != self._life:
                return
            if self.restarts >= self.engine.max_restarts:
                times = self.restarts + 1
                raise EngineError(
                    f"The {self.engine.name} engine died {times} times: {death.message}",
                    "The run is safe: the same command resumes it.",
                ) from death
            self.restarts += 1
            self.engine.restart()
            self._life += 1
