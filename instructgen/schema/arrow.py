"""Converts samples and rejections to Arrow tables and to plain data for JSON, and back.

Arrow tables are built and read by column, because building a dictionary for each row would take
most of the time for reading and writing. This module does not open files.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from instructgen.schema.messages import Message, json_text
from instructgen.schema.records import checked
from instructgen.schema.sample import (
    Edit,
    FilterValue,
    Kind,
    Label,
    Origin,
    Place,
    Rejected,
    Sample,
    Score,
    Shape,
)

# Columns of a dataset in addition to the conversation.
_TEXTS = ("instruction", "input", "output", "kind", "category", "language", "source", "license")
_LISTS = ("attribution", "generators")
_STRUCTS = {"scores": Score, "labels": Label, "edits": Edit, "filter_values": FilterValue}
_DECISION = ("stage", "filter", "reason", "detail", "score", "nearest")
CONVERSATION: dict[Shape, tuple[str, ...]] = {
    "instructions": ("messages",),
    "preferences": ("prompt", "chosen", "rejected"),
    "feedback": ("prompt", "completion"),
    "documents": (),
}
_PLAIN = ("role", "content")
# The columns that a segment of a document has for its text, and those that it does not have.
_PLACE = tuple(f.name for f in fields(Place))
_NOT_IN_DOCUMENTS = ("instruction", "input", "output", "kind", "category")


def schema(shape: Shape, *, rejected: bool = False, plain: bool = True) -> Any:
    """Return the Arrow schema of the ``data`` files or the ``rejected`` files of a dataset.

    Instruction rows have the column ``messages``. Preference rows have the columns ``prompt``,
    ``chosen`` and ``rejected``, and feedback rows ``prompt``, ``completion`` and ``label``. TRL
    can train on these columns without conversion. Segments of documents have the column ``text``
    and the fields of `Place` as columns.

    In a plain dataset, a message is a struct of role and content. If a row has tools, reasoning or
    messages without loss, the messages of all rows are JSON objects, and the column ``tools``
    contains the JSON list of tool definitions. A struct with optional fields would give every
    message a field ``tool_calls``, and some chat templates fail if its value is null.
    """
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    origin = pa.struct(
        [
            (f.name, {"parents": pa.list_(text)}.get(f.name) or _origin_type(f.name))
            for f in fields(Origin)
        ]
    )
    decision = [(name, number if name == "score" else text) for name in _DECISION]
    message = pa.struct([(name, text) for name in _PLAIN]) if plain else pa.json_()
    return pa.schema(
        [
            ("id", text),
            *(decision if rejected else [("split", text)]),
            *((name, pa.list_(message)) for name in CONVERSATION[shape]),
            *(_place_columns() if shape == "documents" else ()),
            *([("label", pa.bool_())] if shape == "feedback" else ()),
            *(() if plain else [("tools", pa.json_())]),
            *((name, text) for name in _texts(shape)),
            ("language_confidence", number),
            *((name, pa.list_(text)) for name in _LISTS),
            ("origin", origin),
            *((name, pa.list_(_struct(kind))) for name, kind in _STRUCTS.items()),
        ]
    )


def table_of(
    samples: Sequence[Sample], shape: Shape, *, plain: bool = True, split: str | None = None
) -> Any:
    """Return the samples as an Arrow table with the schema of ``data`` files; see `schema`.

    The column ``split`` contains the name of the split, or null for a dataset without splits.
    """
    import pyarrow as pa

    columns = {"id": pa.array([s.id for s in samples], pa.string())}
    columns["split"] = pa.array([split] * len(samples), pa.string())
    columns |= _columns(samples, schema(shape, plain=plain))
    return pa.table(columns, schema(shape, plain=plain))


def rejected_table_of(rejected: Sequence[Rejected], shape: Shape, *, plain: bool = True) -> Any:
    """Return rejected samples and reasons as an Arrow table; `schema` describes the columns."""
    import pyarrow as pa

    target = schema(shape, rejected=True, plain=plain)
    columns = {"id": pa.array([r.id for r in rejected], pa.string())}
    columns["stage"] = pa.array([r.stage for r in rejected], pa.string())
    for name in _DECISION[1:]:
        values = [getattr(r.rejection, name) for r in rejected]
        columns[name] = pa.array(values, target.field(name).type)
    columns |= _columns([r.sample for r in rejected], target)
    return pa.table(columns, target)


def enriched(table: Any) -> Any:
    """Return a plain table with messages as JSON objects and the column ``tools``; see `schema`."""
    import pyarrow as pa

    columns = {name: table.column(name) for name in table.column_names}
    shape = next(s for s, names in CONVERSATION.items() if set(names) <= columns.keys())
    columns |= _enriched(columns, shape, table.num_rows)
    target = schema(shape, rejected="reason" in columns, plain=False)
    return pa.table({name: columns[name] for name in target.names}, target)


def _enriched(columns: Mapping[str, Any], shape: Shape, rows: int) -> dict[str, Any]:
    """Return the columns of `enriched` that differ from those of a plain table."""
    import pyarrow as pa

    messages = {n: _json_lists(_structs(columns[n], Message)) for n in CONVERSATION[shape]}
    return messages | {"tools": pa.nulls(rows, pa.string()).cast(pa.json_())}


def conformed(rows: Any, shape: Shape, *, plain: bool) -> Any:
    """Return rows of a dataset's ``data`` files as a table with the present schema; see `schema`.

    Args:
        rows: a table or record batch, also of a dataset in an older format.
        shape: the kind of the rows.
        plain: whether the messages are structs of role and content; then they must be in ``rows``.
    """
    import pyarrow as pa

    target = schema(shape, plain=plain)
    columns = {name: _as_array(rows.column(name)) for name in rows.schema.names}
    if not plain and "tools" not in columns:
        columns |= _enriched(columns, shape, rows.num_rows)
    for field in target:
        if field.name not in columns:
            # Datasets of earlier formats lack columns.
            none: list[Any] | None = [] if pa.types.is_list(field.type) else None
            columns[field.name] = pa.array([none] * rows.num_rows, field.type)
    origin, type_ = columns["origin"], target.field("origin").type
    if origin.type != type_:
        # Before format 5, the column draft was named batch.
        children = [origin.field({"draft": "batch"}.get(f.name, f.name)) for f in type_]
        columns["origin"] = pa.StructArray.from_arrays(children, fields=list(type_))
    return pa.table({name: columns[name] for name in target.names}, target)


def samples_in(batch: Any) -> list[Sample]:
    """Return the samples in an Arrow record batch or table; `schema` describes the columns."""
    import pyarrow as pa

    columns = {name: batch.column(name) for name in batch.schema.names}
    if "text" in columns:
        missing: dict[str, Any] = {"input": "", "output": "", "kind": None, "category": None}
        filled = {k: pa.array([v] * batch.num_rows, pa.string()) for k, v in missing.items()}
        columns |= {**filled, "instruction": columns["text"]}
    texts = [columns[name].to_pylist() for name in _TEXTS]
    lists = [_lists(columns[name]) for name in _LISTS]
    # The first datasets of format 5 have no column filter_values.
    structs = [
        _structs(columns[name], kind) if name in columns else [()] * batch.num_rows
        for name, kind in _STRUCTS.items()
    ]
    rows: Iterable[tuple[Any, Any, Any]] = zip(
        zip(*texts, strict=True),
        zip(*lists, _origins(columns["origin"]), *structs, strict=True),
        _conversations(columns, batch.num_rows),
        strict=True,
    )
    return [
        Sample(
            *(instruction, input_, output, None if kind is None else Kind(kind)),
            *(category, language, source, license, origin, scores),
            attribution=attribution,
            generators=generators,
            labels=labels,
            edits=edits,
            filter_values=values,
            **conversation,
        )
        for (
            (instruction, input_, output, kind, category, language, source, license),
            (attribution, generators, origin, scores, labels, edits, values),
            conversation,
        ) in rows
    ]


def rows_in(batch: Any) -> list[dict[str, Any]]:
    """Return the rows of a record batch or table as dicts, with messages and tools decoded."""
    import pyarrow as pa

    rows: list[dict[str, Any]] = batch.to_pylist()
    for field in batch.schema:
        is_list = pa.types.is_list(field.type) and field.type.value_type == pa.json_()
        if is_list or field.type == pa.json_():
            for row in rows:
                if (value := row[field.name]) is not None:
                    row[field.name] = [*map(json.loads, value)] if is_list else json.loads(value)
    return rows


def row_table(row: Mapping[str, Any], shape: Shape) -> Any:
    """Return a row that was read from a dataset's Parquet file as a table for `samples_in`.

    Messages are dicts, or JSON texts if they were read without decoding.

    Raises:
        pyarrow.ArrowException, TypeError, ValueError, KeyError: a value has the wrong type.
    """
    import pyarrow as pa

    target = schema(shape, plain=False)
    values = {name: row.get(name) for name in target.names}
    types = {f.name: f.type for f in target}
    for name in CONVERSATION[shape]:
        types[name] = pa.list_(pa.string())
        values[name] = [
            m if isinstance(m, str) else json_text(Message.of(m).to_dict()) for m in row[name]
        ]
    tools, types["tools"] = values["tools"], pa.string()
    values["tools"] = json_text(tools) if tools and not isinstance(tools, str) else tools or None
    columns = {name: pa.array([value], types[name]) for name, value in values.items()}
    return pa.table(columns).cast(target)


def sample_row(sample: Sample) -> dict[str, Any]:
    """Return a sample as a dict for JSON, with all fields and the id."""
    row = {"id": sample.id, **asdict(sample)}
    if sample.place is None:
        # So that the digest of the seeds of a run is that of versions without places.
        del row["place"]
    return row


def sample_of(row: Any, path: Path, line: int) -> Sample:
    """Return the sample that a dict from `sample_row` describes.

    Raises:
        DamagedFileError: the row, which is at this line of the file, is not such a dict.
    """
    values = {k: v for k, v in row.items() if k != "id"} if isinstance(row, dict) else row
    sample: Sample = checked(Sample, values, path, line)
    return sample


# -- columns ------------------------------------------------------------------------------


def _origin_type(name: str) -> Any:
    import pyarrow as pa

    return pa.int64() if name in ("draft", "request") else pa.string()


def _texts(shape: Shape) -> tuple[str, ...]:
    """Return the text columns of a dataset, except those of the conversation."""
    if shape != "documents":
        return _TEXTS
    return ("text", *(name for name in _TEXTS if name not in _NOT_IN_DOCUMENTS))


def _place_columns() -> list[tuple[str, Any]]:
    import pyarrow as pa

    numbers = ("start", "end", "page")
    return [(name, pa.int64() if name in numbers else pa.string()) for name in _PLACE]


def _struct(kind: type) -> Any:
    import pyarrow as pa

    is_number = {"value"} if kind in (Score, FilterValue) else set()
    return pa.struct(
        [(name, pa.float64() if name in is_number else pa.string()) for name in _names(kind)]
    )


def _names(kind: Any) -> tuple[str, ...]:
    return _PLAIN if kind is Message else tuple(f.name for f in fields(kind))


def _columns(samples: Sequence[Sample], target: Any) -> dict[str, Any]:
    """Return all columns of the samples that the schema has, except the id and the decision."""
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for name in [*itertools.chain(*CONVERSATION.values())]:
        if name in target.names:
            lists = [_messages(s, name) for s in samples]
            is_json = target.field(name).type.value_type == pa.json_()
            columns[name] = _json_lists(lists) if is_json else _struct_lists(lists, Message)
    if "tools" in target.names:
        tools = pa.array([s.tools or None for s in samples], pa.string())
        columns["tools"] = tools.cast(pa.json_())
    # Members of a StrEnum are written as strings.
    fields_of = {"text": "instruction"}
    for name in (*_TEXTS, "text", "language_confidence", "label"):
        if name in target.names:
            values = [getattr(s, fields_of.get(name, name)) for s in samples]
            columns[name] = pa.array(values, target.field(name).type)
    for name in _PLACE:
        if name in target.names:
            values = [getattr(s.place, name) for s in samples]
            columns[name] = pa.array(values, target.field(name).type)
    for name in _LISTS:
        columns[name] = _text_lists([getattr(s, name) for s in samples])
    origins = [s.origin for s in samples]
    children = []
    for f in target.field("origin").type:
        values = [getattr(o, f.name) for o in origins]
        is_list = f.name == "parents"
        children.append(_text_lists(values) if is_list else pa.array(values, f.type))
    columns["origin"] = pa.StructArray.from_arrays(
        children, fields=list(target.field("origin").type)
    )
    for name, kind in _STRUCTS.items():
        columns[name] = _struct_lists((getattr(s, name) for s in samples), kind)
    return columns


def _messages(sample: Sample, column: str) -> tuple[Message, ...]:
    if column == "messages":
        return sample.messages
    if column == "prompt":
        return sample.prompt
    answer = sample.rejected_answer if column == "rejected" else sample.answer
    # A candidate for a preference can be rejected before it has a second answer.
    return () if answer is None else (answer,)


def _text_lists(lists: Sequence[Sequence[str]]) -> Any:
    import pyarrow as pa

    flat = pa.array([*itertools.chain.from_iterable(lists)], pa.string())
    return pa.ListArray.from_arrays(_offsets(lists), flat)


def _json_lists(lists: Sequence[Sequence[Message]]) -> Any:
    import pyarrow as pa

    flat = [json_text(m.to_dict()) for m in itertools.chain.from_iterable(lists)]
    return pa.ListArray.from_arrays(_offsets(lists), pa.array(flat, pa.string()).cast(pa.json_()))


def _struct_lists(lists: Iterable[Sequence[Any]], kind: type) -> Any:
    import pyarrow as pa

    lists = list(lists)
    flat = [*itertools.chain.from_iterable(lists)]
    type_ = _struct(kind)
    children = [pa.array([getattr(v, f.name) for v in flat], f.type) for f in type_]
    values = pa.StructArray.from_arrays(children, fields=list(type_))
    return pa.ListArray.from_arrays(_offsets(lists), values)


def _offsets(lists: Iterable[Sequence[Any]]) -> Any:
    import pyarrow as pa

    return pa.array([0, *itertools.accumulate(len(v) for v in lists)], pa.int32())


def _as_array(column: Any) -> Any:
    return column.combine_chunks() if hasattr(column, "combine_chunks") else column


def _lists(column: Any) -> list[tuple[str, ...]]:
    return _split_lists(column, lambda values: values.to_pylist())


def _conversations(columns: Mapping[str, Any], rows: int) -> Iterator[dict[str, Any]]:
    """Yield the fields of each sample that its messages, tools and label contain, or its place."""
    confidences = _values(columns, "language_confidence", rows)
    if "text" in columns:
        places = zip(*(columns[name].to_pylist() for name in _PLACE), strict=True)
        for values, confidence in zip(places, confidences, strict=True):
            yield {"place": Place(*values), "language_confidence": confidence}
        return
    tools = _values(columns, "tools", rows)
    labels = _values(columns, "label", rows)
    if "messages" in columns:
        lists = _message_lists(columns["messages"])
        prompts, answers = [m[:-1] for m in lists], [m[-1] for m in lists]
    else:
        prompts = _message_lists(columns["prompt"])
        answers = [
            m[0] for m in _message_lists(columns["chosen" if "chosen" in columns else "completion"])
        ]
    has_rejected = "rejected" in columns
    rejected = _message_lists(columns["rejected"]) if has_rejected else [()] * rows
    for prompt, answer, worse, tool, label, confidence in zip(
        prompts, answers, rejected, tools, labels, confidences, strict=True
    ):
        question = max(i for i, m in enumerate(prompt) if m.role == "user")
        fields: dict[str, Any] = {"history": prompt[:question], "steps": prompt[question + 1 :]}
        if answer.extras:
            fields["reasoning_content"] = answer.reasoning_content
            fields |= {"tool_calls": answer.tool_calls, "train": answer.train}
        for message in worse:
            fields["rejected_output"] = message.content
            fields["rejected_reasoning_content"] = message.reasoning_content
            fields["rejected_tool_calls"] = message.tool_calls
        yield {**fields, "tools": tool or "", "label": label, "language_confidence": confidence}


def _values(columns: Mapping[str, Any], name: str, rows: int) -> list[Any]:
    """Return the values of a column that not all datasets have."""
    return columns[name].to_pylist() if name in columns else [None] * rows


def _message_lists(column: Any) -> list[tuple[Message, ...]]:
    import pyarrow as pa

    if pa.types.is_struct(column.type.value_type):
        return _structs(column, Message)
    return _split_lists(
        column, lambda values: [Message.of(json.loads(v)) for v in values.to_pylist()]
    )


def _structs(column: Any, kind: type) -> list[tuple[Any, ...]]:
    def objects(values: Any) -> list[Any]:
        children = [values.field(name).to_pylist() for name in _names(kind)]
        return [kind(*row) for row in zip(*children, strict=True)]

    return _split_lists(column, objects)


def _split_lists(column: Any, convert: Any) -> list[tuple[Any, ...]]:
    """Return one tuple per row of a list column; ``convert`` is called once, on all values."""
    column = _as_array(column)
    values = convert(column.flatten())
    ends = [0, *itertools.accumulate(column.value_lengths().to_pylist())]
    return [tuple(values[a:b]) for a, b in itertools.pairwise(ends)]


def _origins(column: Any) -> list[Origin]:
    column = _as_array(column)
    # Before format 5, the column draft was named batch.
    earlier = {"draft": "batch"} if column.type.get_field_index("draft") < 0 else {}
    parts = [(f.name, column.field(earlier.get(f.name, f.name))) for f in fields(Origin)]
    children = [_lists(part) if name == "parents" else part.to_pylist() for name, part in parts]
    return [Origin(*row) for row in zip(*children, strict=True)]
