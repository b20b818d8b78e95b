"""Rejects by what a source says of a row in a word, such as Alpaca Libre's status."""

from __future__ import annotations

from pydantic import Field

from instructgen.filters import Filter
from instructgen.schema.sample import Rejection, Sample


class LabelFilter(Filter):
    """Rows that carry the label have to carry one of the allowed values; others pass."""

    name = "label"
    scope = "row"

    of: str = Field(min_length=1, description="the label's name")
    allowed: tuple[str, ...] = Field(min_length=1, description="values kept")

    def reason(self, sample: Sample) -> Rejection | None:
        """``not_allowed``."""
        for label in sample.labels:
            if label.name == self.of and label.value not in self.allowed:
                return self.reject("not_allowed", f"{self.of} is {label.value[:80]!r}")
        return None
