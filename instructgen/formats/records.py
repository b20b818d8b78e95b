"""Reads the records of a file or a Hub dataset one at a time, and continues after a bad record.

Supported file types are .jsonl, .ndjson, .json (an array, or one object per line), .csv and
.parquet. All but .parquet may be compressed as .gz or .zst. JSON lines are split at LF only, so a
U+2028 inside a text is kept. A byte-order mark and CR line ends are removed. If a JSON object
repeats a key, the last value is used. No file is loaded into memory as a whole.
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
_COMPRESSIONS = (".gz", ".zst")
_MAX_BYTES = 8 * 2**20
_MAX_BATCH_BYTES = 2**28
_MAX_GROUP_BYTES = 2**31
_CHUNK = 2**20
_BLANK_LINES = 1_000
_BOM = b"\xef\xbb\xbf"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file or of a Hub dataset.

    ``line`` is its line number. For a JSON array, a Parquet file or a Hub dataset, it is the
    position of the row, counted from 1.
    """

    line: int
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that cannot be read, and the reason why; ``line`` is defined as in `Record`."""

    line: int
    reason: str


def read_records(path: Path, split: str = "train") -> Iterator[Record | BadRecord]:
    """Yield every record of a file or of a Hub dataset, in order.

    Args:
        path: a file, or a Hub dataset as ORG/NAME if no such file exists.
        split: the split to read from a Hub dataset.

    Raises:
        InputError: if the file does not exist, has an unsupported extension, is empty, or is
            damaged so that the rest cannot be read, or if a Hub dataset cannot be read.
        ConfigError: if a Hub dataset is requested but the package ``datasets`` is not installed.
    """
    try:
        exists = path.is_file()
    except OSError:
        # Not a valid file name, for example too long.
        raise InputError("the file does not exist.", path=path, hint="Check the path.") from None
    if not exists:
        name = str(path)
        file_like = path.exists() or name.lower().endswith((*_TEXT, *_COMPRESSIONS, ".parquet"))
        if _HUB_NAME.fullmatch(name) and not name.startswith(".") and not file_like:
            yield from _hub(name, split)
            return
        problem = "the path is a folder" if path.is_dir() else "the file does not exist"
        raise InputError(f"{problem}.", path=path, hint="Pass a file or a Hub dataset ORG/NAME.")
    extension, compression = _file_type(path)
    if path.stat().st_size == 0:
        raise InputError("the file is empty.", path=path, hint="Pass a file with rows.")
    try:
        if extension == ".parquet":
            yield from _parquet(path)
            return
        with path.open("rb") as raw:
            stream = _decompressed(raw, compression)
            if extension == ".csv":
                yield from _csv(stream, path)
            else:
                yield from _json(stream, path, extension)
    except (EOFError, zlib.error, gzip.BadGzipFile, _DamagedZstd) as error:
        raise InputError(
            f"the {compression[1:]} data is damaged or incomplete ({error}).",
            path=path,
            hint="Download or copy the file again.",
        ) from error
    except OSError as error:
        raise InputError(
            f"the file cannot be read ({error.strerror or error}).",
            path=path,
            hint="Check the permissions of the file.",
        ) from error


def _file_type(path: Path) -> tuple[str, str]:
    name = path.name.lower()
    compression = next((c for c in _COMPRESSIONS if name.endswith(c)), "")
    stem = name.removesuffix(compression)
    extension = next((e for e in _TEXT if stem.endswith(e)), "")
    if not extension and not compression and name.endswith(".parquet"):
        extension = ".parquet"
    if not extension:
        raise InputError(
            "the file type is not supported.",
            path=path,
            hint=f"Use a {', '.join(_TEXT)} (optionally with .gz or .zst) or .parquet file.",
        )
    return extension, compression


class _DamagedZstd(Exception):
    pass


class _Zstd(io.RawIOBase):
    """A zstd stream, read by pyarrow because the package zstandard ignores truncated data."""

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


def _decompressed(raw: BinaryIO, compression: str) -> BinaryIO:
    if compression == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if compression == ".zst":
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
        return BadRecord(number, f"the row is not valid JSON ({error}).")
    if not isinstance(fields, dict):
        return BadRecord(number, "the row is not a JSON object.")
    return Record(number, fields)


def _array(first: bytes, stream: BinaryIO, path: Path) -> Iterator[Record | BadRecord]:
    """Yield the elements of an array, split at the commas between them and parsed one by one.

    A damaged element does not affect the others, unless it has an unclosed quote or bracket.
    """
    number, depth, quoted, element = 1, 0, False, bytearray()
    for chunk in _chunks(first, stream):
        start = 0
        for match in re.finditer(rb'\\.|["{}\[\],]', chunk, re.DOTALL):
            mark = match.group()
            if quoted:
                quoted = mark != b'"'
            elif mark == b'"':
                quoted = True
            elif mark in b"{[":
                depth += 1
            elif mark in b"}]" and depth:
                depth -= 1
            elif depth == 0 and mark in b",]":
                element += chunk[start : match.start()]
                start = match.end()
                if mark == b"," or number > 1 or element.strip():
                    yield _element(number, bytes(element))
                    number, element = number + 1, bytearray()
                if mark == b"]":
                    _check_end(number, chunk[start:] + stream.read(_CHUNK), path)
                    return
        # Keep only as much of an element as is needed to detect that it is too long.
        if len(element) <= _MAX_BYTES:
            element += chunk[start:]
    raise InputError(
        f"the JSON array is incomplete, or row {number} has an unclosed quote or bracket.",
        path=path,
        hint="Fix the file, or convert it to JSON Lines.",
    )


def _check_end(number: int, rest: bytes, path: Path) -> None:
    if number == 1:
        raise InputError("the JSON array is empty.", path=path, hint="Pass a file with rows.")
    if rest.strip():
        raise InputError(
            "there is text after the JSON array.",
            path=path,
            hint="Remove the text after the array.",
        )


def _element(number: int, text: bytes) -> Record | BadRecord:
    if len(text) > _MAX_BYTES:
        return BadRecord(number, f"the row is longer than {_MAX_BYTES // 2**20} MiB.")
    return _record(number, text)


def _chunks(first: bytes, stream: BinaryIO) -> Iterator[bytes]:
    """Yield the rest of a stream in chunks that do not end inside an escape sequence."""
    chunk = first
    while chunk:
        slashes = len(chunk) - len(chunk.rstrip(b"\\"))
        yield chunk + stream.read(1) if slashes % 2 else chunk
        chunk = stream.read(_CHUNK)


# -- CSV ----------------------------------------------------------------------------------


def _csv(stream: BinaryIO, path: Path) -> Iterator[Record | BadRecord]:
    """Yield the rows after the header; invalid UTF-8 affects only the row that contains it."""
    csv.field_size_limit(_MAX_BYTES)
    rows = csv.reader(_csv_lines(stream), strict=True)
    try:
        names = next(rows, [])
        while not names and rows.line_num < _BLANK_LINES and (row := next(rows, None)) is not None:
            names = row
        if not names:
            raise InputError("the file has no rows.", path=path, hint="Pass a file with rows.")
        _check_names(names, path)
        number = 1 + rows.line_num
        for values in rows:
            # A row can span several lines.
            number, line = 1 + rows.line_num, number
            if not values:
                continue
            if len(values) != len(names):
                reason = f"the row has {len(values)} columns; the first row has {len(names)}."
                yield BadRecord(line, reason)
            elif not all(_is_text(v) for v in values):
                yield BadRecord(line, "the row is not valid UTF-8.")
            else:
                yield Record(line, dict(zip(names, values, strict=True)))
    except csv.Error as error:
        raise InputError(
            f"the file is not valid CSV at or before line {rows.line_num} ({error}).",
            path=path,
            hint="Look for an unclosed quote or a field that is too long.",
        ) from error


def _csv_lines(stream: BinaryIO) -> Iterator[str]:
    """Yield decoded lines of limited length, with invalid UTF-8 bytes as lone surrogates."""
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
                f"two columns have the name {name[:80]!r}.",
                path=path,
                hint="Rename one of these columns.",
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
            f"the file is not valid Parquet after row {number} ({first_line(error)}).",
            path=path,
            hint="Download or copy the file again.",
        ) from error
    if not number:
        raise InputError("the file has no rows.", path=path, hint="Pass a file with rows.")


def _batch_records(batch: Any, before: int) -> Iterator[Record | BadRecord]:
    """Yield the rows of a batch; an invalid text, date or number affects only its own row."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        for index in range(batch.num_rows):
            number = before + index + 1
            try:
                (fields,) = batch.slice(index, 1).to_pylist()
                yield Record(number, fields)
            except (ValueError, OverflowError) as error:
                yield BadRecord(number, f"a value cannot be read ({str(error)[:120]}).")
        return
    yield from (Record(before + position, fields) for position, fields in enumerate(rows, start=1))


def _rows_at_once(group: Any, path: Path, number: int) -> int:
    """Return how many rows to read at once; they fit in memory even with the longest values."""
    # The sum of all columns, because each row may repeat the longest value of every column.
    size: int = sum(group.column(i).total_uncompressed_size for i in range(group.num_columns))
    if size > _MAX_GROUP_BYTES:
        raise InputError(
            f"row group {number} has {size / 2**30:.1f} GiB; the limit is "
            f"{_MAX_GROUP_BYTES // 2**30} GiB.",
            path=path,
            hint="Write the file again with smaller row groups.",
        )
    return max(1, min(256, _MAX_BATCH_BYTES // max(size, 1)))


# -- the Hub ------------------------------------------------------------------------------


def _hub(name: str, split: str) -> Iterator[Record]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise ConfigError(
            f"{name}: the package datasets, which reads from the Hub, is not installed.",
            "Run: pip install 'instructgen[hub]', or pass a file.",
        ) from None
    try:
        # datasets 4 does not run loading scripts, which are code of the dataset.
        rows = load_dataset(name, split=split, streaming=True)
        for number, fields in enumerate(rows, start=1):
            yield Record(number, dict(fields))
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{name} is not a file, and cannot be read from the Hub ({first_line(error)}).",
            hint="Check the path or the dataset name, and the option --split.",
        ) from error
