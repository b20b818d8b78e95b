"""Filters: each says why a sample is rejected, or nothing.

One file per filter beside this one; its class's fields are its recipe keys.
*How* strict is written in the recipes of the top folder filters/. A filter that
compares with earlier samples is a `ComparingFilter`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, PrivateAttr

from instructgen.sample import Rejection, Sample
from instructgen.similarity import Match, Pairs

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


class Index(Protocol):
    """What `instructgen.similarity` offers to look texts up in."""

    def add(self, texts: Sequence[str], /) -> None:
        """Append texts; each becomes the next row."""

    def nearest(self, texts: Sequence[str], /) -> list[Match | None]:
        """For each text its best match above the threshold, or None."""

    def pairs(self, texts: Sequence[str], /) -> Pairs:
        """Every row that a text matches, with its score."""


class ComparingFilter(Filter):
    """A filter that looks a sample's text up among those of the samples kept before."""

    _index: Index = PrivateAttr()
    # The samples seen, by their row in the index. The last of them are added
    # together when a text is looked up next: a pool of seeds in one call.
    _seen: list[Sample] = PrivateAttr(default_factory=list)
    _added: int = PrivateAttr(default=0)

    @abstractmethod
    def index(self) -> Index:
        """An empty index, made once."""

    def text(self, sample: Sample) -> str:
        """What of a sample is compared: its instruction, unless a filter says more."""
        return sample.instruction

    def model_post_init(self, context: object) -> None:
        """Begin with an empty index."""
        object.__setattr__(self, "_index", self.index())

    def nearest(self, sample: Sample) -> tuple[float, Sample] | None:
        """The nearest sample above the threshold, and its score."""
        (match,) = self._filled().nearest([self.text(sample)])
        return None if match is None else (match.score, self._seen[match.row])

    def matches(self, sample: Sample) -> list[tuple[float, Sample]]:
        """Every sample above the threshold with its score, in the order seen."""
        _, rows, scores = self._filled().pairs([self.text(sample)])
        return [
            (score, self._seen[row])
            for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
        ]

    def remember(self, sample: Sample) -> None:
        """Later samples are compared with this one."""
        self._seen.append(sample)

    def _filled(self) -> Index:
        if self._added < len(self._seen):
            self._index.add([self.text(sample) for sample in self._seen[self._added :]])
            self._added = len(self._seen)
        return self._index


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
