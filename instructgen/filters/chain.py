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
        self._remembering = {
            stage: [f for f in at if type(f).remember is not Filter.remember]
            for stage, at in self._at.items()
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
        # Copying a row is slow, so the values of all filters are added to it at once.
        block = _Block(samples)
        waiting = [*range(len(samples))]
        for at, f in enumerate(filters):
            # Filters before the first one that compares do not depend on the samples before.
            if isinstance(f, ComparingFilter):
                self._compare(block, waiting, filters[at:], stages, exempt)
                break
            waiting = block.apply(f, waiting)
        else:
            for i in waiting:
                self.remember(block.results[i].sample, *stages)
        return block.finished()

    def _compare(
        self,
        block: _Block,
        waiting: Sequence[int],
        filters: Sequence[Filter],
        stages: Sequence[Stage],
        exempt: Set[str],
    ) -> None:
        """Apply filters, of which the first compares, to one sample of a block after the other."""
        texts = [block.results[i].sample for i in waiting]
        found: dict[int, BlockMatches] = {}
        for place, i in enumerate(waiting):
            for number, f in enumerate(filters):
                if isinstance(f, ComparingFilter):
                    if number not in found:
                        found[number] = BlockMatches(f, texts, exempt)
                    sample = block.results[i].sample
                    rejection = found[number].reason(place, sample)
                    block.results[i] = Verdict(sample, rejection)
                    if rejection is not None:
                        break
                elif not block.apply(f, [i]):
                    break
            else:
                sample = block.results[i].sample
                self.remember(sample, *stages)
                for matches in found.values():
                    matches.keep(place, sample)

    def remember(self, sample: Sample, *stages: Stage) -> None:
        """Pass a kept sample to the method `remember` of every filter of these stages."""
        for stage in stages:
            for f in self._remembering[stage]:
                f.remember(sample)


class _Block:
    """The samples of one completion, the last verdict on each, and the values of the filters."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.results: list[Verdict | Unscored] = [Verdict(sample) for sample in samples]
        self._values: list[dict[str, float]] = [{} for _ in samples]

    def apply(self, f: Filter, places: list[int]) -> list[int]:
        """Let a filter evaluate the samples at these places; return those that it does not stop."""
        results = self.results
        if isinstance(f, ScoringFilter):
            scored = [i for i in places if results[i].sample.score(f.score_name) is not None]
            for i in set(places).difference(scored):
                results[i] = Unscored(results[i].sample, f)
            places = scored
        if not places:
            return []
        kept = []
        verdicts = f.evaluate([results[i].sample for i in places])
        for i, verdict in zip(places, verdicts, strict=True):
            results[i] = verdict
            self._values[i] |= f.values(verdict)
            if verdict.rejection is None:
                kept.append(i)
        return kept

    def finished(self) -> list[Verdict | Unscored]:
        """Return the results, with the values of the filters in their samples."""
        return [
            result._replace(sample=result.sample.with_filter_values(found)) if found else result
            for result, found in zip(self.results, self._values, strict=True)
        ]
