"""Applies filters to the rows of a dataset in blocks of 1,024, and keeps or rejects each row.

In each block, filters that compare rows run after the other filters, so that a row is compared
only with rows that these filters kept. One block is in memory at a time. A `SelectingFilter` needs
all rows that the filters before it kept; they are in a temporary file until it has decided.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np

from instructgen.filters import (
    AskingFilter,
    ComparingFilter,
    Filter,
    ScoringFilter,
    SelectingFilter,
    Verdict,
    evaluate_block,
)
from instructgen.schema.arrow import samples_in, table_of
from instructgen.schema.sample import CHARACTERS_AT_ONCE, Label, Rejection, Sample, Score
from instructgen.similarity.temporary import RowFile

_ROWS_PER_BLOCK = 1_024
_EXAMPLES_PER_SIDE = 5
_ROWS_COMPARED_AGAIN, _THRESHOLD_STEP, _MIN_THRESHOLD = 2_000, 0.1, 0.05


class Row(NamedTuple):
    """A row and its position in the input."""

    place: int
    sample: Sample


class RejectedRow(NamedTuple):
    """A rejected row: its position in the input, its sample at that time, and the rejection."""

    place: int
    sample: Sample
    rejection: Rejection


class Known(NamedTuple):
    """What is known of a row from an earlier computation: its scores and labels."""

    scores: tuple[Score, ...]
    labels: tuple[Label, ...] = ()


class Block(NamedTuple):
    """One block of rows: the kept rows and the rejected rows, each list in input order."""

    kept: list[Row]
    rejected: list[RejectedRow]


@dataclass(frozen=True, slots=True, order=True)
class Example:
    """A row whose value is near a threshold; ``distance`` and ``place`` are negated for heapq."""

    distance: float
    place: int
    value: float
    text: str = field(compare=False)


@dataclass(slots=True)
class Report:
    """The numbers of rows read, rejected and edited, and examples of rows near the thresholds.

    ``read`` counts rows by source, ``rejected`` by filter, reason and source, and ``edited`` by
    filter. ``borderline`` maps the name of a filter to two lists: the kept rows and the rejected
    rows whose values are nearest to a threshold of the filter, at most five of each. ``found``
    states whether any row has the score or label that a filter reads, and ``names`` are the scores
    and labels that rows have.
    """

    read: Counter[str] = field(default_factory=Counter)
    rejected: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    edited: Counter[str] = field(default_factory=Counter)
    borderline: dict[str, tuple[list[Example], list[Example]]] = field(default_factory=dict)
    found: dict[tuple[str, str], bool] = field(default_factory=dict)
    names: dict[str, set[str]] = field(default_factory=dict)

    def look_for(self, f: Filter, samples: Sequence[Sample]) -> None:
        """Record whether rows have the score or label that a filter reads, and which they have."""
        named = f.named()
        if named is None or not samples or self.found.get(named):
            return
        scores = {score.name for sample in samples for score in sample.scores}
        labels = {label.name for sample in samples for label in sample.labels}
        present = scores if named[0] == "score" else labels
        self.found[named] = named[1] in present
        self.names.setdefault(named[0], set()).update(present)

    def reject(self, f: Filter, row: Row, rejection: Rejection) -> RejectedRow:
        """Count a rejection, and return the rejected row."""
        self.rejected[f.name, rejection.reason, row.sample.source] += 1
        self.near(f, row.place, Verdict(row.sample, rejection, rejection.score))
        return RejectedRow(*row, rejection)

    def near(self, f: Filter, place: int, verdict: Verdict) -> None:
        """Store the row as an example if its value is among the nearest to a threshold of ``f``."""
        thresholds = f.thresholds()
        if verdict.value is None or not isfinite(verdict.value) or not thresholds:
            return
        sample = verdict.sample
        text = sample.output if f.scope == "row" and not sample.instruction else sample.question
        distance = min(abs(verdict.value - t) for t in thresholds)
        # heapq pops the smallest item. With negative distances that is the farthest example.
        example = Example(-distance, -place, verdict.value, text)
        self._add(f.name, verdict.rejection is not None, example)

    def _add(self, name: str, side: bool, example: Example) -> None:
        examples = self.borderline.setdefault(name, ([], []))[side]
        if len(examples) < _EXAMPLES_PER_SIDE:
            heapq.heappush(examples, example)
        elif example.distance > examples[0].distance:
            heapq.heappushpop(examples, example)

    def include(self, other: Report) -> None:
        """Add the numbers and examples of the report about later rows."""
        self.read.update(other.read)
        self.rejected.update(other.rejected)
        self.edited.update(other.edited)
        for name, sides in other.borderline.items():
            for side, examples in enumerate(sides):
                for example in sorted(examples, key=lambda e: -e.place):
                    self._add(name, bool(side), example)
        for named, found in other.found.items():
            self.found[named] = self.found.get(named, False) or found
        for kind, names in other.names.items():
            self.names.setdefault(kind, set()).update(names)

    def examples(self, name: str) -> tuple[list[Example], list[Example]]:
        """Return the kept and the rejected examples for a filter, nearest to a threshold first."""
        kept, rejected = self.borderline.get(name, ([], []))
        return sorted(kept, reverse=True), sorted(rejected, reverse=True)


class RowStage:
    """Filters that evaluate each row by itself, so that it may do so in any process.

    Args:
        filters: the filters, none of which compares rows.
        known: as for `Curation`.
    """

    def __init__(self, filters: Sequence[Filter], known: Mapping[str, Known]) -> None:
        self._filters, self._known = filters, known

    def apply(self, block: Block) -> tuple[Block, Report]:
        """Return the block without the rows that a filter rejects, and a report about them."""
        report, rows, rejected = Report(), block.kept, list[RejectedRow]()
        # They are added to each row once, because to copy a row takes as long as some filters.
        values: dict[int, dict[str, float]] = {}
        for f in self._filters:
            if isinstance(f, ScoringFilter) and self._known:
                rows = [self._with_known(row) for row in rows]
            report.look_for(f, [row.sample for row in rows])
            verdicts = f.evaluate([row.sample for row in rows])
            rows = _split(f, rows, verdicts, rejected, report, values)
        kept = [Row(row.place, _with_values(row.sample, values, row.place)) for row in rows]
        return Block(kept, _by_place([*block.rejected, *rejected])), report

    def _with_known(self, row: Row) -> Row:
        sample = row.sample
        known = self._known.get(sample.id, Known(()))
        for score in known.scores:
            if sample.score(score.name) is None:
                sample = sample.with_score(score)
        for label in known.labels:
            if all(label.name != other.name for other in sample.labels):
                sample = sample.with_label(label)
        return Row(row.place, sample)


def _split(
    f: Filter,
    rows: list[Row],
    verdicts: list[Verdict],
    rejected: list[RejectedRow],
    report: Report,
    values: dict[int, dict[str, float]],
) -> list[Row]:
    kept = []
    for row, verdict in zip(rows, verdicts, strict=True):
        report.edited[f.name] += len(verdict.sample.edits) > len(row.sample.edits)
        if own := f.values(verdict):
            values.setdefault(row.place, {}).update(own)
        if verdict.rejection is None:
            kept.append(Row(row.place, verdict.sample))
            report.near(f, row.place, verdict)
        else:
            sample = _with_values(verdict.sample, values, row.place)
            rejected.append(report.reject(f, Row(row.place, sample), verdict.rejection))
    return kept


def _with_values(sample: Sample, values: Mapping[int, dict[str, float]], place: int) -> Sample:
    own = values.get(place)
    return sample if own is None else sample.with_filter_values(own)


def _by_place(rejected: list[RejectedRow]) -> list[RejectedRow]:
    return sorted(rejected, key=lambda row: row.place)


def read_blocks(samples: Iterable[Sample], first: int = 0) -> Iterator[Block]:
    """Yield samples in blocks of at most 1,024 rows; ``first`` is the place of the first row."""
    block: list[Row] = []
    characters = 0
    for place, sample in enumerate(samples, start=first):
        block.append(Row(place, sample))
        characters += sample.characters
        if len(block) == _ROWS_PER_BLOCK or characters >= CHARACTERS_AT_ONCE:
            yield Block(block, [])
            block, characters = [], 0
    if block:
        yield Block(block, [])


class Curation:
    """Passes the rows of a dataset through filters once, and collects a report.

    Args:
        filters: the filters of the recipe, in order.
        known: scores and labels computed earlier, keyed by sample id; they are not computed again.
        folder: folder of temporary files; default: the system's folder for such files.
    """

    def __init__(
        self,
        filters: Sequence[Filter],
        known: Mapping[str, Known] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.filters, self.report, self._folder = tuple(filters), Report(), folder
        self._known = known or {}
        self._first_rows: dict[int, list[Row]] = {}

    def blocks(self, samples: Iterable[Sample]) -> Iterator[Block]:
        """Filter the rows, and return an iterator over blocks; kept rows are in input order."""
        blocks: Iterator[Block] | None = None
        group: list[Filter] = []
        for f in self.filters:
            if isinstance(f, SelectingFilter):
                blocks = self._select(f, self._filter(group, blocks, samples))
                group = []
            elif isinstance(f, AskingFilter):
                # Rows that the filters before it reject are not paid for.
                blocks = self._filter(group, blocks, samples)
                group = [f]
            else:
                group.append(f)
        return self._filter(group, blocks, samples)

    def knows(self, sample: Sample, score: str) -> bool:
        """Return whether a row has a score, or one was computed earlier."""
        known = self._known.get(sample.id, Known(()))
        return any(s.name == score for s in (*sample.scores, *known.scores))

    @property
    def order(self) -> list[Filter]:
        """Return the filters in the order in which they evaluate a row."""
        order: list[Filter] = []
        group: list[Filter] = []
        for f in (*self.filters, None):
            if f is None or isinstance(f, SelectingFilter | AskingFilter):
                order += sorted(group, key=lambda f: isinstance(f, ComparingFilter))
                order += [] if f is None else [f]
                group = []
            else:
                group.append(f)
        return order

    def collect_borderline(self) -> None:
        """Add kept rows near the threshold of each `ComparingFilter` to the report's examples.

        While rows are filtered, such a filter searches only for matches above its threshold. This
        method compares the first 2,000 kept rows with each other again, at a lower threshold.
        """
        for f in self.filters:
            threshold = getattr(f, "threshold", None)
            if isinstance(f, ComparingFilter) and f.thresholds() and isinstance(threshold, float):
                lower = max(_MIN_THRESHOLD, threshold - _THRESHOLD_STEP)
                lowered = type(f).model_validate({**f.model_dump(), "threshold": lower})
                rows = self._first_rows.get(id(f), [])
                samples = [row.sample for row in rows]
                for row, rejection in zip(rows, evaluate_block([lowered], samples), strict=True):
                    if rejection is not None and rejection.score is not None:
                        self.report.near(f, row.place, Verdict(row.sample, None, rejection.score))

    def _filter(
        self, filters: Sequence[Filter], blocks: Iterator[Block] | None, samples: Iterable[Sample]
    ) -> Iterator[Block]:
        """Apply filters to blocks, or to the samples if nothing was applied to them before."""
        independent = [f for f in filters if not isinstance(f, ComparingFilter)]
        comparing = [f for f in filters if isinstance(f, ComparingFilter)]
        if blocks is None:
            return self._compare(comparing, self._read(independent, samples))
        return self._compare(comparing, self._apply(independent, blocks))

    def _read(self, filters: Sequence[Filter], samples: Iterable[Sample]) -> Iterator[Block]:
        """Read the samples, and apply filters that evaluate each row by itself."""
        return self._apply(filters, map(self._counted, read_blocks(samples)))

    def _counted(self, block: Block) -> Block:
        self.report.read.update(row.sample.source for row in block.kept)
        return block

    def _apply(self, filters: Sequence[Filter], blocks: Iterator[Block]) -> Iterator[Block]:
        """Apply filters that evaluate each row by itself."""
        stage = RowStage(filters, self._known)
        for block in blocks:
            filtered, report = stage.apply(block)
            self.report.include(report)
            yield filtered

    def _compare(
        self, filters: Sequence[ComparingFilter], blocks: Iterator[Block]
    ) -> Iterator[Block]:
        if not filters:
            yield from blocks
            return
        by_name = {f.name: f for f in filters}
        for block in blocks:
            rows, rejected = block.kept, list[RejectedRow]()
            rejections = evaluate_block(filters, [row.sample for row in rows])
            for row, rejection in zip(rows, rejections, strict=True):
                if rejection is None:
                    for f in filters:
                        f.remember(row.sample)
                else:
                    rejected.append(self.report.reject(by_name[rejection.filter], row, rejection))
            rows = [row for row, r in zip(rows, rejections, strict=True) if r is None]
            for f in filters:
                first = self._first_rows.setdefault(id(f), [])
                first += rows[: _ROWS_COMPARED_AGAIN - len(first)]
            yield Block(rows, _by_place([*block.rejected, *rejected]))

    def _select(self, f: SelectingFilter, blocks: Iterator[Block]) -> Iterator[Block]:
        # What the filter decides depends on all rows, so they are in a file until then.
        file = RowFile(self._folder)
        for block in blocks:
            if block.kept:
                samples = [row.sample for row in block.kept]
                table = table_of(samples, samples[0].shape, plain=False)
                file.add(np.array([row.place for row in block.kept]), table)
            if block.rejected:
                yield Block([], block.rejected)
        rejections, position = self._selected(f, file), 0
        for places, table in file.tables():
            kept: list[Row] = []
            rejected: list[RejectedRow] = []
            for place, sample in zip(places.tolist(), samples_in(table), strict=True):
                rejection = rejections.get(position)
                position += 1
                if rejection is None:
                    kept.append(Row(place, sample))
                else:
                    rejected.append(self.report.reject(f, Row(place, sample), rejection))
            yield Block(kept, rejected)

    def _selected(self, f: SelectingFilter, file: RowFile) -> Mapping[int, Rejection]:
        """Return the rejections of a filter that decides about all rows of a file."""
        every = (sample for _, table in file.tables() for sample in samples_in(table))
        return f.select(every, self._folder)
