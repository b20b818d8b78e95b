"""Run folders: the journal of completions, the one truth of a run.

Everything else in the folder is computed from it and can be made again.
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
from instructgen.errors import DamagedFileError, RunError
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
    """One recorded completion and the digest of the request it answers."""

    request_digest: str
    completion: Completion


class Run:
    """A run folder, locked for this process.

    Use `Run.create` or `Run.open`; both are context managers.
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
        """The run's id: a digest of its configuration and seeds."""
        return self.info.run

    @classmethod
    @contextmanager
    def create(cls, folder: Path, info: RunInfo, seeds: Iterable[bytes]) -> Iterator[Run]:
        """Begin a run in a new or empty folder.

        Args:
            folder: where; made with its parents.
            info: the contents of run.json.
            seeds: the seeds as JSON lines, kept so that the run stands alone.

        Raises:
            RunError: the folder holds something else, or is in use.
            StorageError: the disk refuses.
        """
        with ExitStack() as held:
            with storage(folder):
                # run.json is written last, so a folder with only these is a
                # run that was killed while it began.
                make_folder(folder, _SEEDS, _RUN)
                held.enter_context(locked(folder))
                write_atomic(folder / _SEEDS, seeds)
                write_atomic(folder / _RUN, [info.to_json()])
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
            with storage(folder):
                held.enter_context(locked(folder))
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
            with storage(self.folder / _JOURNAL):
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

    def update(self, info: RunInfo) -> None:
        """Replace what run.json holds.

        Raises:
            StorageError: the disk refuses.
        """
        with storage(self.folder):
            write_atomic(self.folder / _RUN, [info.to_json()])
        self.info = info

    def sync(self) -> None:
        """Make what was recorded survive a power cut."""
        with storage(self.folder / _JOURNAL):
            os.fsync(self._journal)

    def seeds(self) -> Iterator[dict[str, Any]]:
        """The seeds as they were when the run began.

        Raises:
            RunError: the copy does not match its digest.
        """
        return read_seed_rows(self.folder, self.info)

    def end_session(self, use: SessionUse) -> None:
        """Note what the time until now brought; nothing of the dataset depends on it.

        Raises:
            StorageError: the disk refuses.
        """
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
                    raise DamagedFileError(
                        f"is damaged at byte {offset}.",
                        path=path,
                        hint=f"Restore it from a copy, or truncate it there (truncate -s {offset} "
                        f"{path}) to request the remaining completions again.",
                    )
                entry = orjson.loads(payload)
                key = (entry.pop("batch"), entry.pop("request"))
                self._recorded[key] = Entry(entry.pop("digest"), Completion(**entry))
                offset += len(line)
        return offset


def read_info(folder: Path) -> RunInfo:
    """Read run.json of a run folder.

    Raises:
        RunError: there is none.
        DamagedFileError: the file is damaged.
        VersionError: the run was written in another format.
    """
    path = regular_file(folder / _RUN)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise RunError(f"{folder} is not a run: it has no {_RUN}.", "Check the path.") from None
    except OSError as error:
        raise DamagedFileError(f"cannot be read ({error}).", path=path) from error
    return run_info_of(data, path)


def read_seed_rows(folder: Path, info: RunInfo) -> Iterator[dict[str, Any]]:
    """Read the seeds of a run, as `sample_row` writes them.

    Raises:
        DamagedFileError: the copy does not match its digest.
    """
    path = folder / _SEEDS
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != info.seeds.sha256:
        raise DamagedFileError("is missing or was changed.", path=path)
    return (orjson.loads(line) for line in data.split(b"\n") if line)


def read_sessions(folder: Path) -> list[SessionUse]:
    """Read what each session of a run used; sessions that were killed have no entry."""
    path = folder / _SESSIONS
    if not path.is_file():
        return []
    sessions = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        # A kill can leave an incomplete line; the lines after it are complete.
        with suppress(DamagedFileError):
            sessions.append(SessionUse.from_json(line, path))
    return sessions


def is_run(folder: Path) -> bool:
    """Whether this folder contains a run, finished or not."""
    begun = (folder / _SEEDS).exists() or (folder / _JOURNAL).exists()
    return begun and (folder / _RUN).exists()


def _link(previous: str, payload: bytes) -> str:
    return hashlib.sha256(previous.encode() + payload).hexdigest()[:16]
