"""The filters of a run in order, as the loop asks them."""

from __future__ import annotations

from collections.abc import Sequence

from instructgen.filters import Filter, Stage, Verdict
from instructgen.schema.sample import Sample


class Chain:
    """Filters in order: the first that objects decides."""

    def __init__(self, filters: Sequence[Filter]) -> None:
        self.filters = tuple(filters)

    def at(self, stage: Stage) -> list[Filter]:
        """The filters that judge at a stage, in order."""
        return [f for f in self.filters if f.scope in (stage, "both")]

    def judge(self, sample: Sample, stage: Stage) -> Verdict:
        """The sample as the filters of this stage leave it, and their first objection."""
        for f in self.at(stage):
            (verdict,) = f.judge([sample])
            if verdict.rejection is not None:
                return verdict
            sample = verdict.sample
        return Verdict(sample)

    def remember(self, sample: Sample, stage: Stage) -> None:
        """Tell the filters of this stage that the sample was kept."""
        for f in self.at(stage):
            f.remember(sample)
