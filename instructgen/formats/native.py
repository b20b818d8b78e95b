"""Reads instructgen's own format: one task per row, with kind, license and other fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructgen.formats import Format, RowError, text
from instructgen.schema.sample import Kind, Sample


class Native(Format):
    """Rows with the same fields as the seed tasks in ``seeds/*.jsonl``."""

    name = "instructgen"
    fields = frozenset({"instruction", "output", "kind", "license"})

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return one sample."""
        # Imported rows have a null kind, also in Parquet files that instructgen wrote.
        unknown = "kind" in record and record["kind"] is None
        kind = None if unknown else text(record, "kind")
        if kind is not None and kind not in list(Kind):
            raise RowError(f'"kind" is {kind!r}, but must be {" or ".join(Kind)}.')
        return [
            Sample(
                instruction=text(record, "instruction"),
                input=text(record, "input", required=False),
                output=text(record, "output"),
                kind=None if kind is None else Kind(kind),
                category=text(record, "category", required=False) or None,
                language=text(record, "language", required=False) or "und",
                source=text(record, "source", required=False),
                license=text(record, "license"),
            )
        ]
