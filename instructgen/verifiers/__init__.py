"""Base class for verifiers, which check an answer with a program and return a reward (0 to 1).

Each verifier has its own file in this package. An installed package can add more through the
entry-point group ``instructgen.verifiers``. Verifiers do not use a language model, which a
persuasive but wrong answer could mislead.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from instructgen.schema.sample import Sample


class Verifier(BaseModel, ABC):
    """Base class for verifiers, which check an answer against data in a row, such as unit tests."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Raise TypeError if a subclass overrides `check` under its old name, ``judge``."""
        if "judge" in vars(cls):
            raise TypeError(f"{cls.__name__}.judge: Verifier.judge was renamed to check")
        super().__init_subclass__(**kwargs)

    def require(self) -> None:
        """Raise ConfigError if the verifier cannot work on this machine."""

    @abstractmethod
    def task(self, sample: Sample, rng: random.Random) -> Sample | None:
        """Return the row as a task, or None if the verifier cannot check answers to the row.

        A verifier may change the row, for example to add a constraint chosen with ``rng``.
        """

    @abstractmethod
    def check(self, task: Sample, answer: str) -> float:
        """Return how correct an answer is, from 0 to 1, with partial credit where possible."""


def label(sample: Sample, name: str) -> str | None:
    """Return the value of the row's label ``name``, such as ``test``, or None if it is missing."""
    return next((v.value for v in sample.labels if v.name == name), None)
