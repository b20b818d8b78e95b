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
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from instructgen.engines import Completion, Request, Role, Sampling
from instructgen.generation.prompts import Style
from instructgen.generation.seed_pool import Pool
from instructgen.schema.sample import Rejection, Sample


class PromptSetup(NamedTuple):
    """The prompt style and whether the engine enforces JSON schemas; constant during a run."""

    style: Style
    structured: bool


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
    the number of the draft's instruction among the accepted ones, if it is one of them.
    """

    number: int
    stage: str
    sample: Sample
    parents: tuple[int, ...] = ()
    task: int | None = None


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
    """A complete row; the filters decide whether it is kept."""

    sample: Sample


@dataclass(frozen=True, slots=True)
class Reject:
    """A row, instruction or unparsed completion that the method rejects, with the reason."""

    sample: Sample
    rejection: Rejection


Outcome = Propose | Continue | Accept | Reject


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
    """An algorithm that generates rows from a pool of seed tasks and accepted instructions.

    ``stages`` lists the steps in which a row is generated, in order. A method with
    ``finite = True`` makes one draft from each seed, in order. The other methods draw seeds at
    random, without an end.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str]
    stages: ClassVar[tuple[Stage, ...]] = (Stage("rows"),)
    finite: ClassVar[bool] = False

    style: Literal["auto", "completion", "chat"] = Field(
        "auto",
        description="Prompt style: completion (few-shot text, as in the Self-Instruct paper), "
        "chat (the model's chat template), or auto (chat if the model has a chat template and is "
        "not smollm2, otherwise completion).",
    )

    def path(self, form: PromptSetup) -> tuple[Stage, ...]:
        """Return the stages that drafts pass through with these settings, in order."""
        return self.stages

    @abstractmethod
    def start(self, pool: Pool, rng: random.Random, number: int, form: PromptSetup) -> Draft:
        """Return draft ``number`` at the first stage. The pool must not be changed.

        A method with ``finite = True`` uses seed ``number`` modulo the number of seeds.
        """

    @abstractmethod
    def request(self, pool: Pool, draft: Draft, form: PromptSetup) -> Request:
        """Return the request of the draft's stage. The pool must not be changed."""

    @abstractmethod
    def read(self, draft: Draft, completion: Completion, form: PromptSetup) -> list[Outcome]:
        """Parse the completion of the draft's request; return the outcomes in text order.

        A list that is empty, or has a `Continue`, is allowed only if the draft is not lost: each
        completion must lead to a row, an instruction, a rejection or a further stage.
        """


def child_sample(pool: Pool, positions: tuple[int, ...], language: str) -> Sample:
    """Return a sample with empty texts, and with the combined license terms of these tasks."""
    from instructgen.licensing.licenses import combine

    parents = [pool.at(p) for p in positions]
    return Sample(
        instruction="",
        language=language,
        license=combine(p.license for p in parents),
        attribution=tuple(sorted({credit for p in parents for credit in p.attribution})),
        generators=tuple(sorted({model for p in parents for model in p.generators})),
    )
