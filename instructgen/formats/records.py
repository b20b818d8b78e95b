"""Reads the records of a file or a Hub dataset one at a time, and continues after a bad record.

Supported are JSON Lines, JSON, CSV with any delimiter, Parquet and Arrow files; text files may be
compressed as .gz or .zst. JSON lines are split at LF only, so a U+2028 inside a text is kept. A
byte-order mark and CR line ends are removed. If a JSON object repeats a key, the last value is
used. Only a JSON object that spans several lines is loaded into memory as a whole.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from instructgen.config import is_deeper
from instructgen.errors import ConfigError, InputError, first_line
from instructgen.formats.fields import MAX_DEPTH
from instructgen.formats.sizes import expanded_size, group_size, message_size

_JSON = (".jsonl", ".ndjson", ".json")
_TABLES = (".csv", ".tsv", ".txt")
_TEXT = (*_JSON, *_TABLES)
_BINARY = (".parquet", ".arrow")
_COMPRESSIONS = (".gz", ".zst")
_MAX_BYTES = 8 * 2**20
_MAX_BATCH_BYTES = 2**26
_MAX_GROUP_BYTES = 2**31
_MAX_COLUMNS = 10_000
_ROWS_AT_ONCE = 256
# A file with more rows has columns without contents.
_MAX_ROWS_PER_BYTE = 1_000
# An unknown time zone is a KeyError.
_BAD_VALUES = (ValueError, OverflowError, KeyError)
# A file with more open brackets than the limit of orjson is not read any further.
_MAX_OPEN = 1_024
_CHUNK = 2**20
_BLANK_LINES = 1_000
# White space, and the character that ends a text file in DOS.
_BLANK = b" \t\r\n\v\f\x1a"
_BOM = b"\xef\xbb\xbf"
_MAX_OBJECT = 2**30
_DELIMITERS = ",;\t|"
# Fields whose value is a list of objects that belong to one row.
_ROW_LISTS = frozenset(
    {"messages", "conversations", "conversation", "chosen", "rejected", "instances", "completions"}
    | {"dialog", "dialogue", "context", "instruction", "question", "output", "answer", "response"}
    | {"turns", "history", "tools", "prompt", "completion", "functions"}
    | {"chosen_messages", "rejected_messages"}
)
# The beginning of a JSON object that contains rows in a list under a key.
_WRAPPED = re.compile(rb'"(\w{1,40})"\s*:\s*(?:\[\s*\{|\{\s*"0"\s*:)')
_SPACE = re.compile(r"[\s,]*")
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


class EmptyFileError(InputError):
    """A file has no rows. Of several files, such a one is skipped."""


def is_supported(path: Path) -> bool:
    """Return whether the name of a file has an extension that `read_records` supports."""
    name = path.name.lower()
    stem = name.removesuffix(".gz").removesuffix(".zst")
    return stem.endswith(_TEXT) or name.endswith(_BINARY)


def read_records(
    path: Path, split: str = "train", encoding: str | None = None
) -> Iterator[Record | BadRecord]:
    """Yield every record of a file or of a Hub dataset, in order.

    Args:
        path: a file, or a Hub dataset as ORG/NAME if no such file exists.
        split: the split to read from a Hub dataset.
        encoding: the character encoding of a text file; default: UTF-8, or UTF-16 if the file
            begins with its byte-order mark.

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
        file_like = path.exists() or name.lower().endswith((*_TEXT, *_COMPRESSIONS, *_BINARY))
        if _HUB_NAME.fullmatch(name) and not name.startswith(".") and not file_like:
            yield from _hub(name, split)
            return
        problem = "the path is a folder" if path.is_dir() else "the file does not exist"
        raise InputError(f"{problem}.", path=path, hint="Pass a file or a Hub dataset ORG/NAME.")
    extension, compression = _file_type(path)
    if path.stat().st_size == 0:
        raise EmptyFileError("the file is empty.", path=path, hint="Pass a file with rows.")
    try:
        if extension in _BINARY:
            yield from _parquet(path) if extension == ".parquet" else _arrow(path)
            return
        with path.open("rb") as raw:
            stream = _utf8(_decompressed(raw, compression), encoding)
            if extension in _TABLES:
                yield from _csv(stream, path)
            else:
                yield from _json(stream, path, split)
    except (EOFError, zlib.error, gzip.BadGzipFile, _DamagedZstd) as error:
        raise InputError(
            f"the {compression[1:]} data is damaged or incomplete ({error}).",
            path=path,
            hint="Download or copy the file again.",
        ) from error
    except UnicodeError as error:
        raise InputError(
            f"the file is not a text in the encoding {encoding} ({first_line(error)}).",
            path=path,
            hint="Pass the encoding of the file, such as --encoding=cp1252.",
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
    if not extension and not compression:
        extension = next((e for e in _BINARY if name.endswith(e)), "")
    if not extension:
        raise InputError(
            "the file type is not supported.",
            path=path,
            hint="Use .jsonl, .json, .csv or .tsv (also with .gz or .zst), .parquet or .arrow.",
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


# -- character encodings --------------------------------------------------------------------


_MARK = "instructgen.invalid"


def _marked(error: UnicodeError) -> tuple[str, int]:
    """Replace invalid bytes with a character that UTF-8 does not allow: their row is rejected."""
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end


codecs.register_error(_MARK, _marked)


class _Transcoded(io.RawIOBase):
    """A stream of text in any encoding, read as UTF-8. Invalid bytes become invalid UTF-8."""

    def __init__(self, raw: BinaryIO, encoding: str) -> None:
        self._raw = raw
        self._decoder = codecs.getincrementaldecoder(encoding)(_MARK)
        self._waiting = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._waiting:
            data = self._raw.read(2**16)
            text = self._decoder.decode(data, final=not data)
            self._waiting = text.encode("utf-8", "surrogatepass")
            if not data:
                break
        size = min(len(buffer), len(self._waiting))
        buffer[:size], self._waiting = self._waiting[:size], self._waiting[size:]
        return size


def _utf8(stream: BinaryIO, encoding: str | None) -> BinaryIO:
    """Return a stream as UTF-8 text; UTF-16 is recognized by its byte-order mark or its zeros."""
    if encoding is None:
        stream = io.BufferedReader(cast(io.RawIOBase, stream), 2**16)
        start = stream.peek(4)[:4]
        if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            encoding = "utf-16"
        elif len(start) == 4 and start[1::2] == b"\0\0" and b"\0" not in start[::2]:
            encoding = "utf-16-le"
        else:
            return stream
    if not _is_text_encoding(encoding):
        raise ConfigError(
            f"--encoding={encoding}: unknown encoding.", "Use a name such as cp1252 or utf-16."
        )
    return io.BufferedReader(_Transcoded(stream, encoding), 2**16)


def _is_text_encoding(name: str) -> bool:
    """Return whether an encoding exists, and is not one of the codecs from bytes to bytes."""
    try:
        codec = codecs.lookup(name)
    except (LookupError, ValueError):
        return False
    return codec._is_text_encoding and codec.incrementaldecoder is not None


# -- JSON ---------------------------------------------------------------------------------


def _json(stream: BinaryIO, path: Path, split: str) -> Iterator[Record | BadRecord]:
    number, first = 1, _line(stream).removeprefix(_BOM)
    while first and not first.strip():
        number, first = number + 1, _line(stream)
    second, gap = _line(stream), b""
    while second and not second.strip(_BLANK):
        gap += second
        second = _line(stream)
    # A list on a line of its own is a damaged row of a JSON Lines file.
    is_row = first.endswith(b"\n") and second and not isinstance(_value(first), ValueError)
    if first.lstrip()[:1] == b"[" and not is_row:
        yield from _array(first.lstrip()[1:] + gap + second, stream, path)
        return
    if not second and isinstance(record := _record(number, first), Record):
        yield from _rows_of(record, path, split)
        return
    if second and (_is_wrapped(first) or _is_indented(first, second)):
        yield from _objects(first + gap + second, stream, number, path, split)
        return
    yield from _lines(number, first, gap, second, stream)


def _lines(
    number: int, first: bytes, gap: bytes, second: bytes, stream: BinaryIO
) -> Iterator[Record | BadRecord]:
    """Yield the records of JSON Lines whose first two lines have been read."""
    waiting = [first, *gap.splitlines(keepends=True), second]
    line = waiting.pop(0)
    while line:
        if len(line) > _MAX_BYTES:
            yield BadRecord(number, f"the line is longer than {_MAX_BYTES // 2**20} MiB.")
            while line and not line.endswith(b"\n"):
                line = waiting.pop(0) if waiting else _line(stream)
        elif line.strip(_BLANK):
            yield _record(number, line)
        number, line = number + 1, waiting.pop(0) if waiting else _line(stream)


def _objects(
    start: bytes, stream: BinaryIO, number: int, path: Path, split: str
) -> Iterator[Record | BadRecord]:
    """Yield the rows of JSON objects that span several lines: one object, or one after another."""
    data = start + stream.read(_MAX_OBJECT)
    if len(data) >= _MAX_OBJECT:
        raise InputError(
            f"a JSON object over several lines is longer than {_MAX_OBJECT // 2**20} MiB.",
            path=path,
            hint="Convert the file to JSON Lines.",
        )
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"the file is not valid UTF-8 at byte {error.start}.",
            path=path,
            hint="Pass --encoding, such as --encoding=cp1252 for a file of Windows.",
        ) from error
    records = list[Record | BadRecord]()
    at, counted, line = 0, 0, number
    while at < len(text):
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"the file is neither JSON nor JSON Lines ({first_line(error)}).",
                path=path,
                line=line,
                hint="Write one JSON object per line, or a JSON array.",
            ) from error
        records.append(_object(line, value))
        at = cast(re.Match[str], _SPACE.match(text, at)).end()
    if len(records) == 1 and isinstance(records[0], Record):
        yield from _rows_of(records[0], path, split)
    else:
        yield from records


def _rows_of(record: Record, path: Path, split: str) -> Iterator[Record | BadRecord]:
    """Yield the rows in the only object of a file: a list under a key, columns, or one row."""
    fields = record.fields
    lists = {
        name: value
        for name, value in fields.items()
        if isinstance(value, list) and value and isinstance(value[0], dict)
    }
    if lists and not fields.keys() & _ROW_LISTS:
        name = split if split in lists else next(iter(lists))
        if len(lists) > 1 and split not in lists:
            raise InputError(
                f"the file has lists of rows under several keys: {', '.join(lists)}.",
                path=path,
                hint="Pass --split=KEY to read one of them.",
            )
        for number, row in enumerate(lists[name], start=1):
            inner = row.get("row") if isinstance(row, dict) else None
            # The viewer of the Hugging Face Hub returns {"row_idx": ..., "row": {...}}.
            row = inner if isinstance(inner, dict) and "row_idx" in row else row
            is_row = isinstance(row, dict)
            yield Record(number, row) if is_row else BadRecord(number, "the row is not an object.")
        return
    columns = _columns_in(fields)
    if columns:
        for number, values in enumerate(zip(*columns, strict=True), start=1):
            yield Record(number, dict(zip(fields, values, strict=True)))
        return
    yield record


def _line(stream: BinaryIO) -> bytes:
    return stream.readline(_MAX_BYTES + 1)


def _columns_in(fields: dict[str, Any]) -> list[list[Any]]:
    """Return the columns of an object that consists of columns, or an empty list.

    A column is a list of scalars, or an object whose keys are row numbers, as pandas writes it.
    """
    columns = list(fields.values())
    if all(isinstance(c, dict) and c.keys() == columns[0].keys() for c in columns):
        columns = [list(column.values()) for column in columns]
    scalar = (str, int, float, type(None))
    is_table = len(columns) > 1 and all(
        isinstance(c, list) and len(c) == len(columns[0]) and all(isinstance(v, scalar) for v in c)
        for c in columns
    )
    return columns if is_table else []


# NaN and infinite numbers, which Python writes but JSON does not allow, are missing values.
_DECODER = json.JSONDecoder(parse_constant=lambda _: None)


def _is_wrapped(first: bytes) -> bool:
    """Return whether a long first line is the beginning of an object with rows under a key."""
    if len(first) <= _MAX_BYTES or first.lstrip()[:1] != b"{":
        return False
    match = _WRAPPED.search(first, 0, 2**16)
    # Columns of pandas have the row number as key, and the names of columns as names.
    is_column = match is not None and match[0].endswith(b":")
    return match is not None and (is_column or match[1].decode() not in _ROW_LISTS)


def _is_indented(first: bytes, second: bytes) -> bool:
    """Return whether the first two lines belong to one JSON object that spans several lines."""
    # The lines of a JSON Lines file begin with a brace, those of an indented object do not.
    starts = first.lstrip()[:1] == b"{" and second.lstrip()[:1] not in (b"{", b"[")
    return starts and first.endswith(b"\n") and isinstance(_value(first), ValueError)


def _record(number: int, text: bytes) -> Record | BadRecord:
    fields = _value(text)
    if isinstance(fields, ValueError):
        return BadRecord(number, f"the row is not valid JSON ({fields}).")
    # A text with few brackets cannot be deep.
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH and isinstance(fields, dict):
        return Record(number, fields)
    return _object(number, fields)


def _object(number: int, value: Any) -> Record | BadRecord:
    if not isinstance(value, dict):
        return BadRecord(number, "the row is not a JSON object.")
    if is_deeper(value, MAX_DEPTH):
        return BadRecord(number, f"the row is nested deeper than {MAX_DEPTH} levels.")
    return Record(number, value)


def _value(text: bytes) -> Any:
    """Return the value of a JSON text, or the error if it is not valid."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        try:
            return _DECODER.decode(text.decode())
        except (ValueError, RecursionError):
            return error


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
                if depth > _MAX_OPEN:
                    raise InputError(
                        f"row {number} is nested deeper than {_MAX_OPEN:,} levels.", path=path
                    )
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
        raise EmptyFileError("the JSON array is empty.", path=path, hint="Pass a file with rows.")
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
    lines = _csv_lines(stream)
    try:
        yield from _csv_rows(lines, path)
    except csv.Error as error:
        raise _not_csv(f"({error})", path) from error


def _not_csv(reason: str, path: Path) -> InputError:
    hint = "Look for an unclosed quote or a field that is too long."
    return InputError(f"the file is not valid CSV {reason}.", path=path, hint=hint)


def _csv_rows(lines: Iterator[str], path: Path) -> Iterator[Record | BadRecord]:
    blank, header = 0, next(lines, "")
    while header and not header.strip() and blank < _BLANK_LINES:
        blank, header = blank + 1, next(lines, "")
    stated = re.fullmatch(r"sep=(.)\s*", header)
    if stated:
        # Excel states the delimiter in the first line.
        blank, header = blank + 1, next(lines, "")
    unquoted = re.sub(r'"[^"]*"', "", header)
    delimiter = stated[1] if stated else max(_DELIMITERS, key=unquoted.count)
    # Spaces after each delimiter of the header are not part of the names and values.
    spaced = all(part.startswith(" ") for part in header.split(delimiter)[1:])
    rows = csv.reader(
        chain([header], lines), strict=True, delimiter=delimiter, skipinitialspace=spaced
    )
    try:
        names = [name.strip() for name in next(rows, [])]
        if not any(names):
            raise EmptyFileError("the file has no rows.", path=path, hint="Pass a file with rows.")
        while not names[-1]:
            names.pop()
        _check_names(names, path)
        number = 1 + blank + rows.line_num
        for values in rows:
            # A row can span several lines.
            number, line = 1 + blank + rows.line_num, number
            if values:
                yield _csv_record(line, names, values)
    except csv.Error as error:
        place = f"at or before line {blank + rows.line_num} ({error})"
        raise _not_csv(place, path) from error


def _csv_record(line: int, names: list[str], values: list[str]) -> Record | BadRecord:
    while len(values) > len(names) and not values[-1].strip():
        # Spreadsheets write delimiters after the last column.
        values.pop()
    if len(values) != len(names):
        return BadRecord(
            line, f"the row has {len(values)} columns; the first row has {len(names)}."
        )
    if not all(_is_text(v) for v in values):
        return BadRecord(
            line, "the row is not valid UTF-8; for a file of Windows, pass --encoding=cp1252."
        )
    return Record(line, dict(zip(names, values, strict=True)))


def _csv_lines(stream: BinaryIO) -> Iterator[str]:
    """Yield decoded lines of limited length, with invalid UTF-8 bytes as lone surrogates."""
    line = _line(stream).removeprefix(_BOM)
    while line:
        if len(line) > _MAX_BYTES:
            raise csv.Error(f"a line is longer than {_MAX_BYTES // 2**20} MiB")
        yield line.decode("utf-8", "surrogateescape")
        line = _line(stream)


def _check_names(names: list[str], path: Path) -> None:
    if len(names) > _MAX_COLUMNS:
        raise InputError(
            f"the file has {len(names):,} columns; the limit is {_MAX_COLUMNS:,}.",
            path=path,
            hint="Remove the columns that are not needed.",
        )
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(
            f"two columns have the name {twice[0][:80]!r}.",
            path=path,
            hint="Rename one of these columns.",
        )


def _is_text(value: str) -> bool:
    return value.isascii() or not any("\udc80" <= c <= "\udcff" for c in value)


# -- Parquet and Arrow --------------------------------------------------------------------


def _parquet(path: Path) -> Iterator[Record | BadRecord]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _check_names(file.schema_arrow.names, path)
            _check_rows(file.metadata.num_rows, path)
            for group in range(file.metadata.num_row_groups):
                rows = rows_at_once(file.metadata.row_group(group), path, group, _ROWS_AT_ONCE)
                for batch in file.iter_batches(rows, row_groups=[group]):
                    for record in _batch_records(batch, number):
                        number += 1
                        yield record
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged_table("Parquet", path, number, error) from error
    if not number:
        raise EmptyFileError("the file has no rows.", path=path, hint="Pass a file with rows.")


def _damaged_table(kind: str, path: Path, number: int, error: Exception) -> InputError:
    return InputError(
        f"the file is not valid {kind} after row {number} ({first_line(error)}).",
        path=path,
        hint="Download the file again, or convert it to JSON Lines.",
    )


def _check_rows(rows: int, path: Path) -> None:
    """Check a number of rows that a file states: rows without contents need no space in it."""
    size = path.stat().st_size
    if rows > _MAX_ROWS_PER_BYTE * size:
        raise InputError(
            f"the file states that it has {rows:,} rows, but has only {size:,} bytes.",
            path=path,
            hint="Download or copy the file again.",
        )


def _batch_records(batch: Any, before: int) -> Iterator[Record | BadRecord]:
    """Yield the rows of a batch, as many at once as fit in memory if all their texts are copied."""
    start = 0
    while start < batch.num_rows:
        rows = batch.slice(start, _ROWS_AT_ONCE)
        while (size := expanded_size(rows)) > _MAX_BATCH_BYTES and rows.num_rows > 1:
            rows = rows.slice(0, rows.num_rows // 2)
        number = before + start + 1
        if size > _MAX_BATCH_BYTES:
            yield BadRecord(number, f"the row is longer than {_MAX_BATCH_BYTES // 2**20} MiB.")
        else:
            yield from _rows_in(rows, number)
        start += rows.num_rows


def _rows_in(batch: Any, number: int) -> Iterator[Record | BadRecord]:
    """Yield the rows of a batch; an invalid text, date or number affects only its own row."""
    try:
        for position, fields in enumerate(batch.to_pylist()):
            yield Record(number + position, _without_nulls(fields))
    except _BAD_VALUES as error:
        if batch.num_rows == 1:
            yield BadRecord(number, f"a value cannot be read ({str(error)[:120]}).")
            return
        for index in range(batch.num_rows):
            yield from _rows_in(batch.slice(index, 1), number + index)


def _without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    """Remove null values inside of columns.

    Arrow gives every object the keys of all objects in the column. So a call of a tool would get
    the arguments of all other calls, with null values.

    Raises:
        ValueError: the row is nested too deep.
    """

    def pruned(value: Any, depth: int = 2) -> Any:
        if not isinstance(value, list | dict):
            return value
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, list):
            return [pruned(v, depth + 1) for v in value]
        return {k: pruned(v, depth + 1) for k, v in value.items() if v is not None}

    return {name: pruned(value) for name, value in fields.items()}


def rows_at_once(group: Any, path: Path, number: int, most: int) -> int:
    """Return how many rows of a group of a Parquet file to read at once, at most ``most``.

    The rows fit in memory even if each of them repeats the longest value of every column.

    Raises:
        InputError: the group is too large, or the metadata of the file is damaged.
    """
    try:
        size = group_size(path, number)
        if size.rows != group.num_rows:
            raise ValueError("the file was replaced while it was read")
    except (OSError, ValueError) as error:
        raise _damaged_table("Parquet", path, 0, error) from error
    if size.total > _MAX_GROUP_BYTES:
        raise InputError(
            f"row group {number} has {size.total / 2**30:.1f} GiB; the limit is "
            f"{_MAX_GROUP_BYTES // 2**30} GiB.",
            path=path,
            hint="Write the file again with smaller row groups.",
        )
    return max(1, min(most, int(_MAX_BATCH_BYTES // max(size.repeated, 1))))


def _arrow(path: Path) -> Iterator[Record | BadRecord]:
    """Yield the rows of an Arrow file, in the stream format of `datasets` or the file format."""
    import pyarrow as pa

    number = 0
    try:
        with pa.OSFile(str(path), "rb") as source:
            # The file format is a stream after these bytes, with an index that is not needed.
            source.seek(8 if source.read(6) == b"ARROW1" else 0)
            reader = pa.ipc.open_stream(_Messages(source, path))
            _check_names(reader.schema.names, path)
            for batch in reader:
                _check_rows(number + batch.num_rows, path)
                batch.validate(full=True)
                for record in _batch_records(batch, number):
                    number += 1
                    yield record
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged_table("Arrow", path, number, error) from error
    if not number:
        raise EmptyFileError("the file has no rows.", path=path, hint="Pass a file with rows.")


class _Messages(io.RawIOBase):
    """An Arrow stream from which only messages of limited size are read."""

    def __init__(self, source: Any, path: Path) -> None:
        import pyarrow as pa

        self._messages = pa.ipc.MessageReader.open_stream(source)
        self._waiting, self._path = memoryview(b""), path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._waiting and (message := next(self._messages, None)) is not None:
            self._check(message)
            self._waiting = memoryview(message.serialize())
        size = min(len(buffer), len(self._waiting))
        buffer[:size], self._waiting = self._waiting[:size], self._waiting[size:]
        return size

    def _check(self, message: Any) -> None:
        size = message_size(message)
        if size > _MAX_GROUP_BYTES:
            raise InputError(
                f"a record batch has {size / 2**30:.1f} GiB; the limit is "
                f"{_MAX_GROUP_BYTES // 2**30} GiB.",
                path=self._path,
                hint="Write the file again with smaller batches.",
            )


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
            yield Record(number, _without_nulls(dict(fields)))
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{name} is not a file, and cannot be read from the Hub ({first_line(error)}).",
            hint="Check the path or the dataset name, and the option --split.",
        ) from error
