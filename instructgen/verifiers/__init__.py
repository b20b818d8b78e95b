"""Base class of the verifiers: programs that check an answer and return a reward from 0 to 1.

Each verifier is one file of this package. An installed package can add more through the
entry-point group ``instructgen.verifiers``. No verifier uses a model, so an answer cannot
persuade it.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from instructgen.schema.sample import Sample


class Verifier(BaseModel, ABC):
    """Base class of verifiers, which check an answer by data that its task contains."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Reject a class that overrides a method by its old name."""
        if "judge" in vars(cls):
            raise TypeError(f"{cls.__name__}.judge: Verifier.judge was renamed to check")
        super().__init_subclass__(**kwargs)

    @abstractmethod
    def task(self, sample: Sample, rng: random.Random) -> Sample | None:
        """Return the row as a task whose answers can be checked, or None if it has no such data.

        A verifier may change the row, for example add a constraint chosen with ``rng``.
        """

    @abstractmethod
    def check(self, task: Sample, answer: str) -> float:
        """Return how correct an answer is, from 0 to 1, with partial credit where possible."""


def label(sample: Sample, name: str) -> str | None:
    """Return the value of the row's label of this name, or None."""
    return next((v.value for v in sample.labels if v.name == name), None)
