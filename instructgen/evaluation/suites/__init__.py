"""Evaluation suites, one module per suite, and the base classes that they share.

A suite computes one or more measures of a model, such as its win rate against another model. It is
selected by the ``name`` of its class. An installed package can add suites through the entry-point
group ``instructgen.suites``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from instructgen.engines import Completion, Engine, Request
from instructgen.errors import EngineError
from instructgen.evaluation.measures import MeasuredRows, compared
from instructgen.generation.sequencer import answer_all
from instructgen.schema.measures import Measure
from instructgen.schema.sample import Sample, Shape
from instructgen.training.options import PromptFormat


class Ask(Protocol):
    """Protocol for functions through which suites ask an engine."""

    def __call__(
        self, record: str, engine: Engine, requests: Sequence[Request], rows: Sequence[Sample]
    ) -> list[Completion]:
        """Return the completion of each request, in order.

        Args:
            record: where the completions are recorded: a path such as ``winrate/answers``.
            engine: the engine, which is closed at the end.
            requests: requests that do not depend on each other.
            rows: the rows that the requests are about.

        Raises:
            EngineError: the engine cannot continue.
        """


def _ask(
    record: str, engine: Engine, requests: Sequence[Request], rows: Sequence[Sample]
) -> list[Completion]:
    return answer_all(engine, requests)


@dataclass(frozen=True, slots=True)
class Subject:
    """The model to measure, and optionally a second model to compare it with.

    ``limit`` is the maximum number of rows per dataset, or of documents per lm-eval task. Suites
    send all requests to engines with ``ask``; the default records nothing.
    """

    model: str
    against: str | None
    prompt_format: PromptFormat
    limit: int | None = None
    seed: int = 0
    ask: Ask = _ask

    @property
    def models(self) -> tuple[str, ...]:
        """The measured model, then the model it is compared with, if any."""
        return (self.model,) if self.against is None else (self.model, self.against)


@dataclass(slots=True)
class Finding:
    """One measure of the evaluated model (``after``) and of the second model, if any (``before``).

    ``higher`` is true if a higher value is better. ``details`` are additional values that are
    written to evaluation.json.
    """

    after: MeasuredRows
    before: MeasuredRows | None = None
    higher: bool = True
    details: dict[str, JsonValue] = field(default_factory=dict)

    def measure(self, suite: str) -> Measure:
        """Return the measure in the form that is written to evaluation.json."""
        better = "higher" if self.higher else "lower"
        measure = compared(self.after, self.before)
        return replace(measure, better=better, suite=suite, details=self.details)


class Suite(BaseModel, ABC):
    """Base class for evaluation suites. Fields are set with ``--set=SUITE.FIELD=VALUE``.

    ``shape`` is the kind of rows that the suite evaluates on, instructions or preferences. It is
    None if the suite has its own data.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str]
    shape: ClassVar[Shape | None] = "instructions"

    @abstractmethod
    def findings(self, subject: Subject, rows: list[Sample]) -> list[Finding]:
        """Measure the model, and the second model if there is one, on the rows.

        Raises:
            ConfigError: an option or a model is invalid.
            EngineError: the engine cannot start.
        """


class AnsweringSuite(Suite):
    """Base class for evaluation suites in which the models write answers."""

    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="Library that runs the models to generate the answers."
    )
    max_new_tokens: int = Field(256, ge=1, description="Maximum number of tokens per answer.")

    def fitting_tasks(self, subject: Subject, tasks: list[Sample]) -> list[Sample]:
        """Return the tasks whose prompt leaves room for an answer, with every model's tokenizer."""
        room = self._room(subject)
        for name in subject.models:
            encoder = _encoder(name, subject.prompt_format)
            prompts = [encoder.prompt(t) for t in tasks]
            tasks = [
                t
                for t, prompt in zip(tasks, prompts, strict=True)
                if isinstance(prompt, str) and len(encoder.ids(prompt)) < room
            ]
        return tasks

    def _room(self, subject: Subject) -> int:
        """Return the maximum number of tokens of a prompt plus its answer."""
        return max(256, subject.prompt_format.max_length)

    def answers(
        self,
        subject: Subject,
        tasks: list[Sample],
        *,
        record: str = "answers",
        samples: int = 1,
        temperature: float = 0.0,
    ) -> dict[str, list[str]]:
        """Return each model's answers to tasks that `fitting_tasks` returned.

        Args:
            subject: the models.
            tasks: the tasks.
            record: name under which the answers are recorded.
            samples: the number of answers to each task, which follow each other in the list.
            temperature: the sampling temperature; 0 for greedy decoding.

        Raises:
            EngineError: a prompt was not answered.
        """
        from instructgen.evaluation.answers import requests_for
        from instructgen.plugins import find

        answers_by_model = {}
        for number, name in enumerate(dict.fromkeys(subject.models), start=1):
            encoder = _encoder(name, subject.prompt_format)
            prompts = [tuple(encoder.ids(str(encoder.prompt(task)))) for task in tasks]
            engine = find("engines", self.engine)(model=name, max_model_len=self._room(subject))
            requests = requests_for(
                prompts,
                samples=samples,
                temperature=temperature,
                max_tokens=self.max_new_tokens,
                seed=subject.seed,
            )
            place = f"{self.name}/{record}" + (f"-{number}" if number > 1 else "")
            answers = subject.ask(place, engine, requests, tasks)
            if failed := next((c for c in answers if c.finish_reason == "error"), None):
                raise EngineError(
                    f"The model {name} did not answer a prompt: {failed.error}",
                    "Reduce --max-length if it is more than the context length of the model, and "
                    "pass another --out.",
                )
            answers_by_model[name] = [c.text for c in answers]
        return answers_by_model


def named(path: str) -> str:
    """Return the name under which a model is shown: the last part of its path."""
    return Path(path).name or path


def _encoder(name: str, prompt_format: PromptFormat) -> Any:
    from instructgen.models.loading import load_tokenizer
    from instructgen.training.encode import Encoder

    return Encoder(load_tokenizer(name, prompt_format.pad_token), prompt_format, name)
