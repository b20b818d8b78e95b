"""Dataset folders: Parquet parts, a card, and last the manifest, whose presence means complete."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from instructgen.errors import RunError
from instructgen.schema.arrow import rejected_table_of, samples_in, schema, table_of
from instructgen.schema.sample import Rejected, Sample, Shape
from instructgen.schema.statistics import Contents
from instructgen.store.files import (
    differences,
    digest_of_file,
    locked,
    make_folder,
    regular_file,
    storage,
    sync_folder,
    write_atomic,
)
from instructgen.store.journal import FORMAT, is_run
from instructgen.store.spool import SPOOL

_MANIFEST, _MADE = "manifest.json", "made.json"
_ROWS_PER_PART = 100_000
_ROWS_PER_GROUP = 5_000
_ROWS_READ = 1_024
_PART = re.compile(r"(data|rejected)/[a-z]+-\d{5}\.parquet")
# One file name for all rows, unless they are split.
WHOLE = ("part",)
SPLITS = ("train", "validation", "test")


@contextmanager
def making(folder: Path, made: Mapping[str, Any]) -> Iterator[None]:
    """Hold a folder in which a dataset is made out of others.

    Args:
        folder: where; made with its parents.
        made: the command, its inputs' digests and its options, kept in made.json.

    Raises:
        RunError: the folder holds something else, a dataset made otherwise, or is in use.
        StorageError: the disk refuses.
    """
    path = folder / _MADE
    with ExitStack() as held:
        with storage(folder):
            if not path.exists():
                make_folder(folder, _MADE)
            held.enter_context(locked(folder))
            if (folder / _MANIFEST).exists():
                then = _made(path)
                changed = differences(then, made) if isinstance(then, dict) else {"made.json": 0}
                if changed:
                    raise RunError(
                        f"{folder} was made from different inputs, options or code; "
                        f"changed: {', '.join(changed)}.",
                        "Give another --out, or remove it.",
                    )
            write_atomic(path, [orjson.dumps(made, option=orjson.OPT_INDENT_2)])
            for left in folder.glob(f"{SPOOL}*"):
                # Of a command that was killed.
                shutil.rmtree(left)
        yield


def read_made(folder: Path) -> dict[str, Any]:
    """The command, inputs and options that a dataset was made by.

    Raises:
        RunError: it was not made out of others.
    """
    if not (folder / _MADE).exists():
        raise RunError(f"{folder} has no {_MADE} and no run.json.", "Restore it from a copy.")
    made = _made(folder / _MADE)
    if not isinstance(made, dict) or not {"command", "inputs"} <= made.keys():
        raise RunError(f"{folder / _MADE} is damaged.", "Restore it from a copy.")
    return made


def _made(path: Path) -> Any:
    try:
        return orjson.loads(regular_file(path).read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise RunError(f"{path} cannot be read ({error}).", "Give another --out.") from error


def is_whole(folder: Path) -> bool:
    """Whether a complete dataset is there, and every part is as it was written.

    Raises:
        RunError: its manifest is damaged.
    """
    manifest = read_manifest(folder)
    return (
        manifest is not None
        and (folder / "README.md").is_file()
        and all(
            (folder / file["path"]).exists()
            and digest_of_file(folder / file["path"]) == file["sha256"]
            for file in manifest["files"]
        )
    )


def digest_of(path: Path) -> str:
    """SHA-256 of a file, or of a dataset folder's manifest, which names its parts' digests.

    Raises:
        RunError: it is a folder without a complete dataset.
    """
    if path.is_dir():
        if read_manifest(path) is None:
            raise RunError(f"{path} holds no complete dataset.", _mend(path))
        path = path / _MANIFEST
    return digest_of_file(path)


@dataclass(frozen=True, slots=True)
class Part:
    """A Parquet file of a dataset, as its manifest lists it."""

    path: str
    rows: int
    bytes: int
    sha256: str


class Writer:
    """Writes a dataset as its rows come; see `writing`."""

    def __init__(self, folder: Path, shape: Shape, splits: Sequence[str]) -> None:
        self.contents = Contents()
        self._folder, self._shape = folder, shape
        self._rows = dict.fromkeys(splits, 0)
        self._data = {
            split: _Table(folder, "data", split, schema(shape), lambda rows: table_of(rows, shape))
            for split in splits
        }
        self._rejected = _Table(
            folder,
            "rejected",
            "part",
            schema(shape, rejected=True),
            lambda rows: rejected_table_of(rows, shape),
        )

    def keep(self, samples: Sequence[Sample], split: str = "part") -> None:
        """Append rows to the dataset.

        Raises:
            ValueError: a row does not have the dataset's shape.
            StorageError: the disk refuses.
        """
        if any(s.shape != self._shape for s in samples):
            raise ValueError(f"a row is none of the {self._shape}")
        self.contents.add(samples)
        self._rows[split] += len(samples)
        with storage(self._folder):
            self._data[split].add(samples)

    def reject(self, rejected: Sequence[Rejected]) -> None:
        """Append rows that are not in the dataset.

        Raises:
            StorageError: the disk refuses.
        """
        self.contents.rejected += len(rejected)
        with storage(self._folder):
            self._rejected.add(rejected)

    def finish(self, card: Callable[[Contents], str], facts: Mapping[str, Any]) -> list[Part]:
        """Close the parts, then write the card and the manifest.

        A split without a row has no part: `datasets` cannot open one. A dataset without
        any has its first.

        Args:
            card: makes the text of README.md.
            facts: what the manifest says besides files and counts.

        Raises:
            StorageError: the disk refuses; no half-written file has a final name.
        """
        with storage(self._folder):
            filled = [split for split, rows in self._rows.items() if rows]
            self.contents.splits = tuple(filled or list(self._rows)[:1])
            data = [self._data[split] for split in self.contents.splits]
            parts = [p for table in (*data, self._rejected) for p in table.close()]
            _remove_others(self._folder, {p.path for p in parts})
            write_atomic(self._folder / "README.md", [card(self.contents).encode()])
            manifest = {
                "format": FORMAT,
                "shape": self._shape,
                "rows": self.contents.rows,
                "rejected": self.contents.rejected,
                "licenses": self.contents.licenses,
                "terms": {
                    "licenses": self.contents.licenses,
                    "generators": self.contents.generators,
                    "attributions": self.contents.attributions,
                },
                **facts,
                "files": [asdict(p) for p in parts],
            }
            manifest_bytes = orjson.dumps(manifest, option=orjson.OPT_INDENT_2)
            write_atomic(self._folder / _MANIFEST, [manifest_bytes])
        return parts


@contextmanager
def writing(folder: Path, shape: Shape, splits: Sequence[str] = WHOLE) -> Iterator[Writer]:
    """A writer for a dataset folder; what was there before is no dataset from now on.

    The same rows in the same order give the same bytes, however they are
    handed over.

    Raises:
        StorageError: the disk refuses.
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
    card: Callable[[Contents], str],
    facts: Mapping[str, Any],
    shape: Shape = "instructions",
) -> list[Part]:
    """Write a whole dataset at once; see `writing`.

    Raises:
        StorageError: the disk refuses.
    """
    with writing(folder, shape) as writer:
        for some in _chunks(samples):
            writer.keep(some)
        for some in _chunks(rejected):
            writer.reject(some)
        return writer.finish(card, facts)


def _chunks(rows: Iterable[Any]) -> Iterator[list[Any]]:
    rows = iter(rows)
    while some := list(islice(rows, _ROWS_PER_GROUP)):
        yield some


class _Table:
    """The parts of one table: row groups and files of fixed numbers of rows."""

    def __init__(
        self, folder: Path, table: str, split: str, schema: Any, made: Callable[[Any], Any]
    ) -> None:
        self._target, self._split = folder / table, split
        self._schema, self._made = schema, made
        self._waiting: list[Any] = []
        self._parts: list[Part] = []
        self._writer: Any = None
        self._rows = 0
        self._target.mkdir(exist_ok=True)

    def add(self, rows: Sequence[Any]) -> None:
        self._waiting += rows
        while len(self._waiting) >= _ROWS_PER_GROUP:
            self._write(self._waiting[:_ROWS_PER_GROUP])
            del self._waiting[:_ROWS_PER_GROUP]

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
            # What stopped the writing is on its way up; this file never gets its name.
            with suppress(OSError):
                writer.close()

    @property
    def _path(self) -> Path:
        return self._target / f"{self._split}-{len(self._parts):05d}.parquet"

    def _write(self, rows: Sequence[Any]) -> None:
        import pyarrow.parquet as pq

        if self._writer is None:
            # Checksums: pyarrow reads a part with flipped bits without complaint.
            self._writer = pq.ParquetWriter(
                _partial(self._path), self._schema, compression="zstd", write_page_checksum=True
            )
        self._writer.write_table(self._made(rows))
        self._rows += len(rows)
        if self._rows >= _ROWS_PER_PART:
            self._end_part()

    def _end_part(self) -> None:
        path = self._path
        writer, self._writer = self._writer, None
        writer.close()
        with _partial(path).open("rb") as file:
            os.fsync(file.fileno())
        _partial(path).replace(path)
        name = f"{self._target.name}/{path.name}"
        self._parts.append(Part(name, self._rows, path.stat().st_size, digest_of_file(path)))
        self._rows = 0


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _remove_others(folder: Path, written: set[str]) -> None:
    """Remove parts of an earlier dataset; what others put here is theirs."""
    for table in ("data", "rejected"):
        for split in (*WHOLE, *SPLITS):
            for pattern in (f"{split}-*.parquet", f".{split}-*.partial"):
                for old in (folder / table).glob(pattern):
                    if f"{table}/{old.name}" not in written:
                        old.unlink()


def manifest_bytes(folder: Path) -> bytes | None:
    """The manifest as it is on disk, to see whether a dataset changed; None without one."""
    path = folder / _MANIFEST
    return path.read_bytes() if path.is_file() else None


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a complete dataset, or None where there is none yet.

    Raises:
        RunError: it is damaged.
    """
    path = folder / _MANIFEST
    if not path.exists():
        return None
    try:
        manifest = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise RunError(f"{path} cannot be read ({error}).", _mend(folder)) from error
    if not isinstance(manifest, dict):
        raise RunError(f"{path} is no manifest.", _mend(folder))
    if manifest.get("format") != FORMAT:
        raise RunError(
            f"{path} has format {manifest.get('format')}, this version reads {FORMAT}.",
            "Make the dataset again, or use the version of instructgen that made it.",
        )
    if not _is_manifest(manifest):
        raise RunError(f"{path} is damaged.", _mend(folder))
    return manifest


def _is_manifest(manifest: dict[str, Any]) -> bool:
    """Whether it has what is read of it; a path never leads out of the folder."""
    files = manifest.get("files")
    return (
        manifest.get("shape") in ("instructions", "preferences")
        and all(isinstance(manifest.get(key), int) for key in ("rows", "rejected"))
        and all(isinstance(manifest.get(key), dict) for key in ("licenses", "terms"))
        and isinstance(files, list)
        and bool(files)
        and all(
            isinstance(file, dict)
            and isinstance(file.get("path"), str)
            and _PART.fullmatch(file["path"]) is not None
            and isinstance(file.get("rows"), int)
            and isinstance(file.get("sha256"), str)
            for file in files
        )
    )


def _mend(folder: Path) -> str:
    if is_run(folder):
        return "Run: instructgen rebuild."
    if (folder / _MADE).exists():
        return "Remove the folder and run the command that made it again."
    return "Give a dataset folder that instructgen made."


def find_row(folder: Path, row_id: str) -> tuple[str, dict[str, Any]] | None:
    """A row by its id: (``data`` or ``rejected``, the row), or None."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not row_id.isascii():
        return None
    table = "rejected" if row_id.startswith("r-") else "data"
    for path in _whole_parts(folder, table):
        found = pq.read_table(path, filters=pc.field("id") == row_id)
        if found.num_rows:
            row: dict[str, Any] = found.slice(0, 1).to_pylist()[0]
            return table, row
    return None


def shape_of(folder: Path) -> Shape:
    """The shape of the rows of a complete dataset.

    Raises:
        RunError: there is none, or its manifest is damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise RunError(f"{folder} holds no complete dataset.", _mend(folder))
    shape: Shape = manifest["shape"]
    return shape


def splits_of(folder: Path) -> dict[str, int]:
    """The rows of a complete dataset by split, in the order in which they are read.

    Raises:
        RunError: there is none, or its manifest is damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise RunError(f"{folder} holds no complete dataset.", _mend(folder))
    found: dict[str, int] = {}
    for file in manifest["files"]:
        path = Path(file["path"])
        if path.parent.name == "data":
            split = path.name.split("-")[0]
            found[split] = found.get(split, 0) + file["rows"]
    return found


def training_split(folder: Path) -> str | None:
    """The split to train on, ``train``; None of a dataset that is whole.

    Raises:
        RunError: as `splits_of`.
    """
    return None if splits_of(folder).keys() <= set(WHOLE) else "train"


def read_rows(folder: Path, table: str = "data") -> Iterator[dict[str, Any]]:
    """The rows of a dataset folder in order, as they stand in its files.

    Raises:
        RunError: the dataset is not complete, or a part differs from its manifest.
    """
    for batch in read_batches(folder, table):
        yield from batch.to_pylist()


def read_samples(folder: Path, table: str = "data", split: str | None = None) -> Iterator[Sample]:
    """The samples of a dataset folder in order, in small batches.

    Args:
        folder: where.
        table: ``data`` or ``rejected``.
        split: only those of this split.

    Raises:
        RunError: as `read_rows`, or there is no such split.
    """
    if split is not None and split not in (known := splits_of(folder)):
        raise RunError(f"{folder} has no split {split!r}.", f"It has {', '.join(known)}.")
    for batch in read_batches(folder, table, split):
        yield from samples_in(batch)


def read_batches(
    folder: Path,
    table: str = "data",
    split: str | None = None,
    columns: list[str] | None = None,
) -> Iterator[Any]:
    """The rows of a dataset folder in order, as Arrow record batches of 1,024 rows at most.

    Args:
        folder: where.
        table: ``data`` or ``rejected``.
        split: only those of this split.
        columns: only these; all without it.

    Raises:
        RunError: as `read_rows`.
    """
    import pyarrow.parquet as pq

    for path in _whole_parts(folder, table):
        if split is not None and path.name.split("-")[0] != split:
            continue
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield from file.iter_batches(_ROWS_READ, columns=columns)


def _whole_parts(folder: Path, table: str) -> Iterator[Path]:
    """The parts of a table, each compared with its digest: checksums miss the footer."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise RunError(f"{folder} holds no complete dataset.", _mend(folder))
    for file in manifest["files"]:
        path = folder / file["path"]
        if path.parent.name != table:
            continue
        if not path.exists() or digest_of_file(path) != file["sha256"]:
            raise RunError(f"{path} is damaged or missing.", _mend(folder))
        yield path
