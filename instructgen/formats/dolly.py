"""Reads databricks-dolly-15k: human-written tasks in eight categories, some about a passage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from instructgen.formats import Format, text
from instructgen.schema.sample import Kind, Sample


class Dolly(Format):
    """Rows with ``instruction``, ``context``, ``response`` and ``category``.

    The license is CC-BY-SA-3.0 (Databricks 2023).
    """

    name = "dolly"
    fields = frozenset({"instruction", "context", "response"})
    example: ClassVar[Mapping[str, Any]] = {
        "instruction": "Name the river.",
        "context": "The Rhine flows through Basel.",
        "response": "The Rhine.",
        "category": "closed_qa",
    }
    license = "CC-BY-SA-3.0"
    language = "en"
    has_metadata = True
    attribution = (
        "databricks-dolly-15k, Copyright (2023) Databricks, Inc.; "
        "passages from Wikipedia, Copyright Wikipedia editors and contributors",
    )

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return one sample; its input is the field ``context`` of the record."""
        category = text(record, "category", required=False) or None
        return [
            Sample(
                instruction=text(record, "instruction"),
                input=text(record, "context", required=False),
                output=text(record, "response"),
                kind=Kind.CLASSIFICATION if category == "classification" else Kind.GENERATION,
                category=category,
            )
        ]
