"""Rejects rows by a label from the source dataset, such as the status in Alpaca Libre."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from instructgen.filters import Filter
from instructgen.schema.sample import Rejection, Sample


class LabelFilter(Filter):
    """Reject rows in which a label has a value that is not allowed; keep rows without the label.

    A label is a named text that the source dataset contains about a row, such as a review status.
    """

    name = "label"
    scope = "row"

    of: str = Field(min_length=1, description="Name of the label to check.")
    allowed: tuple[str, ...] = Field(
        min_length=1,
        description="Allowed values of the label; a row with a different value is rejected.",
    )

    required: bool = Field(
        True, description="Whether it is an error if no row of the dataset has the label."
    )

    def named(self) -> tuple[Literal["score", "label"], str] | None:
        """Return the name of the label, if rows must have it."""
        return ("label", self.of) if self.required else None

    def reason(self, sample: Sample) -> Rejection | None:
        """Return a rejection (``not_allowed``), or None to keep the row."""
        for label in sample.labels:
            if label.name == self.of and label.value not in self.allowed:
                return self.reject("not_allowed", f"the label {self.of} is {label.value[:80]!r}")
        return None
