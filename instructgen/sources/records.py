"""JSON records of a file, one at a time, whatever is wrong with some of them.

Reads .jsonl, .ndjson and .json (an array, or lines), each also gzipped. Lines
are split at LF only, so U+2028 inside a text stays; a byte-order mark and CR
line ends are taken off; of a key that stands twice the last value counts.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from instructgen.errors import InputError

_EXTENSIONS = (".jsonl", ".ndjson", ".json")
_MAX_LINE_BYTES = 8 * 2**20
_MAX_ARRAY_BYTES = 2**30
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Record:
    """One JSON object and the line (or array position) it stands at, from 1."""

    line: int
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A line that is no JSON object, and why."""

    line: int
    reason: str


def read_records(path: Path) -> Iterator[Record | BadRecord]:
    """Every record of the file in order.

    Raises:
        InputError: no such file, an unknown extension, nothing in it, or damage
            that makes the rest unreadable.
    """
    name = path.name.lower()
    zipped = name.endswith(".gz")
    if not name.removesuffix(".gz").endswith(_EXTENSIONS):
        raise InputError(
            "this kind of file is not read.",
            path=path,
            hint=f"Give a {', '.join(_EXTENSIONS)} file, also with .gz.",
        )
    try:
        found = path.is_file()
    except OSError:
        # A name that no file can have.
        found = False
    if not found:
        raise InputError("no such file.", path=path, hint="Check the path.")
    if path.stat().st_size == 0:
        raise InputError("the file is empty.", path=path, hint="Give a file with one row at least.")
    try:
        with path.open("rb") as raw:
            stream: BinaryIO = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if zipped else raw
            yield from _records(stream, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"the gzip data is damaged or cut ({error}).", path=path, hint="Fetch the file again."
        ) from error
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror or error}).", path=path, hint="Check its permissions."
        ) from error


def _records(stream: BinaryIO, path: Path) -> Iterator[Record | BadRecord]:
    number, first = 1, _line(stream).removeprefix(_BOM)
    while first and not first.strip():
        number, first = number + 1, _line(stream)
    if path.name.lower().removesuffix(".gz").endswith(".json") and first.lstrip()[:1] == b"[":
        yield from _array(first + stream.read(_MAX_ARRAY_BYTES), path)
        return
    line = first
    while line:
        if len(line) > _MAX_LINE_BYTES:
            yield BadRecord(number, f"the line is longer than {_MAX_LINE_BYTES // 2**20} MiB.")
            while line and not line.endswith(b"\n"):
                line = _line(stream)
        elif line.strip():
            yield _record(number, line)
        number, line = number + 1, _line(stream)


def _line(stream: BinaryIO) -> bytes:
    return stream.readline(_MAX_LINE_BYTES + 1)


def _record(number: int, line: bytes) -> Record | BadRecord:
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return BadRecord(number, f"no valid JSON ({error}).")
    if not isinstance(fields, dict):
        return BadRecord(number, "no JSON object.")
    return Record(number, fields)


def _array(data: bytes, path: Path) -> Iterator[Record | BadRecord]:
    if len(data) > _MAX_ARRAY_BYTES:
        raise InputError(
            "a JSON array this large is not read.", path=path, hint="Turn it into JSON lines."
        )
    try:
        rows = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InputError(
            f"no valid JSON array ({error}).",
            path=path,
            hint="Mend it, or turn it into JSON lines.",
        ) from error
    for number, fields in enumerate(rows, start=1):
        if isinstance(fields, dict):
            yield Record(number, fields)
        else:
            yield BadRecord(number, "no JSON object.")
