"""Defines the rows of a dataset: samples, their Arrow columns, and row counts by origin.

This package does not read or write files; `instructgen.store` reads and writes them.
"""

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
