"""Counts the rows of a dataset by origin, such as source, license and language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from instructgen.schema.sample import Sample


class RowOrigin(NamedTuple):
    """Properties by which rows are counted; ``model`` is the model that wrote the row, if any."""

    source: str
    license: str
    language: str
    attribution: tuple[str, ...]
    generators: tuple[str, ...]
    model: str | None
    human: bool


@dataclass(slots=True)
class RowCounts:
    """The number of rows by origin and by split, and the number of rejected rows."""

    counts: Counter[RowOrigin] = field(default_factory=Counter)
    splits: dict[str, int] = field(default_factory=lambda: {"part": 0})
    rejected: int = 0

    def add(self, samples: Iterable[Sample]) -> None:
        """Add these rows to the counts."""
        self.counts.update(
            RowOrigin(
                s.source,
                s.license,
                s.language,
                s.attribution,
                s.generators,
                s.origin.model,
                s.origin.method == "human",
            )
            for s in samples
        )

    @property
    def rows(self) -> int:
        """The total number of rows, without rejected rows."""
        return self.counts.total()

    def by(self, *fields: str) -> dict[tuple[str, ...], int]:
        """Return row counts by the values of these fields of `RowOrigin`, sorted by the values."""
        totals: Counter[tuple[str, ...]] = Counter()
        for origin, count in self.counts.items():
            totals[tuple(getattr(origin, f) for f in fields)] += count
        return dict(sorted(totals.items(), key=lambda item: repr(item[0])))

    @property
    def licenses(self) -> dict[str, int]:
        """The number of rows for each license."""
        return {key[0]: count for key, count in self.by("license").items()}

    @property
    def generators(self) -> dict[str, int]:
        """The number of rows for each model whose terms of use apply to the rows."""
        totals: Counter[str] = Counter()
        for origin, count in self.counts.items():
            totals.update(dict.fromkeys(origin.generators, count))
        return dict(sorted(totals.items()))

    @property
    def attributions(self) -> dict[str, int]:
        """The number of rows for each attribution text."""
        totals: Counter[str] = Counter()
        for origin, count in self.counts.items():
            totals.update(dict.fromkeys(origin.attribution, count))
        return dict(sorted(totals.items()))
