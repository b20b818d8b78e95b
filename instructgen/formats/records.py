"""Records of a file or of a dataset on the Hub, one at a time, whatever is wrong with some.

Reads .jsonl, .ndjson, .json (an array, or lines), .csv and .parquet; text also
as .gz or .zst. JSON lines are split at LF only, so U+2028 inside a text stays; a
byte-order mark and CR line ends are taken off; of a key that stands twice the
last value counts. No file is held in memory as a whole.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from instructgen.errors import ConfigError, InputError, first_line

_TEXT = (".jsonl", ".ndjson", ".json", ".csv")
_ZIPPED = (".gz", ".zst")
_MAX_BYTES = 8 * 2**20
_MAX_BATCH_BYTES = 2**28
_MAX_GROUP_BYTES = 2**31
_CHUNK = 2**20
_BLANK_LINES = 1_000
_BOM = b"\xef\xbb\xbf"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Record:
    """One object and the line (or row, or array position) it stands at, from 1."""

    line: int
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A line that is no object, and why."""

    line: int
    reason: str


def read_records(path: Path, split: str = "train") -> Iterator[Record | BadRecord]:
    """Every record of the file, or of the dataset on the Hub, in order.

    Args:
        path: a file; ORG/NAME where no such file exists is a dataset on the Hub.
        split: of a dataset on the Hub.

    Raises:
        InputError: no such file, an unknown extension, nothing in it, or damage
            that makes the rest unreadable.
        ConfigError: the Hub is asked for and the package datasets is missing.
    """
    try:
        there = path.is_file()
    except OSError:
        # A name that no file can have.
        raise InputError("no such file.", path=path, hint="Check the path.") from None
    if not there:
        name = str(path)
        file_like = path.exists() or name.lower().endswith((*_TEXT, *_ZIPPED, ".parquet"))
        if _HUB_NAME.fullmatch(name) and not name.startswith(".") and not file_like:
            yield from _hub(name, split)
            return
        kind = "a folder" if path.is_dir() else "no such file"
        raise InputError(f"{kind}.", path=path, hint="Give a file, or ORG/NAME of the Hub.")
    extension, zipped = _kind(path)
    if path.stat().st_size == 0:
        raise InputError("the file is empty.", path=path, hint="Give a file with one row at least.")
    try:
        if extension == ".parquet":
            yield from _parquet(path)
            return
        with path.open("rb") as raw:
            stream = _unzipped(raw, zipped)
            if extension == ".csv":
                yield from _csv(stream, path)
            else:
                yield from _json(stream, path, extension)
    except (EOFError, zlib.error, gzip.BadGzipFile, _DamagedZstd) as error:
        raise InputError(
            f"the {zipped[1:]} data is damaged or cut ({error}).",
            path=path,
            hint="Fetch the file again.",
        ) from error
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror or error}).", path=path, hint="Check its permissions."
        ) from error


def _kind(path: Path) -> tuple[str, str]:
    name = path.name.lower()
    zipped = next((z for z in _ZIPPED if name.endswith(z)), "")
    bare = name.removesuffix(zipped)
    extension = next((e for e in _TEXT if bare.endswith(e)), "")
    if not extension and not zipped and name.endswith(".parquet"):
        extension = ".parquet"
    if not extension:
        raise InputError(
            "this kind of file is not read.",
            path=path,
            hint=f"Give a {', '.join(_TEXT)} file, also with .gz or .zst, or .parquet.",
        )
    return extension, zipped


class _DamagedZstd(Exception):
    pass


class _Zstd(io.RawIOBase):
    """pyarrow's stream, which notices a cut where zstandard's ends quietly."""

    def __init__(self, raw: BinaryIO) -> None:
        import pyarrow as pa

        self._stream = pa.CompressedInputStream(cast(io.IOBase, raw), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except OSError as error:
            raise _DamagedZstd(error) from error
        buffer[: len(data)] = data
        return len(data)


def _unzipped(raw: BinaryIO, zipped: str) -> BinaryIO:
    if zipped == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if zipped == ".zst":
        return io.BufferedReader(_Zstd(raw), 2**16)
    return raw


# -- JSON ---------------------------------------------------------------------------------


def _json(stream: BinaryIO, path: Path, extension: str) -> Iterator[Record | BadRecord]:
    number, first = 1, _line(stream).removeprefix(_BOM)
    while first and not first.strip():
        number, first = number + 1, _line(stream)
    if extension == ".json" and first.lstrip()[:1] == b"[":
        yield from _array(first.lstrip()[1:], stream, path)
        return
    line = first
    while line:
        if len(line) > _MAX_BYTES:
            yield BadRecord(number, f"the line is longer than {_MAX_BYTES // 2**20} MiB.")
            while line and not line.endswith(b"\n"):
                line = _line(stream)
        elif line.strip():
            yield _record(number, line)
        number, line = number + 1, _line(stream)


def _line(stream: BinaryIO) -> bytes:
    return stream.readline(_MAX_BYTES + 1)


def _record(number: int, text: bytes) -> Record | BadRecord:
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return BadRecord(number, f"no valid JSON ({error}).")
    if not isinstance(fields, dict):
        return BadRecord(number, "no JSON object.")
    return Record(number, fields)


def _array(begun: bytes, stream: BinaryIO, path: Path) -> Iterator[Record | BadRecord]:
    """The elements of an array, cut at the commas between them and parsed one by one.

    A damaged element costs only itself, unless quotes or brackets do not close.
    """
    number, depth, quoted, waiting = 1, 0, False, bytearray()
    for chunk in _chunks(begun, stream):
        start = 0
        for found in re.finditer(rb'\\.|["{}\[\],]', chunk, re.DOTALL):
            mark = found.group()
            if quoted:
                quoted = mark != b'"'
            elif mark == b'"':
                quoted = True
            elif mark in b"{[":
                depth += 1
            elif mark in b"}]" and depth:
                depth -= 1
            elif depth == 0 and mark in b",]":
                waiting += chunk[start : found.start()]
                start = found.end()
                if mark == b"," or number > 1 or waiting.strip():
                    yield _element(number, bytes(waiting))
                    number, waiting = number + 1, bytearray()
                if mark == b"]":
                    _check_end(number, chunk[start:] + stream.read(_CHUNK), path)
                    return
        # Of an element that is too long only so much is kept as shows it.
        if len(waiting) <= _MAX_BYTES:
            waiting += chunk[start:]
    raise InputError(
        f"no valid JSON array: it is cut, or a quote or bracket is open, at row {number}.",
        path=path,
        hint="Mend it, or turn it into JSON lines.",
    )


def _check_end(number: int, rest: bytes, path: Path) -> None:
    if number == 1:
        raise InputError(
            "the array is empty.", path=path, hint="Give a file with one row at least."
        )
    if rest.strip():
        raise InputError("there is text after the array.", path=path, hint="Turn it into lines.")


def _element(number: int, text: bytes) -> Record | BadRecord:
    if len(text) > _MAX_BYTES:
        return BadRecord(number, f"the row is longer than {_MAX_BYTES // 2**20} MiB.")
    return _record(number, text)


def _chunks(begun: bytes, stream: BinaryIO) -> Iterator[bytes]:
    """The rest of a stream in pieces that do not end in the middle of an escape."""
    chunk = begun
    while chunk:
        slashes = len(chunk) - len(chunk.rstrip(b"\\"))
        yield chunk + stream.read(1) if slashes % 2 else chunk
        chunk = stream.read(_CHUNK)


# -- CSV ----------------------------------------------------------------------------------


def _csv(stream: BinaryIO, path: Path) -> Iterator[Record | BadRecord]:
    """Rows under the names of the first one. A byte that is no UTF-8 costs only its row."""
    csv.field_size_limit(_MAX_BYTES)
    rows = csv.reader(_csv_lines(stream), strict=True)
    try:
        names = next(rows, [])
        while not names and rows.line_num < _BLANK_LINES and (row := next(rows, None)) is not None:
            names = row
        if not names:
            raise InputError("the file has no row.", path=path, hint="Give one with rows.")
        _check_names(names, path)
        number = 1 + rows.line_num
        for values in rows:
            # A row may go over several lines.
            number, line = 1 + rows.line_num, number
            if not values:
                continue
            if len(values) != len(names):
                said = f"{len(values)} columns where the first row has {len(names)}."
                yield BadRecord(line, said)
            elif not all(_is_text(v) for v in values):
                yield BadRecord(line, "no valid UTF-8.")
            else:
                yield Record(line, dict(zip(names, values, strict=True)))
    except csv.Error as error:
        raise InputError(
            f"no valid CSV ({error}), read up to line {rows.line_num}.",
            path=path,
            hint="Look for a quote that does not close, or a text that is too long.",
        ) from error


def _csv_lines(stream: BinaryIO) -> Iterator[str]:
    """Lines as text, bytes that are no UTF-8 marked; of bounded length, as a bomb has none."""
    line = _line(stream).removeprefix(_BOM)
    while line:
        if len(line) > _MAX_BYTES:
            raise csv.Error(f"a line is longer than {_MAX_BYTES // 2**20} MiB")
        yield line.decode("utf-8", "surrogateescape")
        line = _line(stream)


def _check_names(names: list[str], path: Path) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"two columns are called {name[:80]!r}.", path=path, hint="Rename one of them."
            )


def _is_text(value: str) -> bool:
    return value.isascii() or not any("\udc80" <= c <= "\udcff" for c in value)


# -- Parquet ------------------------------------------------------------------------------


def _parquet(path: Path) -> Iterator[Record | BadRecord]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _check_names(file.schema_arrow.names, path)
            for group in range(file.metadata.num_row_groups):
                rows = _rows_at_once(file.metadata.row_group(group), path, group)
                for batch in file.iter_batches(rows, row_groups=[group]):
                    for record in _batch_records(batch, number):
                        number += 1
                        yield record
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"no valid Parquet after row {number} ({first_line(error)}).",
            path=path,
            hint="Fetch the file again.",
        ) from error
    if not number:
        raise InputError("the file has no row.", path=path, hint="Give one with rows.")


def _batch_records(batch: Any, before: int) -> Iterator[Record | BadRecord]:
    """A batch's rows; a value that is no valid text, date or number costs only its row."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        for place in range(batch.num_rows):
            number = before + place + 1
            try:
                (fields,) = batch.slice(place, 1).to_pylist()
                yield Record(number, fields)
            except (ValueError, OverflowError) as error:
                yield BadRecord(number, f"a value cannot be read ({str(error)[:120]}).")
        return
    yield from (Record(before + place, fields) for place, fields in enumerate(rows, start=1))


def _rows_at_once(group: Any, path: Path, number: int) -> int:
    """As many rows as cannot fill the memory, though each repeat a column's one long value."""
    # The sum: a row may repeat the longest value of every column.
    size: int = sum(group.column(i).total_uncompressed_size for i in range(group.num_columns))
    if size > _MAX_GROUP_BYTES:
        raise InputError(
            f"row group {number} has {size / 2**30:.1f} GiB.",
            path=path,
            hint="Write it again in smaller row groups.",
        )
    return max(1, min(256, _MAX_BATCH_BYTES // max(size, 1)))


# -- the Hub ------------------------------------------------------------------------------


def _hub(name: str, split: str) -> Iterator[Record]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise ConfigError(
            f"{name}: to read from the Hub the package datasets is needed.",
            "Run: pip install 'instructgen[hub]', or give a file.",
        ) from None
    try:
        # Loading scripts of a dataset, which are code, no longer run in datasets 4.
        rows = load_dataset(name, split=split, streaming=True)
        for number, fields in enumerate(rows, start=1):
            yield Record(number, dict(fields))
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{name}: no such file, and it cannot be read from the Hub ({first_line(error)}).",
            hint="Check the path or the name, and --split.",
        ) from error
