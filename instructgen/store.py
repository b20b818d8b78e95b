"""Run and dataset folders: lock, journal of completions, atomic publishing.

The only module that writes durable files. The journal is the one truth of a
run; everything else in the folder is computed from it and can be made again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from instructgen.engines import Completion
from instructgen.errors import RunError, StorageError
from instructgen.sample import (
    Rejected,
    Sample,
    rejected_row,
    rejected_schema,
    sample_row,
    sample_schema,
)

FORMAT = 1
_JOURNAL, _RUN, _SEEDS, _LOCK, _MANIFEST, _MADE = (
    "journal.jsonl",
    "run.json",
    "seeds.jsonl",
    "lock",
    "manifest.json",
    "made.json",
)
_ROWS_PER_PART = 50_000
_MENDED_BY = {
    errno.ENOSPC: "Free space",
    errno.EDQUOT: "Free space",
    errno.EACCES: "Mend permissions",
    errno.EPERM: "Mend permissions",
    errno.EROFS: "Make it writable",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One recorded completion and the digest of the request it answers."""

    request_digest: str
    completion: Completion


class Run:
    """A run folder, locked for this process.

    Use `Run.create` or `Run.open`; both are context managers.
    """

    def __init__(self, folder: Path, info: dict[str, Any]) -> None:
        self.folder = folder
        self.info = info
        self.healed: str | None = None
        self._recorded: dict[tuple[int, int], Entry] = {}
        self._chain = str(info["run"])
        self._journal: int = -1
        self._end = 0

    @property
    def id(self) -> str:
        """The run's id: a digest of its configuration and seeds."""
        return str(self.info["run"])

    @classmethod
    @contextmanager
    def create(cls, folder: Path, info: dict[str, Any], seeds: Iterable[bytes]) -> Iterator[Run]:
        """Begin a run in a new or empty folder.

        Args:
            folder: where; made with its parents.
            info: what run.json holds: ``run``, ``config``, ``form``, ``seeds``, ``versions``.
            seeds: the seeds as JSON lines, kept so that the run stands alone.

        Raises:
            RunError: the folder holds something else, or is in use.
            StorageError: the disk refuses.
        """
        with ExitStack() as held:
            with _storage(folder):
                # run.json is written last, so a folder with only these is a
                # run that was killed while it began.
                _make_folder(folder, _SEEDS, _RUN)
                held.enter_context(_locked(folder))
                write_atomic(folder / _SEEDS, seeds)
                write_atomic(folder / _RUN, [orjson.dumps(info, option=orjson.OPT_INDENT_2)])
                run = held.enter_context(cls(folder, info)._opened())
            yield run

    @classmethod
    @contextmanager
    def open(cls, folder: Path) -> Iterator[Run]:
        """Go on with a run; a torn last line of its journal is cut off.

        Raises:
            RunError: no run there, in use, made by another format, or damaged.
            StorageError: the disk refuses.
        """
        info = read_info(folder)
        with ExitStack() as held:
            with _storage(folder):
                held.enter_context(_locked(folder))
                run = held.enter_context(cls(folder, info)._opened())
            yield run

    def recorded(self, batch: int, request: int) -> Entry | None:
        """The completion recorded for a request, if any."""
        return self._recorded.get((batch, request))

    def __len__(self) -> int:
        """How many completions are recorded."""
        return len(self._recorded)

    def record(self, batch: int, request: int, digest: str, completion: Completion) -> None:
        """Append one completion. It survives a kill at once, a power cut after `sync`.

        Raises:
            StorageError: the disk refuses; what was recorded before is safe.
        """
        payload = orjson.dumps(
            {
                "batch": batch,
                "request": request,
                "digest": digest,
                "text": completion.text,
                "finish_reason": completion.finish_reason,
                "prompt_tokens": completion.prompt_tokens,
                "output_tokens": completion.output_tokens,
                "error": completion.error,
            }
        )
        chain = _link(self._chain, payload)
        line = b"%s %s\n" % (chain.encode(), payload)
        view = memoryview(line)
        try:
            with _storage(self.folder / _JOURNAL):
                while view:
                    view = view[os.write(self._journal, view) :]
        finally:
            # Whatever interrupts this, a later record must find a whole line.
            if view:
                os.ftruncate(self._journal, self._end)
            else:
                self._end += len(line)
                self._chain = chain
                self._recorded[batch, request] = Entry(digest, completion)

    def update(self, info: dict[str, Any]) -> None:
        """Replace what run.json holds.

        Raises:
            StorageError: the disk refuses.
        """
        with _storage(self.folder):
            write_atomic(self.folder / _RUN, [orjson.dumps(info, option=orjson.OPT_INDENT_2)])
        self.info = info

    def sync(self) -> None:
        """Make what was recorded survive a power cut."""
        with _storage(self.folder / _JOURNAL):
            os.fsync(self._journal)

    def seeds(self) -> Iterator[dict[str, Any]]:
        """The seeds as they were when the run began.

        Raises:
            RunError: the copy does not match its digest.
        """
        path = self.folder / _SEEDS
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(data).hexdigest() != self.info["seeds"]["sha256"]:
            raise RunError(f"{path} is missing or was changed.", "Restore it from a copy.")
        return (orjson.loads(line) for line in data.split(b"\n") if line)

    @contextmanager
    def _opened(self) -> Iterator[Run]:
        path = _file(self.folder / _JOURNAL)
        self._journal = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _sync_folder(self.folder)
            self._end = self._read(path)
            if self._end < os.fstat(self._journal).st_size:
                os.ftruncate(self._journal, self._end)
                os.fsync(self._journal)
                self.healed = f"{path}: the last line was torn and is asked again."
            yield self
        finally:
            os.close(self._journal)

    def _read(self, path: Path) -> int:
        """Check and index the journal; returns the end of its last whole line."""
        offset = 0
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return offset
                chain, _, payload = line[:-1].partition(b" ")
                self._chain = _link(self._chain, payload)
                if chain != self._chain.encode():
                    raise RunError(
                        f"{path} is damaged at byte {offset}.",
                        f"Restore it from a copy, or cut it there (truncate -s {offset} {path}) "
                        "to ask for the rest again.",
                    )
                entry = orjson.loads(payload)
                key = (entry.pop("batch"), entry.pop("request"))
                self._recorded[key] = Entry(entry.pop("digest"), Completion(**entry))
                offset += len(line)
        return offset


def read_info(folder: Path) -> dict[str, Any]:
    """What run.json of a run folder holds.

    Raises:
        RunError: there is none, or it is damaged or of another format.
    """
    path = _file(folder / _RUN)
    try:
        info: Any = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{folder} is no run: it has no {_RUN}.", "Check the path.") from None
    except (OSError, orjson.JSONDecodeError) as error:
        raise RunError(f"{path} cannot be read ({error}).", "Restore it from a copy.") from error
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        found = info.get("format") if isinstance(info, dict) else "none"
        raise RunError(
            f"{path} has format {found}, this version reads {FORMAT}.",
            "Use the version of instructgen that made it, or restore it from a copy.",
        )
    return info


def _file(path: Path) -> Path:
    """The path, unless it is a pipe or the like, which would be waited on for ever."""
    if path.exists() and not path.is_file():
        raise RunError(f"{path} is no regular file.", "Restore it from a copy.")
    return path


def is_run(folder: Path) -> bool:
    """Whether a run was begun in this folder."""
    return (folder / _RUN).exists()


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
        with _storage(folder):
            if not path.exists():
                _make_folder(folder, _MADE)
            held.enter_context(_locked(folder))
            if (folder / _MANIFEST).exists() and _made(path) != made:
                raise RunError(
                    f"{folder} was made from other inputs or with other options.",
                    "Give another --out.",
                )
            write_atomic(path, [orjson.dumps(made, option=orjson.OPT_INDENT_2)])
        yield


def _made(path: Path) -> Any:
    try:
        return orjson.loads(_file(path).read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise RunError(f"{path} cannot be read ({error}).", "Give another --out.") from error


def is_whole(folder: Path) -> bool:
    """Whether a complete dataset is there, and every part is as it was written.

    Raises:
        RunError: its manifest is damaged.
    """
    manifest = read_manifest(folder)
    return manifest is not None and all(
        (folder / file["path"]).exists() and _digest(folder / file["path"]) == file["sha256"]
        for file in manifest["files"]
    )


def _make_folder(folder: Path, *begun: str) -> None:
    """Make a folder, unless it holds more than these files, whole or not, and the lock."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is no folder.", "Give another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    ours = {_LOCK, *begun, *(f".{name}.partial" for name in begun)}
    if others := sorted({p.name for p in folder.iterdir()} - ours):
        raise RunError(f"{folder} holds {others[0]} and is none of ours.", "Give another --out.")


def digest_of(path: Path) -> str:
    """SHA-256 of a file, or of a dataset folder's manifest, which names its parts' digests.

    Raises:
        RunError: it is a folder without a complete dataset.
    """
    if path.is_dir():
        if read_manifest(path) is None:
            raise RunError(f"{path} holds no complete dataset.", _mend(path))
        path = path / _MANIFEST
    return _digest(path)


@dataclass(frozen=True, slots=True)
class Part:
    """A Parquet file of a dataset, as its manifest lists it."""

    path: str
    rows: int
    bytes: int
    sha256: str


def publish(
    folder: Path,
    samples: Iterable[Sample],
    rejected: Iterable[Rejected],
    card: Callable[[], str],
    facts: Mapping[str, Any],
) -> list[Part]:
    """Write a dataset: parts, card, and last the manifest, whose presence means complete.

    The same arguments give the same bytes.

    Args:
        folder: where.
        samples: the rows.
        rejected: the candidates that are not in it.
        card: makes the text of README.md.
        facts: what the manifest says besides its files.

    Raises:
        StorageError: the disk refuses; no half-written file has a final name.
    """
    with _storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MANIFEST).unlink(missing_ok=True)
        parts = [
            *_write_parts(folder, "data", map(sample_row, samples), sample_schema()),
            *_write_parts(folder, "rejected", map(rejected_row, rejected), rejected_schema()),
        ]
        write_atomic(folder / "README.md", [card().encode()])
        manifest = {
            "format": FORMAT,
            **facts,
            "files": [
                {"path": p.path, "rows": p.rows, "bytes": p.bytes, "sha256": p.sha256}
                for p in parts
            ],
        }
        write_atomic(folder / _MANIFEST, [orjson.dumps(manifest, option=orjson.OPT_INDENT_2)])
    return parts


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
    if not isinstance(manifest, dict) or "files" not in manifest:
        raise RunError(f"{path} is no manifest.", _mend(folder))
    return manifest


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

    table = "rejected" if row_id.startswith("r-") else "data"
    for path in _whole_parts(folder, table):
        found = pq.read_table(path, filters=pc.field("id") == row_id)
        if found.num_rows:
            row: dict[str, Any] = found.slice(0, 1).to_pylist()[0]
            return table, row
    return None


def read_rows(folder: Path, table: str = "data") -> Iterator[dict[str, Any]]:
    """The rows of a dataset folder in order, in small batches.

    Raises:
        RunError: the dataset is not complete, or a part differs from its manifest.
    """
    import pyarrow.parquet as pq

    for path in _whole_parts(folder, table):
        for batch in pq.ParquetFile(path, page_checksum_verification=True).iter_batches(1024):
            yield from batch.to_pylist()


def _whole_parts(folder: Path, table: str) -> Iterator[Path]:
    """The parts of a table, each compared with its digest: checksums miss the footer."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise RunError(f"{folder} holds no complete dataset.", _mend(folder))
    for file in manifest["files"]:
        path = folder / file["path"]
        if path.parent.name != table:
            continue
        if not path.exists() or _digest(path) != file["sha256"]:
            raise RunError(f"{path} is damaged or missing.", _mend(folder))
        yield path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file so that its name always stands for a whole one."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _sync_folder(path.parent)


def _write_parts(
    folder: Path, table: str, rows: Iterator[dict[str, Any]], schema: Any
) -> Iterator[Part]:
    import itertools

    import pyarrow as pa
    import pyarrow.parquet as pq

    target = folder / table
    target.mkdir(exist_ok=True)
    written = set()
    for number in itertools.count():
        chunk = list(itertools.islice(rows, _ROWS_PER_PART))
        if not chunk and number:
            break
        path = target / f"part-{number:05d}.parquet"
        partial = path.with_name(f".{path.name}.partial")
        # Checksums: pyarrow reads a part with flipped bits without complaint.
        pq.write_table(
            pa.Table.from_pylist(chunk, schema=schema),
            partial,
            compression="zstd",
            write_page_checksum=True,
        )
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        written.add(path.name)
        yield Part(f"{table}/{path.name}", len(chunk), path.stat().st_size, _digest(path))
        if len(chunk) < _ROWS_PER_PART:
            break
    # Parts of an earlier, larger dataset; what others put here is theirs.
    for pattern in ("part-*.parquet", ".part-*.partial"):
        for old in target.glob(pattern):
            if old.name not in written:
                old.unlink()
    _sync_folder(target)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _link(previous: str, payload: bytes) -> str:
    return hashlib.sha256(previous.encode() + payload).hexdigest()[:16]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{folder} is in use by another process.", "Wait for it, or give another --out."
            ) from None
        yield
    finally:
        os.close(handle)


@contextmanager
def _storage(path: Path) -> Iterator[None]:
    """Turn the disk's refusals into one clear line."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        where = error.filename or path
        cause = _MENDED_BY.get(error.errno or 0, "Mend the cause")
        raise StorageError(
            f"{where}: cannot be written ({error.strerror or error}).",
            f"{cause}; the same command goes on from here.",
        ) from error
