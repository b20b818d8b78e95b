"""Checks that tables read from a dataset have the columns and values that its rows need.

The digests of a dataset show that no file was changed, but not who wrote them: a dataset of
somebody else can contain anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from instructgen.schema.arrow import CONVERSATION, schema
from instructgen.schema.messages import Message
from instructgen.schema.sample import Kind, Shape

# Columns that datasets of earlier formats do not have.
_LATER = {"split", "language_confidence", "filter_values", "edits", "labels"}
# Values that may be missing.
_OPTIONAL = {
    *("split", "kind", "category", "language_confidence", "tools", "score", "nearest", "detail"),
    "page",
    *("origin.model", "origin.run", "origin.draft", "origin.batch", "origin.request"),
    *("origin.prompt_sha256", "origin.record", "origin.group", "scores.value", "scores.error"),
}


def check_columns(found: Any, shape: Shape, *, rejected: bool) -> None:
    """Check the Arrow schema of a Parquet file of a dataset.

    Raises:
        ValueError: a column is missing, occurs twice or has another type; the message names it.
    """
    if len(set(found.names)) < len(found.names):
        raise ValueError("a column occurs twice")
    for field in schema(shape, rejected=rejected, plain="tools" not in found.names):
        if field.name not in found.names:
            if field.name not in _LATER:
                raise ValueError(f"the column {field.name} is missing")
            continue
        types = {child.name: child.type for child in _children(field.type)}
        # The origin of a row had fewer fields, and one with another name, in earlier formats.
        types["batch"] = types.get("draft")
        type_ = found.field(field.name).type
        children = {child.name: child.type for child in _children(type_)}
        same = field.type == type_ or (
            field.name == "origin"
            and children.keys() <= types.keys()
            and {"method", "parents"} <= children.keys()
            and all(types[name] == kind for name, kind in children.items())
        )
        if not same:
            raise ValueError(f"the column {field.name} has the type {type_}, not {field.type}")


def check_rows(batch: Any, shape: Shape, *, rejected: bool) -> None:
    """Check the rows of a batch whose columns were checked; it may have only some of the columns.

    Raises:
        ValueError: a value is missing, is not valid UTF-8 or not what the column must contain.
    """
    batch.validate(full=True)
    for name in batch.schema.names:
        for path in _missing(batch.column(name), name):
            if path not in _OPTIONAL:
                raise ValueError(f"a value is missing in the column {path}")
    if "kind" in batch.schema.names:
        kinds = set(batch.column("kind").unique().to_pylist()) - {None, *Kind}
        if kinds:
            raise ValueError(f"the column kind contains {min(kinds)!r}")
    for name in CONVERSATION[shape]:
        if name in batch.schema.names:
            _check_messages(batch.column(name), name, rejected=rejected)
    if "tools" in batch.schema.names:
        for text in _storage(batch.column("tools")).drop_null().to_pylist():
            if not isinstance(json.loads(text), list):
                raise ValueError("a value of the column tools is not a list")


def _check_messages(column: Any, name: str, *, rejected: bool) -> None:
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    # A candidate for a preference can be rejected before it has a second answer.
    if (not rejected or name != "rejected") and (lengths == 0).any():
        raise ValueError(f"a list of messages in the column {name} is empty")
    values = column.flatten()
    if hasattr(values.type, "storage_type"):
        roles = [_role(text) for text in _storage(values).to_pylist()]
    else:
        roles = values.field("role").to_pylist()
    if name in ("messages", "prompt") and len(lengths):
        is_user = np.array([role == "user" for role in roles], np.int64)
        ends = np.cumsum(lengths)
        if name == "messages":
            # The last message is the answer.
            is_user[ends - 1] = 0
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(is_user)])
        if (before[ends] == before[ends - lengths]).any():
            raise ValueError(f"a row has no message of the user in the column {name}")


def _role(text: str) -> str:
    """Return the role of a message in JSON; raise ValueError if it is not a valid message."""
    try:
        message = Message.of(json.loads(text))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"a message is not valid ({error!r})") from None
    texts = (message.role, message.content, message.reasoning_content, message.name)
    calls = [(call.name, call.arguments, call.id) for call in message.tool_calls]
    if not all(isinstance(t, str) for t in (*texts, message.tool_call_id, *sum(calls, ()))):
        raise ValueError("a message has a field that is not text")
    for call in message.tool_calls:
        json.loads(call.arguments)
    return message.role


def _missing(array: Any, path: str) -> Iterator[str]:
    """Yield the paths of all columns and nested columns in which a value is null."""
    import pyarrow as pa

    if array.null_count:
        yield path
    if pa.types.is_struct(array.type):
        for child in _children(array.type):
            yield from _missing(array.field(child.name), f"{path}.{child.name}")
    elif pa.types.is_list(array.type):
        yield from _missing(array.flatten(), path)


def _children(type_: Any) -> list[Any]:
    import pyarrow as pa

    inner = type_.value_type if pa.types.is_list(type_) else type_
    return list(inner) if pa.types.is_struct(inner) else []


def _storage(array: Any) -> Any:
    return getattr(array, "storage", array)
