"""Applies the filters of a generation run, in order, to the samples of one completion."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import NamedTuple

from instructgen.filters import (
    BlockMatches,
    ComparingFilter,
    Filter,
    ScoringFilter,
    Stage,
    Verdict,
)
from instructgen.schema.sample import Sample


class Unscored(NamedTuple):
    """A sample whose evaluation stopped at a filter that needs a score that it does not have."""

    sample: Sample
    filter: ScoringFilter


class Chain:
    """A sequence of filters; each sample is evaluated up to the first filter that rejects it."""

    def __init__(self, filters: Sequence[Filter]) -> None:
        self.filters = tuple(filters)
        self._at: dict[Stage, list[Filter]] = {
            stage: [f for f in self.filters if f.scope in (stage, "both")]
            for stage in ("instruction", "row")
        }

    def prepare(self) -> None:
        """Load what the first comparison needs, such as compiled code, before requests wait."""
        for f in self.filters:
            if isinstance(f, ComparingFilter):
                index = f.index()
                index.add(["a"])
                index.pairs(["a"])

    def at(self, stage: Stage) -> list[Filter]:
        """Return the filters for a stage (``instruction`` or ``row``), in order."""
        return self._at[stage]

    def evaluate(
        self,
        samples: Sequence[Sample],
        stages: Sequence[Stage],
        scored_by: ScoringFilter | None = None,
        exempt: Set[str] = frozenset(),
    ) -> list[Verdict | Unscored]:
        """Evaluate samples one after the other, and remember those that all filters keep.

        The verdicts are those of evaluating each sample separately. But each index of earlier
        samples is searched only once for all samples, which is faster.

        Args:
            samples: new samples, such as those of one completion.
            stages: the stages whose filters evaluate each sample, in order.
            scored_by: the filter at which an earlier evaluation of the samples stopped, if their
                scores were computed since. The filters before it that compare samples
                are applied again, because other samples may have been kept in the meantime.
            exempt: the ids of samples that the new ones are made from. They are not compared.
        """
        filters = [f for stage in stages for f in self.at(stage)]
        if scored_by is not None:
            place = filters.index(scored_by)
            again = [f for f in filters[:place] if isinstance(f, ComparingFilter)]
            filters = [*again, *filters[place:]]
        # Filters before the first one that compares do not depend on the samples before.
        first = next(
            (i for i, f in enumerate(filters) if isinstance(f, ComparingFilter)), len(filters)
        )
        # Copying a row is slow, so the values of all filters are added to it at once.
        values: list[dict[str, float]] = [{} for _ in samples]
        results = [
            _run(filters[:first], sample, found)
            for sample, found in zip(samples, values, strict=True)
        ]
        waiting = [
            (i, r) for i, r in enumerate(results) if isinstance(r, Verdict) and r.rejection is None
        ]
        texts = [verdict.sample for _, verdict in waiting]
        blocks: dict[int, BlockMatches] = {}
        for place, (i, verdict) in enumerate(waiting):
            result: Verdict | Unscored = verdict
            for number, f in enumerate(filters[first:], first):
                if isinstance(f, ComparingFilter):
                    if number not in blocks:
                        blocks[number] = BlockMatches(f, texts, exempt)
                    result = Verdict(result.sample, blocks[number].reason(place, result.sample))
                else:
                    result = _run([f], result.sample, values[i])
                if isinstance(result, Unscored) or result.rejection is not None:
                    break
            else:
                for stage in stages:
                    self.remember(result.sample, stage)
                for block in blocks.values():
                    block.keep(place, result.sample)
            results[i] = result
        return [
            result._replace(sample=result.sample.with_filter_values(found)) if found else result
            for result, found in zip(results, values, strict=True)
        ]

    def remember(self, sample: Sample, stage: Stage) -> None:
        """Pass a kept sample to the method `remember` of every filter of this stage."""
        for f in self.at(stage):
            f.remember(sample)


def _run(filters: Sequence[Filter], sample: Sample, values: dict[str, float]) -> Verdict | Unscored:
    """Apply filters until one rejects the sample; add their values to ``values``."""
    verdict = Verdict(sample)
    for f in filters:
        if isinstance(f, ScoringFilter) and verdict.sample.score(f.score_name) is None:
            return Unscored(verdict.sample, f)
        (verdict,) = f.evaluate([verdict.sample])
        values |= f.values(verdict)
        if verdict.rejection is not None:
            break
    return verdict
