"""Stores rows in temporary files, so that they can be read back in a different order."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from instructgen.schema.arrow import samples_in, schema, table_of
from instructgen.schema.sample import Sample, Shape
from instructgen.store.files import storage

SPOOL = ".spool-"
_ROWS_AT_ONCE = 1_000


class Spool:
    """Stores numbered samples on disk, in buckets (files) that are read back one at a time.

    Args:
        folder: the folder in which a temporary folder is created. The temporary folder is
            deleted when the ``with`` block ends.
        shape: the kind of all samples, ``instructions`` or ``preferences``.
        buckets: the number of buckets, which are numbered from 0.
    """

    def __init__(self, folder: Path, shape: Shape, buckets: int = 1) -> None:
        self._folder, self._shape = folder, shape
        self._waiting: list[list[tuple[int, Sample]]] = [[] for _ in range(buckets)]
        self._writers: list[Any] = [None] * buckets

    def __enter__(self) -> Spool:
        with storage(self._folder):
            self._temporary = tempfile.TemporaryDirectory(prefix=SPOOL, dir=self._folder)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for writer in self._writers:
            if writer is not None:
                # The file is not read again, and a full disk has already raised an error.
                with suppress(OSError):
                    writer.close()
        self._temporary.cleanup()

    def add(self, bucket: int, number: int, sample: Sample) -> None:
        """Append a sample to a bucket.

        Raises:
            StorageError: the file cannot be written.
        """
        waiting = self._waiting[bucket]
        waiting.append((number, sample))
        if len(waiting) >= _ROWS_AT_ONCE:
            self._write(bucket)

    def take(self, bucket: int) -> Iterator[tuple[int, Sample]]:
        """Yield a bucket's samples in the order of their numbers, and empty the bucket."""
        import pyarrow as pa

        waiting, self._waiting[bucket] = self._waiting[bucket], []
        rows: list[tuple[int, Sample]] = []
        if self._writers[bucket] is not None:
            with storage(self._folder):
                self._writers[bucket].close()
            with pa.OSFile(self._path(bucket), "rb") as file, pa.ipc.open_stream(file) as stream:
                for batch in stream:
                    numbers: list[Any] = batch.column("number").to_pylist()
                    rows += zip(numbers, samples_in(batch), strict=True)
            self._writers[bucket] = None
            Path(self._path(bucket)).unlink()
        yield from sorted([*rows, *waiting], key=lambda row: row[0])

    def _path(self, bucket: int) -> str:
        return f"{self._temporary.name}/{bucket}"

    def _write(self, bucket: int) -> None:
        import pyarrow as pa

        numbers = [number for number, _ in self._waiting[bucket]]
        samples = [sample for _, sample in self._waiting[bucket]]
        self._waiting[bucket] = []
        with storage(self._folder):
            if self._writers[bucket] is None:
                columns = schema(self._shape, plain=False).append(pa.field("number", pa.int64()))
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                self._writers[bucket] = pa.ipc.new_stream(
                    self._path(bucket), columns, options=options
                )
            table = table_of(samples, self._shape, plain=False)
            self._writers[bucket].write_table(table.append_column("number", pa.array(numbers)))
