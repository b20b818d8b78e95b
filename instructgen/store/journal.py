"""Run folders: the journal of completions, the one truth of a run.

Everything else in the folder is computed from it and can be made again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from instructgen.engines import Completion
from instructgen.errors import RunError
from instructgen.store.files import (
    locked,
    make_folder,
    regular_file,
    storage,
    sync_folder,
    write_atomic,
)

# 2: rows have more columns than in 1.
FORMAT = 2
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
            with storage(folder):
                # run.json is written last, so a folder with only these is a
                # run that was killed while it began.
                make_folder(folder, _SEEDS, _RUN)
                held.enter_context(locked(folder))
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

    def update(self, info: dict[str, Any]) -> None:
        """Replace what run.json holds.

        Raises:
            StorageError: the disk refuses.
        """
        with storage(self.folder):
            write_atomic(self.folder / _RUN, [orjson.dumps(info, option=orjson.OPT_INDENT_2)])
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

    def end_session(self, spent: Mapping[str, float]) -> None:
        """Note what the time until now brought; nothing of the dataset depends on it.

        Raises:
            StorageError: the disk refuses.
        """
        path = regular_file(self.folder / _SESSIONS)
        with storage(path), path.open("ab") as file:
            file.write(orjson.dumps(spent) + b"\n")

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
    path = regular_file(folder / _RUN)
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


def read_seed_rows(folder: Path, info: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The seeds of a run, as `sample_row` writes them.

    Raises:
        RunError: the copy does not match its digest.
    """
    path = folder / _SEEDS
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != info["seeds"]["sha256"]:
        raise RunError(f"{path} is missing or was changed.", "Restore it from a copy.")
    return (orjson.loads(line) for line in data.split(b"\n") if line)


def read_sessions(folder: Path) -> list[dict[str, float]]:
    """What each session of a run took and brought, but those that were killed."""
    path = folder / _SESSIONS
    if not path.is_file():
        return []
    found = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        # A kill can tear a line; what follows it is whole.
        with suppress(orjson.JSONDecodeError):
            found.append(orjson.loads(line))
    return found


def is_run(folder: Path) -> bool:
    """Whether a run was begun in this folder; models have a file of the same name."""
    begun = (folder / _SEEDS).exists() or (folder / _JOURNAL).exists()
    return begun and (folder / _RUN).exists()


def _link(previous: str, payload: bytes) -> str:
    return hashlib.sha256(previous.encode() + payload).hexdigest()[:16]
