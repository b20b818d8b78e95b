"""Filters: each says why a sample is rejected, or nothing.

One file per filter beside this one; its class's fields are its recipe keys.
*How* strict is written in the recipes of the top folder filters/. A filter that
compares with earlier samples learns them through ``remember``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from instructgen.sample import Rejection, Sample

Stage = Literal["instruction", "row"]
Scope = Literal["instruction", "row", "both"]


class Filter(BaseModel, ABC):
    """One reason to reject a sample.

    ``scope`` is what it judges: an instruction before it has an answer, the
    finished row, or both.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str]
    scope: ClassVar[Scope] = "instruction"

    @abstractmethod
    def reason(self, sample: Sample) -> Rejection | None:
        """Why the sample is rejected, or None to let it pass."""

    def remember(self, sample: Sample) -> None:
        """Take note of a sample that every filter kept, or of a seed."""

    def reject(
        self, reason: str, detail: str = "", score: float | None = None, nearest: str | None = None
    ) -> Rejection:
        """A rejection in this filter's name."""
        return Rejection(self.name, reason, detail, score, nearest)


class Chain:
    """Filters in order: the first that objects decides."""

    def __init__(self, filters: Sequence[Filter]) -> None:
        self.filters = tuple(filters)

    def at(self, stage: Stage) -> list[Filter]:
        """The filters that judge at a stage, in order."""
        return [f for f in self.filters if f.scope in (stage, "both")]

    def reason(self, sample: Sample, stage: Stage) -> Rejection | None:
        """The first objection at this stage."""
        for f in self.at(stage):
            rejection = f.reason(sample)
            if rejection is not None:
                return rejection
        return None

    def remember(self, sample: Sample, stage: Stage) -> None:
        """Tell the filters of this stage that the sample was kept."""
        for f in self.at(stage):
            f.remember(sample)
