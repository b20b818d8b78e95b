"""Reads instructgen's own format: a row is a task with an instruction, output and license."""

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
        raise RowError(f"a column of the row has an invalid value ({first_line(error)})") from error


class Native(Format):
    """Rows with ``instruction``, ``output``, ``kind``, ``license``, and optionally other fields.

    ``kind`` is ``generation`` or ``classification``. The files ``seeds/*.jsonl`` are examples.
    """

    name = "instructgen"
    fields = frozenset({"instruction", "output", "kind", "license"})

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return one sample.

        A row that also has the fields ``messages``, ``origin`` and ``generators``, such as a row of
        a DataFrame from `instructgen.open`, keeps its conversation, origin, scores and license
        terms.
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
