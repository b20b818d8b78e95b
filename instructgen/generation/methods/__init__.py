"""Methods: which requests to make from the pool, and what their completions hold.

One file per method beside this one; its class's fields are its recipe keys. A
method is pure: no clock, disk or network, and randomness only from the
generator it is given. Filtering and the pool's growth are the loop's.
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


class Form(NamedTuple):
    """How a run's prompts are made: fixed when the run begins."""

    style: Style
    structured: bool


@dataclass(frozen=True, slots=True)
class Found:
    """A candidate. Without an output it is an instruction on its way to the pool."""

    sample: Sample

    @property
    def is_row(self) -> bool:
        """Whether it has come to its last stage."""
        return bool(self.sample.output)


@dataclass(frozen=True, slots=True)
class Lost:
    """A candidate, or a whole completion, that the method itself gives up."""

    sample: Sample
    rejection: Rejection


@dataclass(frozen=True, slots=True)
class Classified:
    """The kind of a task."""

    task: int
    kind: Kind


Outcome = Found | Lost | Classified


class SamplingOptions(BaseModel):
    """Sampling of one stage, in vLLM's names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    max_tokens: int = Field(ge=1)

    def sampling(self, stop: tuple[str, ...] = ()) -> Sampling:
        """For a request; the loop adds the seed."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            stop=stop,
        )


class Method(BaseModel, ABC):
    """A way to make samples from a pool."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str]

    style: Literal["auto", "completion", "chat"] = Field(
        "auto",
        description="completion: few-shot text, the paper's; chat: through the chat template; "
        "auto: chat where the model has a template, except for the embedded model",
    )

    @abstractmethod
    def requests(self, pool: Pool, rng: random.Random, count: int, form: Form) -> list[Request]:
        """Requests from the pool's present state, up to ``count`` of them long ones.

        May take tasks from the pool's queues; must not change it otherwise.
        """

    @abstractmethod
    def outcomes(self, pool: Pool, request: Request, completion: Completion) -> list[Outcome]:
        """What a completion holds: each candidate once, in the completion's order."""


def heir(pool: Pool, positions: tuple[int, ...], language: str) -> Sample:
    """An empty sample under the terms of the demonstrations that it is written from."""
    from instructgen.licensing.licenses import combine

    parents = [pool.at(p) for p in positions]
    return Sample(
        instruction="",
        language=language,
        license=combine(p.license for p in parents),
        attribution=tuple(sorted({credit for p in parents for credit in p.attribution})),
        generators=tuple(sorted({model for p in parents for model in p.generators})),
    )
