"""Reads instructgen's own format: one task per row, with kind, license and other fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructgen.errors import first_line
from instructgen.formats import Format, RowError, text
from instructgen.schema.sample import Kind, Sample


def _dataset_row(record: Mapping[str, Any]) -> list[Sample]:
    import pyarrow as pa

    from instructgen.schema.arrow import samples_in, schema

    columns = schema("instructions")
    values = {name: record.get(name) for name in columns.names}
    try:
        return samples_in(pa.RecordBatch.from_pylist([values], schema=columns))
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError) as error:
        raise RowError(f"the columns of a dataset row are invalid ({first_line(error)})") from error


class Native(Format):
    """Rows with the same fields as the seed tasks in ``seeds/*.jsonl``."""

    name = "instructgen"
    fields = frozenset({"instruction", "output", "kind", "license"})

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return one sample.

        A row with all columns of a dataset, such as one of a DataFrame of `instructgen.open`, keeps
        its conversation, origin, scores and license terms.
        """
        if {"messages", "origin", "generators"} <= record.keys():
            return _dataset_row(record)
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
