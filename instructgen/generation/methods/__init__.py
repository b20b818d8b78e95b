"""The interface of generation methods, which take drafts from a prompt to finished rows.

Each method has its own file in this folder; the fields of its class are its recipe keys. A draft
passes through the stages of the method. At each stage, the method makes one request and reads
its completion. A method is pure: it uses no clock, disk or network, and draws random numbers only
from the random number generator that is passed to it. The generation loop, not the method,
filters the rows and instructions from a completion, and adds accepted instructions to the pool.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator

from instructgen.engines import Completion, Engine, Request, Role, Sampling
from instructgen.generation.prompts import Style, Template, placeholders, prompt_texts, template_for
from instructgen.generation.seed_pool import Pool, value_of
from instructgen.licensing.licenses import combine
from instructgen.schema.sample import Label, Origin, Rejection, Sample


@dataclass(frozen=True, slots=True)
class PromptSetup:
    """How prompts are made; constant during a run.

    ``style`` is the prompt style. ``structured`` states whether the engine enforces JSON schemas,
    and ``judge_structured`` whether that of the judge does. ``user_turn`` are the tokens of the
    chat template before the text of the user, and ``turn_end`` is what follows this text, for
    methods in which the model writes it.
    """

    style: Style
    structured: bool
    user_turn: tuple[int, ...] = ()
    turn_end: str = ""
    judge_structured: bool = False


class Stage(NamedTuple):
    """A stage of a method: its name, and who answers its requests.

    ``results`` is the number of rows, or of drafts that continue, that one completion of the stage
    is expected to give. The loop replaces it by the number that it observes.
    """

    name: str
    results: float = 1.0
    role: Role = "writer"


@dataclass(frozen=True, slots=True)
class Draft:
    """A row, or several rows from the same request, on the way from a first prompt to the end.

    ``number`` counts the drafts of a run; drafts that come from one draft have its number.
    ``stage`` is the next stage, and ``sample`` contains what exists so far, with its language and
    license. ``parents`` are the positions of the demonstrations in the task pool, and ``task`` is
    the number of the draft's instruction among the accepted ones, if it is one of them. ``state``
    is what the method remembers from stage to stage, such as a round. ``ancestors`` are the ids of
    the generated rows that the sample was made from, its parent first. ``origins`` are those of the
    last completions of the writer, which the loop sets.
    """

    number: int
    stage: str
    sample: Sample
    parents: tuple[int, ...] = ()
    task: int | None = None
    state: Mapping[str, Any] = field(default_factory=dict)
    ancestors: tuple[str, ...] = ()
    origins: tuple[Origin, ...] = ()


@dataclass(frozen=True, slots=True)
class Propose:
    """A draft with a new instruction. If the filters accept it, it joins the pool."""

    draft: Draft


@dataclass(frozen=True, slots=True)
class Continue:
    """A draft that enters the stage that it names."""

    draft: Draft


@dataclass(frozen=True, slots=True)
class Accept:
    """A complete row; the filters decide whether it is kept.

    ``of`` is the number of the writer's completion that it is from, if a request was made several
    times.
    """

    sample: Sample
    of: int = 0


@dataclass(frozen=True, slots=True)
class Reject:
    """A row, instruction or unparsed completion that the method rejects, with the reason.

    ``of`` is the number of the completion, if a request was made several times.
    """

    sample: Sample
    rejection: Rejection
    of: int = 0


Outcome = Propose | Continue | Accept | Reject


# What the seeds of a method are.
Start = Literal[
    "tasks", "rows", "documents", "segments", "personas", "tool_tasks", "snippets", "nothing"
]


class SamplingOptions(BaseModel):
    """Sampling parameters for one stage, with the same names as in vLLM."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    max_tokens: int = Field(ge=1)

    def sampling(self, stop: tuple[str, ...] = ()) -> Sampling:
        """Return the parameters of a request with these ``stop`` strings, without a random seed."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            stop=stop,
        )


class Method(BaseModel, ABC):
    """An algorithm that generates rows, from seeds or from nothing.

    ``stages`` lists the steps in which a row is generated, in order. ``starts_from`` states what
    the seeds are: tasks (instructions), rows (instructions with answers), documents (texts),
    segments (of imported documents, with tasks as examples of style), personas, tool_tasks
    (instructions with the calls of tools that they need), snippets (of code), or nothing if the
    method needs no seeds. A method with ``finite = True`` makes one draft from each seed, in order.
    The other methods draw seeds at random, without an end. The rows of a method with
    ``keeps_instructions = True`` keep the instructions of the seeds, so they are not compared with
    these. A method with ``uses_others = True`` also uses seeds that do not fit, such as examples of
    style. ``recipe`` is the included recipe whose filters are used if the user names none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str]
    stages: ClassVar[tuple[Stage, ...]] = (Stage("rows"),)
    starts_from: ClassVar[Start] = "tasks"
    finite: ClassVar[bool] = False
    keeps_instructions: ClassVar[bool] = False
    uses_others: ClassVar[bool] = False
    recipe: ClassVar[str] = "default"

    style: Literal["auto", "completion", "chat"] = Field(
        "auto",
        description="Prompt style: completion (few-shot text, as in the Self-Instruct paper), "
        "chat (the model's chat template), or auto (chat if the model has a chat template and is "
        "not smollm2, otherwise completion).",
    )

    brief: str = Field(
        "",
        description="Description that every prompt begins with: the domain, the audience, the tone "
        "and the rules.",
    )
    prompts: dict[str, dict[str, str]] = Field(
        {},
        description="Texts that replace those of the template of a language, by table and key; see "
        "the files in instructgen/generation/templates.",
    )

    @field_validator("prompts")
    @classmethod
    def _check_prompts(cls, prompts: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        known = prompt_texts()
        for table, texts in prompts.items():
            for key, text in texts.items():
                if table not in known or key not in known[table]:
                    raise ValueError(
                        f"a template has no text {table}.{key}; see "
                        "instructgen/generation/templates/en.toml"
                    )
                if placeholders(text) != (needed := placeholders(known[table][key])):
                    names = " ".join(f"{{{name}}}" for name in sorted(needed)) or "none"
                    raise ValueError(f"the text {table}.{key} must have the placeholders: {names}")
        return prompts

    def template(self, language: str) -> Template:
        """Return the prompt texts for a language, with the brief and the user's own texts."""
        return template_for(language, self.brief, self._own_prompts)

    @cached_property
    def _own_prompts(self) -> str:
        return orjson.dumps(self.prompts, option=orjson.OPT_SORT_KEYS).decode()

    def reject(
        self, sample: Sample, reason: str, detail: str = "", score: float | None = None
    ) -> Reject:
        """Return a rejection by this method."""
        return Reject(sample, Rejection(self.name, reason, detail, score))

    def check(self, style: str) -> None:
        """Raise ConfigError if the settings do not fit the prompt style of a new run."""

    def path(self, form: PromptSetup) -> tuple[Stage, ...]:
        """Return the stages that drafts pass through with these settings, in order."""
        return self.stages

    def first_stage(self, pool: Pool, number: int, form: PromptSetup) -> Stage:
        """Return the stage at which draft ``number`` begins."""
        return self.path(form)[0]

    def fits(self, seed: Sample) -> bool:
        """Return whether the method can use a seed."""
        return True

    def order(self, seeds: Sequence[Sample], usable: list[int]) -> list[int]:
        """Return the positions of the usable seeds in the order in which they have their turn."""
        return usable

    def verifiers(self) -> tuple[str, ...]:
        """Return the names of the verifiers that the method uses."""
        return ()

    def executor(self) -> Engine | None:
        """Return the engine that answers requests of the role ``executor``, or None."""
        return None

    @abstractmethod
    def start(self, pool: Pool, rng: random.Random, number: int, form: PromptSetup) -> Draft:
        """Return draft ``number`` at its first stage. The pool must not be changed.

        A method with ``finite = True`` uses the seeds in turn; see `draft_of_seed`.
        """

    @abstractmethod
    def request(self, pool: Pool, draft: Draft, form: PromptSetup) -> Request:
        """Return the request of the draft's stage. The pool must not be changed."""

    def samples(self, draft: Draft, form: PromptSetup) -> int:
        """Return how often the request of the draft's stage is made, with different seeds."""
        return 1

    @abstractmethod
    def read(self, draft: Draft, completion: Completion, form: PromptSetup) -> list[Outcome]:
        """Parse the completion of the draft's request; return the outcomes in text order.

        A list that is empty, or has a `Continue`, is allowed only if the draft is not lost: each
        completion must lead to a row, an instruction, a rejection or a further stage.
        """

    def read_all(
        self, draft: Draft, completions: Sequence[Completion], form: PromptSetup
    ) -> list[Outcome]:
        """Parse all completions of the draft's request, of which there are `samples`."""
        return self.read(draft, completions[0], form)


class ChatMethod(Method):
    """A method whose requests are always messages, for models with a chat template."""

    style: Literal["chat"] = Field("chat", description="Prompt style: always chat.")


def completion_fault(completion: Completion) -> tuple[str, str] | None:
    """Return the reason and a sentence if a completion failed or was cut off, or None."""
    if completion.finish_reason == "error":
        return "engine_error", completion.error or "the engine gave no reason"
    if completion.finish_reason == "length":
        return "cut_by_length", "the completion was cut off"
    return None


def draft_of_seed(pool: Pool, number: int, stage: str, *fields: str) -> Draft:
    """Return a draft that is made from one seed: number ``number`` of those that fit, in turn.

    Its sample inherits from the seed what `child_sample` states, and gets these fields of it.
    """
    position = pool.usable[number % len(pool.usable)]
    seed = pool.at(position)
    sample = child_sample(pool, (position,), seed.language)
    sample = replace(sample, **{name: getattr(seed, name) for name in fields})
    return Draft(number, stage, sample, (position,))


def child_sample(pool: Pool, positions: tuple[int, ...], language: str) -> Sample:
    """Return a sample with empty texts, and with what it inherits from these tasks.

    It gets their combined license terms, their most frequent category, and their most frequent
    values of the labels in ``pool.balance``.
    """
    parents = [pool.at(p) for p in positions]
    labels = [Label(c, _most_frequent(parents, c)) for c in pool.balance if c != "category"]
    return Sample(
        instruction="",
        language=language,
        category=_most_frequent(parents, "category") or None,
        labels=tuple(label for label in labels if label.value),
        license=combine(p.license for p in parents),
        attribution=tuple(sorted({credit for p in parents for credit in p.attribution})),
        generators=tuple(sorted({model for p in parents for model in p.generators})),
    )


def _most_frequent(samples: Sequence[Sample], column: str) -> str:
    values = Counter(value_of(sample, column) for sample in samples)
    values.pop("", None)
    return values.most_common(1)[0][0] if values else ""
