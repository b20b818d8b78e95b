"""Converts samples and rejections to Arrow tables and to plain data for JSON, and back.

Arrow tables are built and read by column, because building a dictionary for each row would take
most of the time for reading and writing. This module does not open files.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from instructgen.schema.sample import (
    Edit,
    Kind,
    Label,
    Message,
    Origin,
    Rejected,
    Sample,
    Score,
    Shape,
)

# Columns of a dataset in addition to the conversation.
_TEXTS = ("instruction", "input", "output", "kind", "category", "language", "source", "license")
_LISTS = ("attribution", "generators")
_STRUCTS = {"scores": Score, "labels": Label, "edits": Edit}
_DECISION = ("stage", "filter", "reason", "detail", "score", "nearest")
_CONVERSATION: dict[Shape, tuple[str, ...]] = {
    "instructions": ("messages",),
    "preferences": ("prompt", "chosen", "rejected"),
}


def schema(shape: Shape, *, rejected: bool = False) -> Any:
    """Return the Arrow schema of the ``data`` files or the ``rejected`` files of a dataset.

    Instruction rows have the column ``messages``. Preference rows have the columns ``prompt``,
    ``chosen`` and ``rejected``. Each of these columns is a list of messages with role and content,
    so TRL can train on both kinds of rows without conversion.
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
    return pa.schema(
        [
            ("id", text),
            *(decision if rejected else ()),
            *((name, pa.list_(_struct(Message))) for name in _CONVERSATION[shape]),
            *((name, text) for name in _TEXTS),
            *((name, pa.list_(text)) for name in _LISTS),
            ("origin", origin),
            *((name, pa.list_(_struct(kind))) for name, kind in _STRUCTS.items()),
        ]
    )


def table_of(samples: Sequence[Sample], shape: Shape) -> Any:
    """Return the samples as an Arrow table with the schema of ``data`` files; see `schema`."""
    import pyarrow as pa

    return pa.table([pa.array([s.id for s in samples]), *_columns(samples, shape)], schema(shape))


def rejected_table_of(rejected: Sequence[Rejected], shape: Shape) -> Any:
    """Return rejected samples and reasons as an Arrow table; `schema` describes the columns."""
    import pyarrow as pa

    target = schema(shape, rejected=True)
    reasons = [r.rejection for r in rejected]
    decision = [
        pa.array([r.stage for r in rejected], pa.string()),
        *(
            pa.array([getattr(r, name) for r in reasons], target.field(name).type)
            for name in _DECISION[1:]
        ),
    ]
    columns = _columns([r.sample for r in rejected], shape)
    return pa.table([pa.array([r.id for r in rejected]), *decision, *columns], target)


def samples_in(batch: Any) -> list[Sample]:
    """Return the samples in an Arrow record batch or table; `schema` describes the columns."""
    columns = {name: batch.column(name) for name in batch.schema.names}
    texts = [columns[name].to_pylist() for name in _TEXTS]
    lists = [_lists(columns[name]) for name in _LISTS]
    structs = [_structs(columns[name], kind) for name, kind in _STRUCTS.items()]
    if "messages" in columns:
        histories = [messages[:-2] for messages in _structs(columns["messages"], Message)]
        rejected: list[str | None] = [None] * len(histories)
    else:
        histories = [prompt[:-1] for prompt in _structs(columns["prompt"], Message)]
        rejected = [m[0].content if m else None for m in _structs(columns["rejected"], Message)]
    rows: Iterable[tuple[Any, Any, Any]] = zip(
        zip(*texts, strict=True),
        zip(*lists, _origins(columns["origin"]), *structs, strict=True),
        zip(histories, rejected, strict=True),
        strict=True,
    )
    return [
        Sample(
            *(instruction, input_, output, None if kind is None else Kind(kind)),
            *(category, language, source, license, origin, scores, history, rejected_output),
            *(attribution, generators, labels, edits),
        )
        for (
            (instruction, input_, output, kind, category, language, source, license),
            (attribution, generators, origin, scores, labels, edits),
            (history, rejected_output),
        ) in rows
    ]


def sample_row(sample: Sample) -> dict[str, Any]:
    """Return a sample as a dict for JSON, with all fields and the id."""
    return {"id": sample.id, **asdict(sample)}


def sample_of(row: Mapping[str, Any]) -> Sample:
    """Return the sample that a dict from `sample_row` describes."""
    origin = dict(row["origin"])
    values = {f.name: row[f.name] for f in fields(Sample)}
    return Sample(
        **{
            **values,
            "kind": None if values["kind"] is None else Kind(values["kind"]),
            "history": tuple(Message(**m) for m in values["history"]),
            "origin": Origin(**{**origin, "parents": tuple(origin["parents"])}),
            **{name: tuple(values[name]) for name in _LISTS},
            **{n: tuple(kind(**v) for v in values[n]) for n, kind in _STRUCTS.items()},
        }
    )


# -- columns ------------------------------------------------------------------------------


def _origin_type(name: str) -> Any:
    import pyarrow as pa

    return pa.int64() if name in ("batch", "request") else pa.string()


def _struct(kind: type) -> Any:
    import pyarrow as pa

    types = {f.name: pa.float64() if kind is Score and f.name == "value" else pa.string()
             for f in fields(kind)}  # fmt: skip
    return pa.struct(list(types.items()))


def _columns(samples: Sequence[Sample], shape: Shape) -> Iterator[Any]:
    import pyarrow as pa

    target = schema(shape)
    for name in _CONVERSATION[shape]:
        yield _struct_lists((_messages(s, name) for s in samples), Message)
    for name in _TEXTS:
        # Members of a StrEnum are written as strings.
        yield pa.array([getattr(s, name) for s in samples], pa.string())
    for name in _LISTS:
        values = [getattr(s, name) for s in samples]
        flat = pa.array([*itertools.chain.from_iterable(values)], pa.string())
        yield pa.ListArray.from_arrays(_offsets(values), flat)
    origins = [s.origin for s in samples]
    children = []
    for f in target.field("origin").type:
        values = [getattr(o, f.name) for o in origins]
        if f.name == "parents":
            flat = pa.array([*itertools.chain.from_iterable(values)], pa.string())
            children.append(pa.ListArray.from_arrays(_offsets(values), flat))
        else:
            children.append(pa.array(values, f.type))
    yield pa.StructArray.from_arrays(children, fields=list(target.field("origin").type))
    for name, kind in _STRUCTS.items():
        yield _struct_lists((getattr(s, name) for s in samples), kind)


def _messages(sample: Sample, column: str) -> tuple[Message, ...]:
    if column == "messages":
        return sample.messages
    if column == "prompt":
        return sample.prompt
    answer = sample.output if column == "chosen" else sample.rejected_output
    # A candidate for a preference can be rejected before it has a second answer.
    return () if answer is None else (Message("assistant", answer),)


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


def _structs(column: Any, kind: type) -> list[tuple[Any, ...]]:
    def objects(values: Any) -> list[Any]:
        children = [values.field(f.name).to_pylist() for f in fields(kind)]
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
    children = [
        _lists(column.field(f.name)) if f.name == "parents" else column.field(f.name).to_pylist()
        for f in fields(Origin)
    ]
    return [Origin(*row) for row in zip(*children, strict=True)]
