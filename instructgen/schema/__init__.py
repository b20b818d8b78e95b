"""Defines the rows of a dataset: samples, their Arrow columns, and counts of their provenance.

Files are read and written elsewhere, in `instructgen.store`.
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
