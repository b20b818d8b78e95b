"""Programs that say how right an answer is: rewards that no model can talk its way around.

One file per verifier beside this one; an installed package adds more through the
entry-point group ``instructgen.verifiers``.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from instructgen.schema.sample import Sample


class Verifier(BaseModel, ABC):
    """Judges answers to tasks that carry what is needed to judge them."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str]

    @abstractmethod
    def task(self, sample: Sample, rng: random.Random) -> Sample | None:
        """The row as a task that can be judged, or None where it holds nothing to judge by."""

    @abstractmethod
    def judge(self, task: Sample, answer: str) -> float:
        """How right an answer is, from 0 to 1; graded where that means something."""


def label(sample: Sample, name: str) -> str | None:
    """What a row says under this label."""
    return next((v.value for v in sample.labels if v.name == name), None)
