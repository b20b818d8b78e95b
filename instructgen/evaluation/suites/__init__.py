"""What can be measured of a model: one file per suite.

The file's class is found by its ``name``; an installed package adds more through the
entry-point group ``instructgen.suites``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from instructgen.errors import EngineError
from instructgen.evaluation.measures import Framing, Measured
from instructgen.schema.sample import Sample, Shape


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: a model, and another to compare it with.

    ``limit`` is how many rows are used.
    """

    model: str
    against: str | None
    framing: Framing
    limit: int | None = None
    seed: int = 0

    @property
    def models(self) -> tuple[str, ...]:
        """Both, or the one."""
        return (self.model,) if self.against is None else (self.model, self.against)


@dataclass(slots=True)
class Finding:
    """One measure: of the model, and of the other where that has it too.

    ``higher`` says which way is better. ``facts`` are what else is worth knowing.
    """

    after: Measured
    before: Measured | None = None
    higher: bool = True
    facts: dict[str, Any] = field(default_factory=dict)


class Suite(BaseModel, ABC):
    """Measures something. Its fields are options, as ``--set SUITE.KEY=VALUE``."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str]
    shape: ClassVar[Shape | None] = "instructions"

    @abstractmethod
    def findings(self, subject: Subject, rows: list[Sample]) -> list[Finding]:
        """The measures.

        Raises:
            ConfigError: an option or a model is bad.
            EngineError: the engine cannot start.
        """


class AnsweringSuite(Suite):
    """A suite for which models have to write."""

    engine: Literal["transformers", "vllm"] = Field("transformers", description="what writes")
    max_new_tokens: int = Field(256, ge=1, description="tokens of an answer")

    def askable(self, subject: Subject, tasks: list[Sample]) -> list[Sample]:
        """The tasks that can be put to every model, and leave room for an answer."""
        room = self._room(subject)
        for name in subject.models:
            encoder = _encoder(name, subject.framing)
            prompts = [encoder.prompt(t) for t in tasks]
            tasks = [
                t
                for t, prompt in zip(tasks, prompts, strict=True)
                if isinstance(prompt, str) and len(encoder.ids(prompt)) < room
            ]
        return tasks

    def _room(self, subject: Subject) -> int:
        """Tokens of a prompt and its answer."""
        return max(256, subject.framing.max_length)

    def answers(self, subject: Subject, tasks: list[Sample]) -> dict[str, list[str]]:
        """Each model's answers to tasks that can be asked, greedy."""
        from instructgen.evaluation.answers import completions, requests_for
        from instructgen.plugins import find

        found = {}
        for name in subject.models:
            encoder = _encoder(name, subject.framing)
            prompts = [tuple(encoder.ids(str(encoder.prompt(task)))) for task in tasks]
            engine = find("engines", self.engine)(model=name, max_model_len=self._room(subject))
            requests = requests_for(prompts, max_tokens=self.max_new_tokens, seed=subject.seed)
            answers = completions(engine, requests)
            engine.close()
            if failed := next((c for c in answers if c.finish_reason == "error"), None):
                raise EngineError(
                    f"{name} gave no answer to a prompt: {failed.error}",
                    "Look at --max-length.",
                )
            found[name] = [c.text for c in answers]
        return found


def named(path: str) -> str:
    """A model as a table names it."""
    return Path(path).name or path


def _encoder(name: str, framing: Framing) -> Any:
    from instructgen.models.loading import load_tokenizer
    from instructgen.training.encode import Encoder

    return Encoder(load_tokenizer(name, framing.pad_token), framing.format, name)
