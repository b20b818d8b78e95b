"""Applies the filters of a generation run, in order, to one sample at a time."""

from __future__ import annotations

from collections.abc import Sequence

from instructgen.filters import Filter, Stage, Verdict
from instructgen.schema.sample import Sample


class Chain:
    """A sequence of filters; each sample is evaluated up to the first filter that rejects it."""

    def __init__(self, filters: Sequence[Filter]) -> None:
        self.filters = tuple(filters)

    def at(self, stage: Stage) -> list[Filter]:
        """Return the filters for a stage (``instruction`` or ``row``), in order."""
        return [f for f in self.filters if f.scope in (stage, "both")]

    def evaluate(self, sample: Sample, stage: Stage) -> Verdict:
        """Evaluate a sample with the filters of this stage, in order, up to the first rejection."""
        for f in self.at(stage):
            (verdict,) = f.evaluate([sample])
            if verdict.rejection is not None:
                return verdict
            sample = verdict.sample
        return Verdict(sample)

    def remember(self, sample: Sample, stage: Stage) -> None:
        """Pass a kept sample to the method `remember` of every filter of this stage."""
        for f in self.at(stage):
            f.remember(sample)
