"""The interface of generation methods, which build requests and parse completions.

Each method has its own file in this folder; the fields of its class are its recipe keys. A
method is pure: it uses no clock, disk or network, and draws random numbers only from the random
number generator that is passed to it. The generation loop, not the method, filters the rows and
instructions from a completion, and adds accepted instructions to the task pool.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from instructgen.engines import Completion, Request, Sampling
from instructgen.generation.prompts import Style
from instructgen.generation.seed_pool import Pool
from instructgen.schema.sample import Kind, Rejection, Sample


class PromptSetup(NamedTuple):
    """The prompt style and whether the engine enforces JSON schemas; constant during a run."""

    style: Style
    structured: bool


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row from a completion or, if it has no output, an instruction for the task pool.

    The filters decide later whether to accept it.
    """

    sample: Sample

    @property
    def is_row(self) -> bool:
        """Whether the candidate is a complete row, not only an instruction for the task pool."""
        return bool(self.sample.output)


@dataclass(frozen=True, slots=True)
class RejectedCandidate:
    """A row, instruction or unparsed completion that the method rejects, with the reason."""

    sample: Sample
    rejection: Rejection


@dataclass(frozen=True, slots=True)
class Classified:
    """The kind, generation or classification, that the model assigned to task number ``task``."""

    task: int
    kind: Kind


Outcome = Candidate | RejectedCandidate | Classified


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

    ``stages`` lists the names of the steps in which a row is generated, in order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str]
    stages: ClassVar[tuple[str, ...]] = ("rows",)

    style: Literal["auto", "completion", "chat"] = Field(
        "auto",
        description="Prompt style: completion (few-shot text, as in the Self-Instruct paper), "
        "chat (the model's chat template), or auto (chat if the model has a chat template and is "
        "not smollm2, otherwise completion).",
    )

    @abstractmethod
    def requests(
        self, pool: Pool, rng: random.Random, count: int, form: PromptSetup
    ) -> list[Request]:
        """Return at most ``count`` requests, plus any number of requests with short completions.

        A method may remove tasks from the queues of the pool, such as ``pool.unclassified``, but
        must not change anything else in the pool.
        """

    @abstractmethod
    def outcomes(self, pool: Pool, request: Request, completion: Completion) -> list[Outcome]:
        """Parse a completion, and return what it contains in the order of its text."""


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
