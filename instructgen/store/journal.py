"""Reads and writes run folders: run.json, the seeds, and the journal (all model completions).

The dataset in a run folder is computed from these files, so it can be recreated from them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from instructgen.engines import Completion
from instructgen.errors import DamagedFileError, RunError, VersionError
from instructgen.store.files import (
    locked,
    make_folder,
    regular_file,
    storage,
    sync_folder,
    write_atomic,
)
from instructgen.store.records import RunInfo, SessionUse, run_info_of

_JOURNAL, _RUN, _SEEDS = "journal.jsonl", "run.json", "seeds.jsonl"
_SESSIONS = "sessions.jsonl"


@dataclass(frozen=True, slots=True)
class Entry:
    """A completion in the journal, and the digest of its request."""

    request_digest: str
    completion: Completion


class Run:
    """A run folder that is locked for this process.

    Use the context managers `Run.create` or `Run.open` to get a `Run`. ``healed`` is a message for
    the user if an incomplete last line was removed from the journal, otherwise None.
    """

    def __init__(self, folder: Path, info: RunInfo) -> None:
        self.folder = folder
        self.info = info
        self.healed: str | None = None
        self._recorded: dict[tuple[int, int], Entry] = {}
        self._chain = info.run
        self._journal: int = -1
        self._end = 0

    @property
    def id(self) -> str:
        """The id of the run: a digest of its configuration and seeds."""
        return self.info.run

    @classmethod
    @contextmanager
    def create(cls, folder: Path, info: RunInfo, seeds: Iterable[bytes]) -> Iterator[Run]:
        """Start a run in a new or empty folder.

        Args:
            folder: the run folder. It is created, with its parents, if necessary.
            info: the contents of run.json.
            seeds: the seeds as JSON lines. They are copied, so that the run does not depend
                on other files.

        Raises:
            RunError: the folder contains other files, or is in use.
            StorageError: a file cannot be written.
        """
        with ExitStack() as stack:
            with storage(folder):
                # A folder with only these files is a run that was killed while it started,
                # because run.json is written last.
                make_folder(folder, _SEEDS, _RUN)
                stack.enter_context(locked(folder))
                write_atomic(folder / _SEEDS, seeds)
                write_atomic(folder / _RUN, [info.to_json()])
                run = stack.enter_context(cls(folder, info)._opened())
            yield run

    @classmethod
    @contextmanager
    def open(cls, folder: Path) -> Iterator[Run]:
        """Open a run to resume it; an incomplete last line of the journal is removed.

        Raises:
            RunError: the folder is not a run, is in use, is damaged, or has an unsupported format.
            StorageError: a file cannot be written.
        """
        info = read_info(folder)
        with ExitStack() as stack:
            with storage(folder):
                stack.enter_context(locked(folder))
                run = stack.enter_context(cls(folder, info)._opened())
            yield run

    def recorded(self, batch: int, request: int) -> Entry | None:
        """Return the recorded completion of a request, or None if none was recorded."""
        return self._recorded.get((batch, request))

    def __len__(self) -> int:
        """Return the number of recorded completions."""
        return len(self._recorded)

    def record(self, batch: int, request: int, digest: str, completion: Completion) -> None:
        """Append a completion to the journal.

        The completion is not lost if the process is killed. After `sync`, a power failure cannot
        remove it either.

        Raises:
            StorageError: the file cannot be written; earlier completions stay recorded.
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
            with storage(self.folder / _JOURNAL):
                while view:
                    view = view[os.write(self._journal, view) :]
        finally:
            # If the write was interrupted, the next record must still follow a complete line.
            if view:
                os.ftruncate(self._journal, self._end)
            else:
                self._end += len(line)
                self._chain = chain
                self._recorded[batch, request] = Entry(digest, completion)

    def update(self, info: RunInfo) -> None:
        """Replace the contents of run.json. Raise StorageError if the file cannot be written."""
        with storage(self.folder):
            write_atomic(self.folder / _RUN, [info.to_json()])
        self.info = info

    def sync(self) -> None:
        """Write all recorded completions to disk, so that they survive a power failure."""
        with storage(self.folder / _JOURNAL):
            os.fsync(self._journal)

    def seeds(self) -> Iterator[dict[str, Any]]:
        """Yield the seeds as they were when the run started.

        Raises:
            RunError: the copy of the seeds does not match its digest.
        """
        return read_seed_rows(self.folder, self.info)

    def end_session(self, use: SessionUse) -> None:
        """Append the time and tokens since the run was started or resumed to sessions.jsonl."""
        path = regular_file(self.folder / _SESSIONS)
        with storage(path), path.open("ab") as file:
            file.write(orjson.dumps(use) + b"\n")

    @contextmanager
    def _opened(self) -> Iterator[Run]:
        path = regular_file(self.folder / _JOURNAL)
        self._journal = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            sync_folder(self.folder)
            self._end = self._read(path)
            if self._end < os.fstat(self._journal).st_size:
                os.ftruncate(self._journal, self._end)
                os.fsync(self._journal)
                self.healed = (
                    f"{path}: an incomplete last line was removed; its request will be sent again."
                )
            yield self
        finally:
            os.close(self._journal)

    def _read(self, path: Path) -> int:
        """Check and index the journal; return the offset of the end of its last complete line."""
        offset = 0
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return offset
                chain, _, payload = line[:-1].partition(b" ")
                self._chain = _link(self._chain, payload)
                if chain != self._chain.encode():
                    raise DamagedFileError(
                        f"the file is damaged at byte {offset}.",
                        path=path,
                        hint="Restore the file from a copy. Or run `truncate -s "
                        f"{offset} {path}`; resuming then repeats the removed requests.",
                    )
                entry = orjson.loads(payload)
                key = (entry.pop("batch"), entry.pop("request"))
                self._recorded[key] = Entry(entry.pop("digest"), Completion(**entry))
                offset += len(line)
        return offset


def read_info(folder: Path) -> RunInfo:
    """Read run.json of a run folder.

    Raises:
        RunError: the folder has no run.json.
        DamagedFileError: the file is damaged.
        VersionError: the file has an unsupported format.
    """
    path = regular_file(folder / _RUN)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise RunError(
            f"{folder} is not a run folder: {_RUN} is missing.", "Check the path."
        ) from None
    except OSError as error:
        raise DamagedFileError(f"the file cannot be read ({error}).", path=path) from error
    return run_info_of(data, path)


def read_seed_rows(folder: Path, info: RunInfo) -> Iterator[dict[str, Any]]:
    """Yield the seeds of a run, as dicts of the form that `sample_row` returns.

    Raises:
        DamagedFileError: the copy of the seeds does not match its digest.
    """
    path = folder / _SEEDS
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != info.seeds.sha256:
        raise DamagedFileError("the file is missing or was changed.", path=path)
    return (orjson.loads(line) for line in data.split(b"\n") if line)


def read_sessions(folder: Path) -> list[SessionUse]:
    """Return the time and tokens per start or resumption of a run, except if it was killed."""
    path = folder / _SESSIONS
    if not path.is_file():
        return []
    sessions = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        # A killed process can leave an incomplete line; the lines after it are complete.
        with suppress(DamagedFileError):
            sessions.append(SessionUse.from_json(line, path))
    return sessions


def is_run(folder: Path) -> bool:
    """Return whether a folder contains a run, finished or not."""
    has_input = (folder / _SEEDS).exists() or (folder / _JOURNAL).exists()
    return has_input and (folder / _RUN).exists()


def has_current_run(folder: Path) -> bool:
    """Return whether a folder contains a run that this version of instructgen can read."""
    try:
        return is_run(folder) and read_info(folder) is not None
    except VersionError:
        return False


def _link(previous: str, payload: bytes) -> str:
    return hashlib.sha256(previous.encode() + payload).hexdigest()[:16]
