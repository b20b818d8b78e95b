"""Filters over a finished dataset: block by block, every row kept or rejected with its reason.

Filters that compare rows run after those that do not, so that what a row is
compared with stays in the dataset. A filter that selects sees all rows that are
left when its turn comes; those before and after it never hold more than a block.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from instructgen.filters import (
    ComparingFilter,
    Filter,
    ScoringFilter,
    SelectingFilter,
    Verdict,
    together,
)
from instructgen.schema.sample import Rejection, Sample, Score

_ROWS_PER_BLOCK = 1_024
_BORDERLINE = 5
_LOOKED_AT_AGAIN, _BELOW, _LEAST_THRESHOLD = 2_000, 0.1, 0.05


class Row(NamedTuple):
    """A row and its place among those that came in."""

    place: int
    sample: Sample


class Dropped(NamedTuple):
    """A row as it was when a filter rejected it."""

    place: int
    sample: Sample
    rejection: Rejection


class Block(NamedTuple):
    """What some rows came to, each in order."""

    kept: list[Row]
    dropped: list[Dropped]


@dataclass(frozen=True, slots=True, order=True)
class Example:
    """A row near a threshold: how near, its place, the number that decided, and what it says."""

    distance: float
    place: int
    value: float
    text: str = field(compare=False)


@dataclass(slots=True)
class Report:
    """What the filters did: rejections by filter, reason and source, and rows near thresholds.

    ``borderline`` holds the nearest on both sides, by filter: those kept and those
    rejected.
    """

    read: Counter[str] = field(default_factory=Counter)
    rejected: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    borderline: dict[str, tuple[list[Example], list[Example]]] = field(default_factory=dict)

    def near(self, f: Filter, place: int, verdict: Verdict) -> None:
        """Keep a row as an example if few are nearer to a threshold of the filter."""
        thresholds = f.thresholds()
        if verdict.value is None or not thresholds:
            return
        sides = self.borderline.setdefault(f.name, ([], []))
        side = sides[verdict.rejection is not None]
        distance = min(abs(verdict.value - t) for t in thresholds)
        if len(side) == _BORDERLINE and distance >= -side[0].distance:
            return
        sample = verdict.sample
        text = sample.output if f.scope == "row" and not sample.instruction else sample.question
        # The heap has its farthest on top: distances are kept negative.
        example = Example(-distance, -place, verdict.value, text)
        push = heapq.heappush if len(side) < _BORDERLINE else heapq.heappushpop
        push(side, example)

    def examples(self, name: str) -> tuple[list[Example], list[Example]]:
        """The rows kept and rejected that are nearest to a threshold, the nearest first."""
        kept, rejected = self.borderline.get(name, ([], []))
        return sorted(kept, reverse=True), sorted(rejected, reverse=True)


class Curation:
    """Rows through filters, once.

    Args:
        filters: in order.
        scores: of samples by id, made before: `ScoringFilter` takes them as they are.
    """

    def __init__(
        self, filters: Sequence[Filter], scores: Mapping[str, Sequence[Score]] | None = None
    ) -> None:
        self.filters, self.report = tuple(filters), Report()
        self._scores = scores or {}
        self._first: dict[int, list[Row]] = {}

    def blocks(self, samples: Iterable[Sample]) -> Iterator[Block]:
        """Every row, in blocks; the kept ones in the order in which they came."""
        blocks = self._counted(samples)
        part: list[Filter] = []
        for f in self.filters:
            if isinstance(f, SelectingFilter):
                blocks = self._selected(f, self._filtered(part, blocks))
                part = []
            else:
                part.append(f)
        return self._filtered(part, blocks)

    @property
    def order(self) -> list[Filter]:
        """The filters in the order in which they see a row."""
        order: list[Filter] = []
        part: list[Filter] = []
        for f in (*self.filters, None):
            if f is None or isinstance(f, SelectingFilter):
                order += sorted(part, key=lambda f: isinstance(f, ComparingFilter))
                order += [] if f is None else [f]
                part = []
            else:
                part.append(f)
        return order

    def look_below(self) -> None:
        """Find kept rows near the thresholds of filters that compare, for the report.

        While rows pass, such a filter looks for nothing below its threshold. Here the
        first rows kept are compared with each other at a lower one.
        """
        for f in self.filters:
            threshold = getattr(f, "threshold", None)
            if isinstance(f, ComparingFilter) and f.thresholds() and isinstance(threshold, float):
                lower = max(_LEAST_THRESHOLD, threshold - _BELOW)
                below = type(f).model_validate({**f.model_dump(), "threshold": lower})
                rows = self._first.get(id(f), [])
                samples = [row.sample for row in rows]
                for row, rejection in zip(rows, together([below], samples), strict=True):
                    if rejection is not None and rejection.score is not None:
                        self.report.near(f, row.place, Verdict(row.sample, None, rejection.score))

    def _counted(self, samples: Iterable[Sample]) -> Iterator[Block]:
        rows = (Row(place, sample) for place, sample in enumerate(samples))
        while block := list(islice(rows, _ROWS_PER_BLOCK)):
            self.report.read.update(row.sample.source for row in block)
            yield Block(block, [])

    def _filtered(self, filters: Sequence[Filter], blocks: Iterator[Block]) -> Iterator[Block]:
        alone = [f for f in filters if not isinstance(f, ComparingFilter)]
        comparing = [f for f in filters if isinstance(f, ComparingFilter)]
        for block in blocks:
            rows, dropped = block.kept, list[Dropped]()
            for f in alone:
                if isinstance(f, ScoringFilter) and self._scores:
                    rows = [self._scored(row) for row in rows]
                verdicts = f.judge([row.sample for row in rows])
                rows = self._divided(f, rows, verdicts, dropped)
            if comparing and rows:
                samples = [row.sample for row in rows]
                reasons = together(comparing, samples)
                by_name = {f.name: f for f in comparing}
                for row, rejection in zip(rows, reasons, strict=True):
                    if rejection is None:
                        for f in comparing:
                            f.remember(row.sample)
                    else:
                        self._drop(by_name[rejection.filter], row, rejection, dropped)
                rows = [r for r, rejection in zip(rows, reasons, strict=True) if rejection is None]
                for f in comparing:
                    first = self._first.setdefault(id(f), [])
                    first += rows[: _LOOKED_AT_AGAIN - len(first)]
            dropped.sort(key=lambda d: d.place)
            yield Block(rows, [*block.dropped, *dropped])

    def _selected(self, f: SelectingFilter, blocks: Iterator[Block]) -> Iterator[Block]:
        rows: list[Row] = []
        for block in blocks:
            rows += block.kept
            if block.dropped:
                yield Block([], block.dropped)
        reasons = f.select([row.sample for row in rows])
        for at in range(0, len(rows), _ROWS_PER_BLOCK):
            kept: list[Row] = []
            dropped: list[Dropped] = []
            part = slice(at, at + _ROWS_PER_BLOCK)
            for row, rejection in zip(rows[part], reasons[part], strict=True):
                if rejection is None:
                    kept.append(row)
                else:
                    self._drop(f, row, rejection, dropped)
            yield Block(kept, dropped)

    def _divided(
        self, f: Filter, rows: list[Row], verdicts: list[Verdict], dropped: list[Dropped]
    ) -> list[Row]:
        kept = []
        for row, verdict in zip(rows, verdicts, strict=True):
            if verdict.rejection is None:
                kept.append(Row(row.place, verdict.sample))
                self.report.near(f, row.place, verdict)
            else:
                self._drop(f, Row(row.place, verdict.sample), verdict.rejection, dropped)
        return kept

    def _drop(self, f: Filter, row: Row, rejection: Rejection, dropped: list[Dropped]) -> None:
        dropped.append(Dropped(*row, rejection))
        self.report.rejected[f.name, rejection.reason, row.sample.source] += 1
        self.report.near(f, row.place, Verdict(row.sample, rejection, rejection.score))

    def _scored(self, row: Row) -> Row:
        sample = row.sample
        for score in self._scores.get(sample.id, ()):
            if sample.score(score.name) is None:
                sample = sample.with_score(score)
        return Row(row.place, sample)
