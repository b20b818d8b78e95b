"""Defines samples (rows of a dataset), their Arrow columns, and row counts, such as by source.

This package does not read or write files; `instructgen.store` reads and writes them.
"""

from instructgen.schema.messages import Message
from instructgen.schema.sample import (
    Edit,
    Label,
    Origin,
    Rejected,
    Rejection,
    Sample,
    Score,
)

__all__ = ["Edit", "Label", "Message", "Origin", "Rejected", "Rejection", "Sample", "Score"]
