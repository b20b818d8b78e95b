"""Rows parked on disk between two passes over a dataset; nothing of it outlives the command."""

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
    """Samples with a number each, in buckets that are read back one at a time.

    Args:
        folder: on whose disk they are parked.
        shape: of all the samples.
        buckets: how many there are.
    """

    def __init__(self, folder: Path, shape: Shape, buckets: int = 1) -> None:
        self._folder, self._shape = folder, shape
        self._waiting: list[list[tuple[int, Sample]]] = [[] for _ in range(buckets)]
        self._writers: list[Any] = [None] * buckets

    def __enter__(self) -> Spool:
        with storage(self._folder):
            self._parked = tempfile.TemporaryDirectory(prefix=SPOOL, dir=self._folder)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for writer in self._writers:
            if writer is not None:
                # Nothing of it is read again: a disk that is full has been told of before.
                with suppress(OSError):
                    writer.close()
        self._parked.cleanup()

    def add(self, bucket: int, number: int, sample: Sample) -> None:
        """Park a sample.

        Raises:
            StorageError: the disk refuses.
        """
        waiting = self._waiting[bucket]
        waiting.append((number, sample))
        if len(waiting) >= _ROWS_AT_ONCE:
            self._write(bucket)

    def take(self, bucket: int) -> Iterator[tuple[int, Sample]]:
        """What a bucket holds, in the order of the numbers; nothing is added to it after this."""
        import pyarrow as pa

        waiting, self._waiting[bucket] = self._waiting[bucket], []
        found: list[tuple[int, Sample]] = []
        if self._writers[bucket] is not None:
            with storage(self._folder):
                self._writers[bucket].close()
            with pa.OSFile(self._path(bucket), "rb") as file, pa.ipc.open_stream(file) as stream:
                for batch in stream:
                    numbers: list[Any] = batch.column("number").to_pylist()
                    found += zip(numbers, samples_in(batch), strict=True)
            self._writers[bucket] = None
            Path(self._path(bucket)).unlink()
        yield from sorted([*found, *waiting], key=lambda row: row[0])

    def _path(self, bucket: int) -> str:
        return f"{self._parked.name}/{bucket}"

    def _write(self, bucket: int) -> None:
        import pyarrow as pa

        numbers = [number for number, _ in self._waiting[bucket]]
        samples = [sample for _, sample in self._waiting[bucket]]
        self._waiting[bucket] = []
        with storage(self._folder):
            if self._writers[bucket] is None:
                columns = schema(self._shape).append(pa.field("number", pa.int64()))
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                self._writers[bucket] = pa.ipc.new_stream(
                    self._path(bucket), columns, options=options
                )
            table = table_of(samples, self._shape)
            self._writers[bucket].write_table(table.append_column("number", pa.array(numbers)))
