"""Reads and writes dataset folders: Parquet files (parts), README.md, and manifest.json.

The manifest is written last, so a folder with a manifest contains a complete dataset.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from instructgen.errors import DamagedFileError, RunError, VersionError
from instructgen.formats.records import rows_at_once
from instructgen.schema.arrow import enriched, rejected_table_of, rows_in, samples_in, table_of
from instructgen.schema.checks import check_columns, check_rows
from instructgen.schema.sample import CHARACTERS_AT_ONCE, Rejected, Sample, Shape
from instructgen.schema.statistics import RowCounts
from instructgen.store.files import (
    differences,
    digest_of_file,
    locked,
    make_folder,
    open_file,
    open_new,
    own_folder,
    read_file,
    regular_file,
    storage,
    sync_folder,
    write_record,
)
from instructgen.store.journal import is_run
from instructgen.store.records import (
    FORMAT,
    LicenseCounts,
    Manifest,
    Part,
    Provenance,
    RejectionCount,
    manifest_of,
)

_MANIFEST, _PROVENANCE = "manifest.json", "provenance.json"
# The name of provenance.json in format 2.
_OLD_PROVENANCE = "made.json"
_ROWS_PER_PART = 100_000
_ROWS_PER_GROUP = 5_000
_ROWS_READ = 1_024
# The columns that are written as dictionaries, because many rows have the same values. Others must
# not be: a reader cannot know how large they become; see `rows_at_once`.
_REPEATED = [
    *("split", "stage", "filter", "reason", "kind", "category", "language", "source", "license"),
    *("origin.method", "origin.model", "origin.run"),
    *(f"{name}.list.element" for name in ("attribution", "generators")),
    *(f"{name}.list.element.role" for name in ("messages", "prompt", "chosen", "rejected")),
    *(f"{name}.list.element.name" for name in ("scores", "labels")),
    *(f"edits.list.element.{name}" for name in ("filter", "field", "detail")),
    "filter_values.list.element.filter",
]
_PART = re.compile(r"(data|rejected)/[a-z]+-\d{5}\.parquet")
# The parts of a dataset without splits are named part-00000.parquet and so on.
WHOLE = ("part",)
SPLITS = ("train", "validation", "test")


@contextmanager
def output_folder(folder: Path, provenance: Provenance) -> Iterator[None]:
    """Create and lock the output folder of a dataset that is derived from other data.

    Args:
        folder: the output folder. It is created, with its parents, if necessary.
        provenance: the command, the digests of its inputs, and its options.

    Raises:
        RunError: the folder contains other files or a dataset with a different provenance, or
            is in use.
        StorageError: a file cannot be written.
    """
    path = folder / _PROVENANCE
    with ExitStack() as stack:
        with storage(folder):
            if not path.exists():
                _check_old(folder)
                make_folder(folder, _PROVENANCE)
            stack.enter_context(locked(folder))
            if (folder / _MANIFEST).exists():
                _check_same(folder, path, provenance)
            write_record(path, provenance.to_json())
        yield


def _check_old(folder: Path) -> None:
    """Raise VersionError for a dataset of format 2, which can be read but not written."""
    if (folder / _OLD_PROVENANCE).exists():
        raise VersionError(folder / _MANIFEST, 2, "Use another --out, or remove the folder.")


def _check_same(folder: Path, path: Path, provenance: Provenance) -> None:
    before = read_provenance(folder).to_dict()
    if changed := differences(before, provenance.to_dict()):
        raise RunError(
            f"{folder} contains a dataset made with different inputs, options or code; "
            f"changed: {', '.join(changed)}.",
            "Use another --out, or remove the folder.",
        )


def read_provenance(folder: Path) -> Provenance:
    """Read the record of the command, inputs and options that created a dataset.

    Raises:
        RunError: the folder has no such record.
        DamagedFileError: the file is damaged.
    """
    for name in (_PROVENANCE, _OLD_PROVENANCE):
        path = regular_file(folder / name)
        if path.exists():
            return Provenance.from_json(read_file(path), path)
    raise RunError(
        f"{folder} has no {_PROVENANCE} and no run.json.", f"Restore {_PROVENANCE} from a copy."
    )


def is_complete(folder: Path) -> bool:
    """Return whether a folder contains a complete dataset whose files match their digests.

    Raises:
        DamagedFileError: the manifest is damaged.
        VersionError: the dataset has an unsupported format.
    """
    manifest = read_manifest(folder)
    return (
        manifest is not None
        and (folder / "README.md").is_file()
        and all(
            regular_file(folder / part.path).exists()
            and digest_of_file(folder / part.path) == part.sha256
            for part in manifest.files
        )
    )


def digest_of(path: Path) -> str:
    """Return the SHA-256 digest of a file, or of the manifest of a dataset folder.

    The manifest contains the digests of all Parquet files, so its digest identifies the dataset.

    Raises:
        RunError: the path is a folder without a complete dataset.
    """
    return DatasetReader(path).digest if path.is_dir() else digest_of_file(path)


class Writer:
    """Writes the rows of a dataset and its manifest; created by `writing`."""

    def __init__(self, folder: Path, shape: Shape, splits: Sequence[str]) -> None:
        self.contents = RowCounts()
        self._folder, self._shape = folder, shape
        self._rows = dict.fromkeys(splits, 0)
        self._data = {
            split: _Table(
                *(folder, "data", split, shape),
                partial(table_of, split=None if split in WHOLE else split),
            )
            for split in splits
        }
        self._rejected = _Table(folder, "rejected", "part", shape, rejected_table_of)

    def keep(self, samples: Sequence[Sample], split: str = "part") -> None:
        """Append rows to a split of the dataset.

        Raises:
            ValueError: a row is for instructions and the dataset for preferences, or vice versa.
            StorageError: a file cannot be written.
        """
        if any(s.shape != self._shape for s in samples):
            raise ValueError(f"a row does not have the dataset's shape, {self._shape}")
        self.contents.add(samples)
        self._rows[split] += len(samples)
        with storage(self._folder):
            if not all(s.plain for s in samples):
                # `datasets` requires the same columns in all splits.
                for table in self._data.values():
                    table.enrich()
            self._data[split].add(samples)

    def reject(self, rejected: Sequence[Rejected]) -> None:
        """Append rejected rows. Raise StorageError if a file cannot be written."""
        self.contents.rejected += len(rejected)
        with storage(self._folder):
            if not all(r.sample.plain for r in rejected):
                self._rejected.enrich()
            self._rejected.add(rejected)

    def finish(
        self,
        card: Callable[[RowCounts], str],
        rejections: Sequence[RejectionCount],
        facts: Mapping[str, Any],
    ) -> list[Part]:
        """Close the Parquet files, then write README.md and the manifest.

        A split without rows gets no file, because the package datasets cannot open a Parquet file
        without rows. If all splits are empty, only the first split gets a file.

        Args:
            card: function that returns the text of README.md.
            rejections: the numbers of rejected rows by stage, filter and reason.
            facts: additional facts for the manifest.

        Raises:
            StorageError: a file cannot be written. Incomplete files never get their final names.
        """
        with storage(self._folder):
            filled = [split for split, rows in self._rows.items() if rows]
            contents = self.contents
            contents.splits = {name: self._rows[name] for name in filled or [*self._rows][:1]}
            data = [self._data[split] for split in contents.splits]
            parts = [p for table in (*data, self._rejected) for p in table.close()]
            _remove_others(self._folder, {p.path for p in parts})
            write_record(self._folder / "README.md", card(contents).encode(errors="replace"))
            manifest = Manifest(
                format=FORMAT,
                shape=self._shape,
                rows=contents.rows,
                rejected=contents.rejected,
                terms=LicenseCounts(contents.licenses, contents.generators, contents.attributions),
                rejections=tuple(rejections),
                facts=dict(facts),
                files=tuple(parts),
            )
            write_record(self._folder / _MANIFEST, manifest.to_json())
        return parts


@contextmanager
def writing(folder: Path, shape: Shape, splits: Sequence[str] = WHOLE) -> Iterator[Writer]:
    """Yield a writer for a dataset folder; the manifest of an earlier dataset is removed first.

    The same rows in the same order give identical files, even if the rows are passed in different
    batches.

    Raises:
        StorageError: a file cannot be written.
    """
    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MANIFEST).unlink(missing_ok=True)
        writer = Writer(folder, shape, splits)
    try:
        yield writer
    finally:
        for table in (*writer._data.values(), writer._rejected):
            table.abandon()


def write_dataset(
    folder: Path,
    samples: Iterable[Sample],
    rejected: Iterable[Rejected],
    card: Callable[[RowCounts], str],
    rejections: Sequence[RejectionCount] = (),
    facts: Mapping[str, Any] | None = None,
    shape: Shape = "instructions",
) -> list[Part]:
    """Write a complete dataset folder without splits; see `Writer.finish` for the arguments.

    Raises:
        StorageError: the files cannot be written.
    """
    with writing(folder, shape) as writer:
        for chunk in _chunks(samples):
            writer.keep(chunk)
        for chunk in _chunks(rejected):
            writer.reject(chunk)
        return writer.finish(card, rejections, facts or {})


def _chunks(rows: Iterable[Any]) -> Iterator[list[Any]]:
    rows = iter(rows)
    while chunk := list(islice(rows, _ROWS_PER_GROUP)):
        yield chunk


class _Table:
    """Writes rows to Parquet files (parts), with a limited number of rows per group and file."""

    def __init__(
        self, folder: Path, table: str, split: str, shape: Shape, to_table: Callable[..., Any]
    ) -> None:
        self._target, self._split, self._shape = folder / table, split, shape
        self._to_table, self._plain = to_table, True
        self._waiting: list[Any] = []
        self._characters = 0
        self._parts: list[Part] = []
        self._writer: Any = None
        self._file: IO[bytes]
        self._rows = 0
        own_folder(self._target).mkdir(exist_ok=True)

    def add(self, rows: Sequence[Any]) -> None:
        # The groups depend only on the rows and their order, not on how they are passed.
        for row in rows:
            self._waiting.append(row)
            self._characters += (row if isinstance(row, Sample) else row.sample).characters
            if len(self._waiting) >= _ROWS_PER_GROUP or self._characters >= CHARACTERS_AT_ONCE:
                self._write(self._waiting)
                self._waiting, self._characters = [], 0

    def enrich(self) -> None:
        """Write messages as JSON objects from now on, and rewrite the rows written so far."""
        if not self._plain:
            return
        self._plain = False
        writer, self._writer = self._writer, None
        parts, self._parts = self._parts, []
        if writer is not None:
            writer.close()
            self._file.close()
        for part in parts:
            self._rewrite(self._target.parent / part.path)
            self._end_part()
        if writer is not None:
            self._rewrite(_partial(self._path))

    def _rewrite(self, path: Path) -> None:
        import pyarrow.parquet as pq

        before = path.with_name(f".{path.name.lstrip('.')}.plain")
        path.replace(before)
        self._rows = 0
        with pq.ParquetFile(before) as file:
            for group in range(file.metadata.num_row_groups):
                self._append(enriched(file.read_row_group(group)))
        before.unlink()

    def close(self) -> list[Part]:
        if self._waiting or not (self._parts or self._rows):
            self._write(self._waiting)
            self._waiting = []
        if self._writer is not None:
            self._end_part()
        sync_folder(self._target)
        return self._parts

    def abandon(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            # An exception is already propagating, and this file never gets its final name.
            with suppress(OSError):
                writer.close()
                self._file.close()

    @property
    def _path(self) -> Path:
        return self._target / f"{self._split}-{len(self._parts):05d}.parquet"

    def _write(self, rows: Sequence[Any]) -> None:
        self._append(self._to_table(rows, self._shape, plain=self._plain))
        if self._rows >= _ROWS_PER_PART:
            self._end_part()

    def _append(self, table: Any) -> None:
        import pyarrow.parquet as pq

        if self._writer is None:
            # Without checksums, pyarrow reads a part with flipped bits without an error.
            self._file = open_new(_partial(self._path))
            self._writer = pq.ParquetWriter(
                self._file,
                table.schema,
                compression="zstd",
                write_page_checksum=True,
                use_dictionary=_REPEATED,  # type: ignore[arg-type]  # a list of columns, too
            )
        self._writer.write_table(table)
        self._rows += table.num_rows

    def _end_part(self) -> None:
        path = self._path
        writer, self._writer = self._writer, None
        writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        _partial(path).replace(path)
        name = f"{self._target.name}/{path.name}"
        self._parts.append(Part(name, self._rows, path.stat().st_size, digest_of_file(path)))
        self._rows = 0


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _remove_others(folder: Path, written: set[str]) -> None:
    """Remove the Parquet files of an earlier dataset, but no other files."""
    for table in ("data", "rejected"):
        for split in (*WHOLE, *SPLITS):
            for pattern in (f"{split}-*.parquet", f".{split}-*.partial", f".{split}-*.plain"):
                for old in (folder / table).glob(pattern):
                    if f"{table}/{old.name}" not in written:
                        old.unlink()


def manifest_bytes(folder: Path) -> bytes | None:
    """Return the bytes of manifest.json (None if missing), to detect changes to a dataset."""
    path = folder / _MANIFEST
    return read_file(path) if regular_file(path).exists() else None


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a dataset, or None if the folder has no manifest.

    Raises:
        DamagedFileError: the file is damaged.
        VersionError: the dataset has an unsupported format.
    """
    path = folder / _MANIFEST
    return _manifest_of(read_file(path), path) if regular_file(path).exists() else None


def _manifest_of(data: bytes, path: Path) -> Manifest:
    hint = _next_step(path.parent)
    try:
        manifest = manifest_of(data, path)
    except DamagedFileError as error:
        error.hint = hint
        raise
    # A path in the manifest must not lead out of the folder.
    paths = [part.path for part in manifest.files]
    if not paths or len(set(paths)) < len(paths) or not all(map(_PART.fullmatch, paths)):
        raise DamagedFileError('the list "files" is empty or invalid.', path=path, hint=hint)
    for table, rows in (("data", manifest.rows), ("rejected", manifest.rejected)):
        counts = [p.rows for p in manifest.files if _split_of(p, table) is not None]
        if sum(counts) != rows or min(counts, default=0) < 0:
            message = f"the numbers of rows in the table {table} do not add up to {rows:,}."
            raise DamagedFileError(message, path=path, hint=hint)
    return manifest


def manifest_in(folder: Path) -> Manifest:
    """Return the manifest of a complete dataset.

    Raises:
        RunError: the folder contains no complete dataset, or the manifest is damaged.
    """
    return DatasetReader(folder).manifest


def _next_step(folder: Path) -> str:
    if is_run(folder):
        return "Run: instructgen rebuild."
    if (folder / _PROVENANCE).exists() or (folder / _OLD_PROVENANCE).exists():
        return "Remove the folder, then rerun the command that created it."
    return "Use a dataset folder that instructgen created."


def find_row(folder: Path, row_id: str) -> tuple[str, dict[str, Any]] | None:
    """Find a row by its id. Return its table (``data`` or ``rejected``) and the row, or None."""
    table = "rejected" if row_id.startswith("r-") else "data"
    row = DatasetReader(folder).row(row_id, table)
    return None if row is None else (table, row)


class DatasetReader:
    """A complete dataset, as its manifest is when the object is created.

    If a file of the dataset is replaced later, reading it raises DamagedFileError.

    Attributes:
        manifest: the contents of manifest.json.
        digest: the SHA-256 digest of manifest.json, which identifies the dataset.

    Raises:
        RunError: the folder contains no complete dataset, or the manifest is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / _MANIFEST
        if not regular_file(path).exists():
            raise RunError(f"{folder} contains no complete dataset.", _next_step(folder))
        data = read_file(path)
        self.digest = hashlib.sha256(data).hexdigest()
        self.manifest = _manifest_of(data, path)

    @property
    def shape(self) -> Shape:
        """The kind of the rows: ``instructions``, ``preferences`` or ``feedback``."""
        return self.manifest.shape

    @property
    def splits(self) -> dict[str, int]:
        """The row counts by split, in the order of the manifest."""
        counts: dict[str, int] = {}
        for part in self.manifest.files:
            if (split := _split_of(part, "data")) is not None:
                counts[split] = counts.get(split, 0) + part.rows
        return counts

    def samples(self, table: str = "data", split: str | None = None) -> Iterator[Sample]:
        """Yield the samples in order; see `read_samples`."""
        if split is not None and split not in self.splits:
            names = ", ".join(self.splits)
            raise RunError(f"{self.folder} has no split {split!r}.", f"Use one of: {names}.")
        for batch in self.batches(table, split):
            yield from samples_in(batch)

    def batches(
        self,
        table: str = "data",
        split: str | None = None,
        columns: Sequence[str] | None = None,
    ) -> Iterator[Any]:
        """Yield the rows in order, as Arrow record batches; see `read_batches`."""
        for path, file in self.files(table, split):
            for number in range(file.metadata.num_row_groups):
                yield from self._group(path, file, number, columns)

    def pieces(self) -> Iterator[Piece]:
        """Yield the pieces into which the rows can be divided, so that several processes read them.

        Raises:
            DamagedFileError: as for `files`.
        """
        for path, file in self.files():
            for number in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(number).num_rows
                name = f"{path.parent.name}/{path.name}"
                yield Piece(self.folder.resolve(), self.digest, name, number, rows)

    def piece(self, name: str, group: int) -> Iterator[Sample]:
        """Yield the samples of a piece; see `Piece`."""
        part = next(part for part in self.manifest.files if part.path == name)
        path = self.folder / name
        with self._opened(part, path, rejected=False) as file:
            for batch in self._group(path, file, group, None):
                yield from samples_in(batch)

    def row(self, row_id: str, table: str = "data") -> dict[str, Any] | None:
        """Return the row with an id as a dict of values by column, or None."""
        import pyarrow.compute as pc

        for path, file in self.files(table):
            for number in range(file.metadata.num_row_groups):
                ids = self._group(path, file, number, ["id"])
                if any(row_id in batch.column("id").to_pylist() for batch in ids):
                    for batch in self._group(path, file, number, None):
                        matches = batch.filter(pc.field("id") == row_id)
                        if matches.num_rows:
                            return rows_in(matches.slice(0, 1))[0]
        return None

    def _group(
        self, path: Path, file: Any, number: int, columns: Sequence[str] | None
    ) -> Iterator[Any]:
        """Yield the rows of one row group as checked record batches."""
        with _checked(path, self.folder):
            rows = rows_at_once(file.metadata.row_group(number), path, number, _ROWS_READ)
            chosen = None if columns is None else list(columns)
            rejected = path.parent.name == "rejected"
            for batch in file.iter_batches(rows, row_groups=[number], columns=chosen):
                check_rows(batch, self.shape, rejected=rejected)
                yield batch

    def size(self) -> tuple[int, bool]:
        """Return the bytes that the rows take uncompressed, and whether the messages are structs.

        `instructgen.schema.arrow.schema` describes the two forms of messages.
        """
        size, plain = 0, True
        for _, file in self.files():
            groups = range(file.metadata.num_row_groups)
            size += sum(file.metadata.row_group(k).total_byte_size for k in groups)
            plain = plain and "tools" not in file.schema_arrow.names
        return size, plain

    def files(self, table: str = "data", split: str | None = None) -> Iterator[tuple[Path, Any]]:
        """Yield the Parquet files of a table, each after it was compared with the manifest.

        Raises:
            DamagedFileError: a file is missing, was changed, or does not have the columns and the
                number of rows that the manifest describes.
        """
        for part in self.manifest.files:
            found = _split_of(part, table)
            if found is not None and split in (None, found):
                path = self.folder / part.path
                with self._opened(part, path, rejected=table == "rejected") as file:
                    yield path, file

    @contextmanager
    def _opened(self, part: Part, path: Path, *, rejected: bool) -> Iterator[Any]:
        import pyarrow.parquet as pq

        # The digest and the rows are read from the same open file.
        with _checked(path, self.folder), open_file(path) as data:
            if hashlib.file_digest(data, "sha256").hexdigest() != part.sha256:
                raise ValueError("it was changed")
            with pq.ParquetFile(data, page_checksum_verification=True) as file:
                if file.metadata.num_rows != part.rows:
                    raise ValueError(f"it does not have {part.rows:,} rows")
                check_columns(file.schema_arrow, self.shape, rejected=rejected)
                yield file


class Piece(NamedTuple):
    """Rows of a dataset: the number of a group of rows in one of its files, and how many they are.

    ``digest`` is that of the dataset when it was divided.
    """

    folder: Path
    digest: str
    part: str
    group: int
    rows: int

    def samples(self) -> Iterator[Sample]:
        """Yield the samples, in order.

        Raises:
            RunError: the folder does not exist on this machine, or contains another dataset.
        """
        reader = DatasetReader(self.folder)
        if reader.digest != self.digest:
            raise RunError(
                f"{self.folder} contains another dataset than on the machine that began this.",
                "Use a folder that all machines share, and do not change it meanwhile.",
            )
        yield from reader.piece(self.part, self.group)


@contextmanager
def _checked(path: Path, folder: Path) -> Iterator[None]:
    """Convert what pyarrow and the checks raise for a damaged file to a DamagedFileError."""
    try:
        yield
    except DamagedFileError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedFileError(
            f"the file is damaged or missing ({reason}).", path=path, hint=_next_step(folder)
        ) from error


def _split_of(part: Part, table: str) -> str | None:
    """Return the split of a part of a table, or None if it belongs to another table."""
    path = Path(part.path)
    return path.name.split("-")[0] if path.parent.name == table else None


def shape_of(folder: Path) -> Shape:
    """Return the shape of a complete dataset's rows: ``instructions`` or ``preferences``."""
    return DatasetReader(folder).shape


def splits_of(folder: Path) -> dict[str, int]:
    """Return the row counts of a complete dataset by split, in the order of the manifest.

    Raises:
        RunError: the folder contains no complete dataset.
    """
    return DatasetReader(folder).splits


def training_split(folder: Path) -> str | None:
    """Return the split to train on: ``train``, or None for a dataset without splits.

    Raises:
        RunError: the folder contains no complete dataset.
    """
    return None if splits_of(folder).keys() <= set(WHOLE) else "train"


def read_rows(folder: Path, table: str = "data") -> Iterator[dict[str, Any]]:
    """Yield the rows of a dataset in order, each as a dictionary of values by column.

    Raises:
        RunError: the dataset is not complete, or a part does not match its digest.
    """
    for batch in read_batches(folder, table):
        yield from rows_in(batch)


def read_samples(folder: Path, table: str = "data", split: str | None = None) -> Iterator[Sample]:
    """Yield the samples of a dataset in order; only one batch of rows is in memory at a time.

    Args:
        folder: the dataset folder.
        table: ``data`` or ``rejected``.
        split: yield only the rows of this split.

    Raises:
        RunError: as for `read_rows`, or the dataset does not have this split.
    """
    return DatasetReader(folder).samples(table, split)


def read_batches(
    folder: Path,
    table: str = "data",
    split: str | None = None,
    columns: Sequence[str] | None = None,
) -> Iterator[Any]:
    """Yield the rows of a dataset in order, as Arrow record batches of at most 1,024 rows.

    Args:
        folder: the dataset folder.
        table: ``data`` or ``rejected``.
        split: yield only the rows of this split.
        columns: the columns to read; default: all.

    Raises:
        RunError: as for `read_rows`.
    """
    return DatasetReader(folder).batches(table, split, columns)
