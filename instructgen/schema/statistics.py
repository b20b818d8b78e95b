"""What a dataset holds, counted as its rows pass: where they come from, and their terms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from instructgen.schema.sample import Sample


class Provenance(NamedTuple):
    """What many rows have in common; ``model`` wrote them, or None where a person did."""

    source: str
    license: str
    language: str
    attribution: tuple[str, ...]
    generators: tuple[str, ...]
    model: str | None
    human: bool


@dataclass(slots=True)
class Contents:
    """The number of rows by their provenance, the splits that they stand in, and the rejected."""

    counts: Counter[Provenance] = field(default_factory=Counter)
    splits: tuple[str, ...] = ("part",)
    rejected: int = 0

    def add(self, samples: Iterable[Sample]) -> None:
        """Count these rows too."""
        self.counts.update(
            Provenance(
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
        """How many rows there are."""
        return self.counts.total()

    def by(self, *fields: str) -> dict[tuple[str, ...], int]:
        """Rows by these fields of `Provenance`, in the order of their values."""
        found: Counter[tuple[str, ...]] = Counter()
        for provenance, count in self.counts.items():
            found[tuple(getattr(provenance, f) for f in fields)] += count
        return dict(sorted(found.items(), key=lambda item: repr(item[0])))

    @property
    def licenses(self) -> dict[str, int]:
        """Rows by licence."""
        return {key[0]: count for key, count in self.by("license").items()}

    @property
    def generators(self) -> dict[str, int]:
        """Rows by each model whose terms apply to them."""
        found: Counter[str] = Counter()
        for provenance, count in self.counts.items():
            found.update(dict.fromkeys(provenance.generators, count))
        return dict(sorted(found.items()))

    @property
    def attributions(self) -> dict[str, int]:
        """Rows by each credit that goes with them."""
        found: Counter[str] = Counter()
        for provenance, count in self.counts.items():
            found.update(dict.fromkeys(provenance.attribution, count))
        return dict(sorted(found.items()))
