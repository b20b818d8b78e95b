"""Rejects rows by a label from their source, such as the status in Alpaca Libre."""

from __future__ import annotations

from pydantic import Field

from instructgen.filters import Filter
from instructgen.schema.sample import Rejection, Sample


class LabelFilter(Filter):
    """Reject rows whose label has a value that is not allowed; rows without the label pass."""

    name = "label"
    scope = "row"

    of: str = Field(min_length=1, description="Name of the label.")
    allowed: tuple[str, ...] = Field(min_length=1, description="Values of kept rows.")

    def reason(self, sample: Sample) -> Rejection | None:
        """Return a rejection (``not_allowed``), or None."""
        for label in sample.labels:
            if label.name == self.of and label.value not in self.allowed:
                return self.reject("not_allowed", f"{self.of} is {label.value[:80]!r}")
        return None
