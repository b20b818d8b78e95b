"""Reads instructgen's own format: seed tasks, and the rows of a dataset that instructgen wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from instructgen.errors import first_line
from instructgen.formats import Format, RowError, text
from instructgen.formats.conversation import tools_text
from instructgen.schema.sample import SHAPES, Kind, Sample, Shape

# The column that only datasets of a shape have.
_COLUMNS: Mapping[str, Shape] = {
    "messages": "instructions",
    "chosen": "preferences",
    "completion": "feedback",
}
# What the functions that convert a row raise if a value has another type than in a dataset.
_INVALID = (TypeError, ValueError, LookupError, AttributeError, RecursionError)


class Native(Format):
    """Rows with the same fields as the seed tasks in ``seeds/*.jsonl``."""

    name = "instructgen"
    fields = frozenset({"instruction", "output", "kind", "license"})
    example: ClassVar[Mapping[str, Any]] = {
        "instruction": "Add the numbers.",
        "input": "2 and 3",
        "output": "5",
        "kind": "generation",
        "language": "en",
        "license": "CC0-1.0",
    }

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return one sample."""
        # Imported rows have a null kind.
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


class DatasetRow(Format):
    """Rows of a dataset that instructgen wrote, such as those of one of its Parquet files.

    All columns are read, so that the rows are the same as in the dataset: conversation, rejected
    answer or label, scores, attribution, generators and origin. The conversation is in
    ``messages``, ``chosen`` or ``completion``.
    """

    name = "instructgen-dataset"
    fields = frozenset({"id", "instruction", "output", "origin", "generators"})
    example: ClassVar[Mapping[str, Any]] = {
        "id": "2bbc1a9f2e4de4a1",
        "messages": [
            {"role": "user", "content": "Add 2 and 3."},
            {"role": "assistant", "content": "5"},
        ],
        "instruction": "Add 2 and 3.",
        "input": "",
        "output": "5",
        "license": "MIT",
        "origin": {"method": "human", "parents": []},
        "generators": [],
        "attribution": [],
        "scores": [],
        "labels": [],
        "edits": [],
    }
    shapes = SHAPES
    is_complete = True

    @classmethod
    def matches(cls, record: Mapping[str, Any]) -> int:
        """Return 20 if the record has the columns of a dataset, otherwise 0."""
        return 20 * (cls.shape_of(record) is not None)

    @classmethod
    def shape_of(cls, record: Mapping[str, Any]) -> Shape | None:
        """Return the shape of a record that has the columns of a dataset, otherwise None."""
        if not record.keys() >= cls.fields or not isinstance(record["origin"], Mapping):
            return None
        return next((shape for name, shape in _COLUMNS.items() if name in record), None)

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return the sample of the row."""
        import pyarrow as pa

        from instructgen.schema.arrow import row_table, samples_in

        shape = self.shape_of(record)
        if shape is None or shape != self.shape:
            raise RowError(f"the row is not a row of {self.shape}.")
        try:
            tools = {"tools": tools_text(record.get("tools"))}
            return samples_in(row_table({**record, **tools}, shape))
        except (pa.ArrowException, *_INVALID) as error:
            raise RowError(
                f"the columns of a dataset row are invalid ({first_line(error)})"
            ) from error
