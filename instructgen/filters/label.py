"""Rejects rows by the value of a label from their source, such as the status in Alpaca Libre."""

from __future__ import annotations

from pydantic import Field

from instructgen.filters import Filter
from instructgen.schema.sample import Rejection, Sample


class LabelFilter(Filter):
    """Reject rows in which a label has a value that is not allowed; keep rows without it."""

    name = "label"
    scope = "row"

    of: str = Field(min_length=1, description="Name of the label to check.")
    allowed: tuple[str, ...] = Field(
        min_length=1,
        description="Allowed values; a row in which the label has a different value is rejected.",
    )

    def reason(self, sample: Sample) -> Rejection | None:
        """Return a rejection (``not_allowed``), or None to keep the row."""
        for label in sample.labels:
            if label.name == self.of and label.value not in self.allowed:
                return self.reject("not_allowed", f"the label {self.of} is {label.value[:80]!r}")
        return None
