"""Rows: what a sample is, how it is kept as Arrow columns, and what many of them have in common."""

from instructgen.schema.sample import (
    Edit,
    Label,
    Message,
    Origin,
    Rejected,
    Rejection,
    Sample,
    Score,
)

__all__ = ["Edit", "Label", "Message", "Origin", "Rejected", "Rejection", "Sample", "Score"]
