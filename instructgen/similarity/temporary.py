"""Texts, numbers and rows in temporary files, so that a million rows need little memory.

A temporary file has no name, so nothing is left of it if the program is killed.
"""

from __future__ import annotations

import ctypes
import os
import struct
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np

from instructgen.errors import StorageError
from instructgen.similarity.blocks import Array

_BYTES_AT_ONCE = 2**20
_NUMBER = "number"


class TextFile:
    """Rows of texts in a temporary file; rows are appended, and read by their positions.

    Args:
        columns: the number of texts in each row.
        folder: the folder of the temporary file; default: the folder of the system for such files.

    Raises:
        StorageError: the file cannot be written.
    """

    def __init__(self, columns: int = 1, folder: Path | None = None) -> None:
        self._file, self._ends = _Temporary(folder), array("q", [0])
        # A row is the lengths of its texts, followed by the texts.
        self._lengths = struct.Struct(f"<{columns}I")
        # Whether any text of a column is not empty.
        self.filled = [False] * columns

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._ends) - 1

    def append(self, *texts: str) -> None:
        """Append a row. Raise StorageError if the file cannot be written."""
        data = [text.encode("utf-8", "surrogatepass") for text in texts]
        self.filled = [old or bool(new) for old, new in zip(self.filled, data, strict=True)]
        row = b"".join((self._lengths.pack(*map(len, data)), *data))
        self._file.write(row)
        self._ends.append(self._ends[-1] + len(row))

    def at(self, row: int, column: int = 0) -> str:
        """Return one text."""
        data = self._file.read(self._ends[row], self._ends[row + 1])
        lengths = self._lengths.unpack_from(data)
        begin = self._lengths.size + sum(lengths[:column])
        return data[begin : begin + lengths[column]].decode("utf-8", "surrogatepass")


class StoredTexts(Protocol):
    """Rows of texts that are not in memory, such as a `TextFile`."""

    def at(self, row: int, column: int = 0) -> str:
        """Return one text."""


class Column(Sequence[str]):
    """A column of stored texts, with the rows in any order, as a sequence of texts."""

    def __init__(self, file: StoredTexts, rows: Array, column: int = 0) -> None:
        self._file, self._rows, self._column = file, rows, column

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> list[str]: ...

    def __getitem__(self, place: int | slice) -> str | list[str]:
        """Return one text, or the list of texts of a slice."""
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        return self._file.at(int(self._rows[place]), self._column)


class NumberFile:
    """An array of numbers in a temporary file that is only appended to, and then read.

    Args:
        dtype: the type of the numbers.
        folder: as for `TextFile`.

    Raises:
        StorageError: the file cannot be written.
    """

    def __init__(self, dtype: type[np.generic], folder: Path | None = None) -> None:
        self._file, self._dtype = _Temporary(folder), np.dtype(dtype)

    def extend(self, numbers: Array) -> None:
        """Append numbers. Raise StorageError if the file cannot be written."""
        self._file.write(np.ascontiguousarray(numbers, self._dtype).tobytes())

    def read(self, begin: int, end: int) -> Array:
        """Return a copy of the numbers at these positions."""
        size = self._dtype.itemsize
        return np.frombuffer(self._file.read(begin * size, end * size), self._dtype)


class RowFile:
    """Numbered rows in a temporary file, as an Arrow stream.

    Args:
        folder: as for `TextFile`.

    Raises:
        StorageError: the file cannot be written.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = _Temporary(folder)
        self._stream: Any = None

    def add(self, numbers: Array, rows: Any) -> None:
        """Append the rows of an Arrow table. All tables must have the same schema.

        Raises:
            StorageError: the file cannot be written.
        """
        import pyarrow as pa

        table = rows.append_column(_NUMBER, pa.array(numbers, pa.int64()))
        with self._file.errors():
            if self._stream is None:
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                self._stream = pa.ipc.new_stream(self._file.file, table.schema, options=options)
            self._stream.write_table(table)

    def tables(self) -> Iterator[tuple[Array, Any]]:
        """Yield the numbers and the rows of each part that was added, in order.

        No rows can be added afterwards, but the file can be read again.
        """
        import pyarrow as pa

        if self._stream is None:
            return
        with self._file.errors():
            self._stream.close()
        # A descriptor of its own, because pyarrow closes what it has read.
        with os.fdopen(os.dup(self._file.flushed().fileno()), "rb") as file:
            file.seek(0)
            for batch in pa.ipc.open_stream(file):
                table = pa.Table.from_batches([batch])
                yield table[_NUMBER].to_numpy(), table.drop_columns([_NUMBER])


def release_freed() -> None:
    """Return memory that was freed to the system; the allocators keep it for later otherwise."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    libc = ctypes.CDLL(None)
    # Only the C library of GNU has it.
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


class _Temporary:
    """A temporary file without a name; what is written is collected into larger pieces."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = Path(tempfile.gettempdir()) if folder is None else folder
        self._waiting = False
        with self.errors():
            # It is closed, and so removed, when nothing refers to it any more.
            self.file: Any = tempfile.TemporaryFile(dir=folder, buffering=_BYTES_AT_ONCE)  # noqa: SIM115

    def write(self, data: bytes) -> None:
        self._waiting = True
        with self.errors():
            self.file.write(data)

    def flushed(self) -> Any:
        """Return the file, with all that was written in it."""
        with self.errors():
            self.file.flush()
        return self.file

    def read(self, begin: int, end: int) -> bytes:
        if self._waiting:
            self.flushed()
            self._waiting = False
        # Not with `errors`, because this is called for each text.
        try:
            return os.pread(self.file.fileno(), end - begin, begin)
        except OSError as error:
            raise self._unusable(error) from error

    @contextmanager
    def errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> StorageError:
        return StorageError(
            f"a temporary file in {self._folder} cannot be used ({error.strerror or error}).",
            "Make room on the disk.",
        )
