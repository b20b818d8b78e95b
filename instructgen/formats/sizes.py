"""Reads how much memory the contents of Parquet and Arrow files need, before they are decompressed.

pyarrow states the sizes of a Parquet file only in a way that ends the process if the statistics of
a column are damaged, and does not state those of an Arrow file. So this module reads them itself,
from the metadata in the compact protocol of Thrift (Parquet) and in Flatbuffers (Arrow).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

# Encodings in which a column is at most as large in memory as it is when it is decompressed: PLAIN,
# RLE and BIT_PACKED.
_NOT_EXPANDING = frozenset({0, 3, 4})
_FLAGS, _BYTE, _DOUBLE, _BINARY, _LISTS, _STRUCT = (1, 2), 3, 7, 8, (9, 10), 12
# The deepest part of the metadata that is read.
_MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class GroupSize:
    """The rows of a row group, its decompressed bytes, and those of columns that may repeat values.

    A dictionary of values may contain a long one that every row repeats.
    """

    rows: int
    total: int
    repeated: int


def group_size(path: Path, number: int) -> GroupSize:
    """Return the size of a row group of a Parquet file, which pyarrow has opened.

    Raises:
        OSError: the file cannot be read.
        ValueError: the metadata is damaged.
    """
    with path.open("rb") as file:
        # The metadata is followed by its length and four letters.
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, os.SEEK_END)
        sizes = _group_sizes(file.read(length))
    if number >= len(sizes):
        raise ValueError("the metadata has changed")
    return sizes[number]


@lru_cache(maxsize=4)
def _group_sizes(footer: bytes) -> tuple[GroupSize, ...]:
    reader = _Thrift(footer)
    try:
        return tuple(
            _size_of_group(reader)
            for field, kind in reader.fields()
            for _ in reader.selected(field == 4, kind)
        )
    except IndexError:
        raise ValueError("the metadata ends in the middle of a value") from None


def _size_of_group(reader: _Thrift) -> GroupSize:
    rows = total = repeated = 0
    for field, kind in reader.fields():
        if field == 3:
            rows = reader.integer()
            continue
        for _ in reader.selected(field == 1, kind):
            for inner, inner_kind in reader.fields():
                if inner != 3:
                    reader.skip(inner_kind)
                    continue
                size, repeats = _size_of_column(reader)
                total += size
                repeated += size * repeats
    return GroupSize(rows, total, repeated)


def _size_of_column(reader: _Thrift) -> tuple[int, bool]:
    size, encodings = 0, set[int]()
    for field, kind in reader.fields():
        if field == 6:
            size = reader.integer()
        else:
            encodings |= {reader.integer() for _ in reader.selected(field == 2, kind)}
    return size, not encodings <= _NOT_EXPANDING


class _Thrift:
    """Reads values of the compact protocol of Thrift one after another."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def fields(self) -> Iterator[tuple[int, int]]:
        """Yield the number and the type of each field of a struct; the caller reads the value."""
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self.integer()
            yield number, head & 15

    def items(self) -> Iterator[int]:
        """Yield the type of each element of a list; the caller reads the element."""
        head = self._byte()
        for _ in range(self._varint() if head >> 4 == 15 else head >> 4):
            yield head & 15

    def selected(self, wanted: bool, kind: int) -> Iterator[int]:
        """Yield as `items` if the list is wanted; otherwise skip the value."""
        if wanted and kind in _LISTS:
            yield from self.items()
        else:
            self.skip(kind)

    def integer(self) -> int:
        """Return an integer of any length."""
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def skip(self, kind: int, depth: int = 0) -> None:
        """Continue after a value of this type."""
        if depth > _MAX_DEPTH:
            raise ValueError("the metadata is nested too deep")
        if kind == _STRUCT:
            for _, inner in self.fields():
                self.skip(inner, depth + 1)
        elif kind in _LISTS:
            for inner in self.items():
                # In a list, a flag takes a byte of its own.
                self.skip(_BYTE if inner in _FLAGS else inner, depth + 1)
        elif kind in (_BYTE, _DOUBLE, _BINARY):
            size = {_BYTE: 1, _DOUBLE: 8}.get(kind) or self._varint()
            self._at += size
        elif kind not in _FLAGS:
            self._varint()

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
        return value | byte << shift


def message_size(message: Any) -> int:
    """Return the number of decompressed bytes of a `pyarrow.ipc.Message`.

    Raises:
        pyarrow.ArrowInvalid: the message is damaged.
    """
    import pyarrow as pa

    if message.type not in ("record batch", "dictionary"):
        return 0
    try:
        table = _field(message.metadata, _reference(message.metadata, 0), 2)
        if message.type == "dictionary":
            table = _field(message.metadata, table, 1)
        return _batch_size(message.metadata, table, message.body)
    except struct.error:
        raise pa.ArrowInvalid("a message of the file is damaged") from None


def _batch_size(data: Any, table: int, body: Any) -> int:
    """Return the size of the buffers; a compressed one begins with its size, or with -1."""
    if not _entry(data, table, 3):
        return int(body.size)
    start = _field(data, table, 2)
    (count,) = struct.unpack_from("<I", data, start)
    size = 0
    for place in range(start + 4, start + 4 + 16 * count, 16):
        offset, length = struct.unpack_from("<qq", data, place)
        if length:
            (expanded,) = struct.unpack_from("<q", body, offset)
            size += max(expanded, length)
    return size


def _field(data: Any, table: int, number: int) -> int:
    """Return the position of the table or list in a field of a Flatbuffers table."""
    return _reference(data, table + _entry(data, table, number))


def _entry(data: Any, table: int, number: int) -> int:
    """Return the position of a field in its table, or 0 if the table does not have it."""
    layout = table - struct.unpack_from("<i", data, table)[0]
    place = 4 + 2 * number
    has_place = place < struct.unpack_from("<H", data, layout)[0]
    return int(struct.unpack_from("<H", data, layout + place)[0]) if has_place else 0


def _reference(data: Any, place: int) -> int:
    return place + int(struct.unpack_from("<I", data, place)[0])


def expanded_size(values: Any) -> int:
    """Return how many bytes the rows of a batch need if each text is copied as often as it occurs.

    Raises:
        pyarrow.ArrowInvalid: a column has a type in which values are repeated in another way.
    """
    return sum(_array_size(column) for column in values.columns)


def _array_size(values: Any) -> int:
    import pyarrow.types as types

    kind = values.type
    # Each value is an object in Python.
    size = 8 * len(values)
    if hasattr(values, "storage"):
        return _array_size(values.storage)
    if types.is_struct(kind):
        return size + sum(_array_size(values.field(i)) for i in range(kind.num_fields))
    if types.is_map(kind):
        first, last = values.offsets[0].as_py(), values.offsets[-1].as_py()
        parts = (part.slice(first, last - first) for part in (values.keys, values.items))
        return size + sum(map(_array_size, parts))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return size + _array_size(values.flatten())
    return size + _bytes_of(values)


def _bytes_of(values: Any) -> int:
    """Return the bytes of the values of an array that has no inner arrays."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as types

    kind = values.type
    if types.is_string_view(kind) or types.is_binary_view(kind):
        # Each view is four numbers, of which the first is the length of the text.
        numbers = memoryview(values.buffers()[1]).cast("B").cast("i")
        lengths = numbers[4 * values.offset : 4 * (values.offset + len(values)) : 4]
        return sum(max(length, 0) for length in lengths)
    if types.is_dictionary(kind) and not types.is_primitive(kind.value_type):
        if kind.value_type not in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary()):
            raise pa.ArrowInvalid(f"the type {kind} is not supported")
        lengths = pc.binary_length(values.dictionary)
        return int(pc.sum(lengths.take(values.indices)).as_py() or 0)
    if types.is_nested(kind) or types.is_run_end_encoded(kind):
        raise pa.ArrowInvalid(f"the type {kind} is not supported")
    return int(values.nbytes)
