"""Reads and writes run folders: run.json, the seeds, and the journal (all model completions).

The dataset in a run folder is computed from these files, so it can be recreated from them.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from instructgen.engines import CommitOrder, Completion, Role
from instructgen.errors import DamagedFileError, RunError, VersionError
from instructgen.schema.arrow import sample_of
from instructgen.schema.records import checked, read_json
from instructgen.schema.sample import Sample
from instructgen.store.files import (
    digest_of_file,
    lines_of,
    locked,
    make_folder,
    open_existing,
    open_file,
    read_file,
    regular_file,
    storage,
    sync_folder,
    write_atomic,
    write_record,
)
from instructgen.store.records import RunInfo, SessionUse, run_info_of

_JOURNAL, _RUN, _SEEDS = "journal.jsonl", "run.json", "seeds.jsonl"
_SESSIONS, _KNOWN = "sessions.jsonl", "known.jsonl"
# A power failure can remove fewer lines than this, and none that are older than this.
_GROUP_LINES = 256
GROUP_S = 0.1


@dataclass(frozen=True, slots=True)
class SessionLine:
    """A start of the run: the commits applied before it, and the settings that may change.

    ``target`` is the number of rows, or ``all``. ``order`` is the order in which completions are
    used, and ``window`` the number of requests in flight, or None if the engine decides it.
    """

    after: int
    target: int | Literal["all"]
    order: CommitOrder
    window: int | None
    max_tokens_total: int | None
    max_cost: float | None
    version: str


@dataclass(frozen=True, slots=True)
class IssueLine:
    """A request that is about to be sent: its number, and what asked for it.

    ``after`` is the number of completions that had been used when the request was made, and
    ``draft`` the draft that it belongs to. The prompt follows from these, so it is not stored.
    """

    n: int
    after: int
    draft: int
    stage: str
    role: Role


@dataclass(frozen=True, slots=True)
class CompletionLine:
    """The completion of request number ``n``, and the digest of the request."""

    n: int
    digest: str
    completion: Completion


Line = SessionLine | IssueLine | CompletionLine
_KINDS: dict[object, Any] = {
    "session": SessionLine,
    "issue": IssueLine,
    "completion": CompletionLine,
}


class Run:
    """A run folder that is locked for this process.

    Use the context managers `Run.create` or `Run.open` to get a `Run`. ``healed`` is a message for
    the user if an incomplete last line was removed from the journal, otherwise None.
    """

    def __init__(self, folder: Path, info: RunInfo) -> None:
        self.folder = folder
        self.info = info
        self.healed: str | None = None
        self._chain = info.run
        self._journal: int = -1
        self._end = 0
        self._lines = 0
        # The lines that a power failure could remove, and when the first of them was appended.
        self._unsynced, self._since = 0, 0.0

    @property
    def id(self) -> str:
        """The id of the run: a digest of its configuration and seeds."""
        return self.info.run

    @classmethod
    @contextmanager
    def create(
        cls, folder: Path, info: RunInfo, seeds: Iterable[bytes], known: Iterable[bytes] = ()
    ) -> Iterator[Run]:
        """Start a run in a new or empty folder.

        Args:
            folder: the run folder. It is created, with its parents, if necessary.
            info: the contents of run.json.
            seeds: the seeds as JSON lines. They are copied, so that the run does not depend
                on other files.
            known: the rows that new rows must differ from, in the same form; they are copied too.

        Raises:
            RunError: the folder contains other files, or is in use.
            StorageError: a file cannot be written.
        """
        with ExitStack() as stack:
            with storage(folder):
                # A folder with only these files is a run that was killed while it started,
                # because run.json is written last.
                make_folder(folder, _SEEDS, _KNOWN, _RUN)
                stack.enter_context(locked(folder))
                write_atomic(folder / _SEEDS, seeds)
                if info.known is not None:
                    write_atomic(folder / _KNOWN, known)
                write_record(folder / _RUN, info.to_json())
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

    @classmethod
    @contextmanager
    def view(cls, folder: Path) -> Iterator[Run]:
        """Open a run for reading, also while another process is generating rows in it.

        An incomplete last line of the journal is skipped.

        Raises:
            RunError: the folder is not a run, is damaged, or has an unsupported format.
        """
        run = cls(folder, read_info(folder))
        path = regular_file(folder / _JOURNAL)
        if path.exists():
            run._end = run._read(path)
        yield run

    def __len__(self) -> int:
        """Return the number of lines of the journal."""
        return self._lines

    def lines(self) -> Iterator[tuple[int, Line]]:
        """Yield the lines that the journal contains now, each with its number, counted from 1.

        Raises:
            DamagedFileError: a line is not valid, although its digest is.
        """
        if not self._end:
            return
        left, path = self._end, self.folder / _JOURNAL
        with open_file(path) as file:
            for number, line in enumerate(lines_of(file, path), start=1):
                yield number, _parsed(line, path, number)
                left -= len(line)
                if left <= 0:
                    return

    def append(self, *lines: Line) -> None:
        """Append lines to the journal.

        The lines are not lost if the process is killed. A power failure can remove those that
        were appended after the last `sync`, which this method calls when there are 256 of them,
        and when the first of them was appended 100 ms ago; see also `unsynced_for`.

        Raises:
            StorageError: the file cannot be written; earlier lines stay recorded.
        """
        data, chain = bytearray(), self._chain
        for line in lines:
            payload = _payload(line)
            chain = _link(chain, payload)
            data += b"%s %s\n" % (chain.encode(), payload)
        view = memoryview(data)
        try:
            with storage(self.folder / _JOURNAL):
                while view:
                    view = view[os.write(self._journal, view) :]
        finally:
            # If the write was interrupted, the next line must still follow a complete line.
            if view:
                os.ftruncate(self._journal, self._end)
            else:
                self._end += len(data)
                self._chain = chain
                self._lines += len(lines)
        if not self._unsynced:
            self._since = time.monotonic()
        self._unsynced += len(lines)
        if self._unsynced >= _GROUP_LINES or self.unsynced_for() >= GROUP_S:
            self.sync()

    def unsynced_for(self) -> float:
        """Return the seconds since the first line that is not synced, or 0 if all lines are.

        A caller that waits must not wait until this is more than `GROUP_S`, and then call `sync`.
        """
        return time.monotonic() - self._since if self._unsynced else 0.0

    def update(self, info: RunInfo) -> None:
        """Replace the contents of run.json. Raise StorageError if the file cannot be written."""
        with storage(self.folder):
            write_record(self.folder / _RUN, info.to_json())
        self.info = info

    def sync(self) -> None:
        """Write all lines of the journal to disk, so that they survive a power failure."""
        with storage(self.folder / _JOURNAL):
            os.fsync(self._journal)
        self._unsynced = 0

    def seeds(self) -> Iterator[Sample]:
        """Yield the seeds as they were when the run started.

        Raises:
            RunError: the copy of the seeds does not match its digest.
        """
        return read_seed_rows(self.folder, self.info)

    def known(self) -> Iterator[Sample]:
        """Yield the rows that new rows must differ from, in addition to the seeds.

        Raises:
            RunError: the copy of the rows does not match its digest.
        """
        if self.info.known is None:
            return iter(())
        return _rows(self.folder / _KNOWN, self.info.known.sha256)

    def end_session(self, use: SessionUse) -> None:
        """Append the time and tokens since the run was started or resumed to sessions.jsonl."""
        path = self.folder / _SESSIONS
        with storage(path):
            handle = open_existing(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            with os.fdopen(handle, "ab") as file:
                file.write(orjson.dumps(use) + b"\n")

    @contextmanager
    def _opened(self) -> Iterator[Run]:
        path = self.folder / _JOURNAL
        self._journal = open_existing(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            sync_folder(self.folder)
            self._end = self._read(path)
            if self._end < os.fstat(self._journal).st_size:
                os.ftruncate(self._journal, self._end)
                os.fsync(self._journal)
                self.healed = (
                    f"{path}: incomplete last lines were removed; "
                    "their requests will be sent again."
                )
            yield self
        finally:
            os.close(self._journal)

    def _read(self, path: Path) -> int:
        """Check the journal; return the offset of the end of its last complete line."""
        offset = 0
        with open_file(path) as file:
            for line in lines_of(file, path):
                if not line.endswith(b"\n"):
                    return offset
                chain, _, payload = line[:-1].partition(b" ")
                self._chain = _link(self._chain, payload)
                if chain != self._chain.encode():
                    if b"\0" in line and sum(1 for _ in lines_of(file, path)) < _GROUP_LINES:
                        # After a power failure, what was written last may be on the disk while
                        # zeros are in the place of what was written before it.
                        return offset
                    raise DamagedFileError(
                        f"the file is damaged at byte {offset}.",
                        path=path,
                        hint="Restore the file from a copy. Or run `truncate -s "
                        f"{offset} {path}`; resuming then repeats the removed requests.",
                    )
                offset += len(line)
                self._lines += 1
        return offset


def read_info(folder: Path) -> RunInfo:
    """Read run.json of a run folder.

    Raises:
        RunError: the folder has no run.json.
        DamagedFileError: the file is damaged.
        VersionError: the file has an unsupported format.
    """
    path = folder / _RUN
    try:
        data = read_file(path)
    except FileNotFoundError:
        raise RunError(
            f"{folder} is not a run folder: {_RUN} is missing.", "Check the path."
        ) from None
    except OSError as error:
        raise DamagedFileError(f"the file cannot be read ({error}).", path=path) from error
    return run_info_of(data, path)


def read_seed_rows(folder: Path, info: RunInfo) -> Iterator[Sample]:
    """Yield the seeds of a run.

    Raises:
        DamagedFileError: the copy of the seeds does not match its digest.
    """
    return _rows(folder / _SEEDS, info.seeds.sha256)


def _rows(path: Path, sha256: str) -> Iterator[Sample]:
    if not regular_file(path).exists() or digest_of_file(path) != sha256:
        raise DamagedFileError("the file is missing or was changed.", path=path)
    with open_file(path) as file:
        for number, line in enumerate(lines_of(file, path), start=1):
            yield sample_of(read_json(line, path, number), path, number)


def read_sessions(folder: Path) -> list[SessionUse]:
    """Return the time and tokens per start or resumption of a run, except if it was killed."""
    path = folder / _SESSIONS
    if not regular_file(path).exists():
        return []
    sessions = []
    for line in read_file(path).split(b"\n")[:-1]:
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


def _payload(line: Line) -> bytes:
    if not isinstance(line, CompletionLine):
        kind = b"issue" if isinstance(line, IssueLine) else b"session"
        return b'{"kind":"%s",%s' % (kind, orjson.dumps(line)[1:])
    c = line.completion
    return orjson.dumps(
        {
            "kind": "completion",
            "n": line.n,
            "digest": line.digest,
            "text": c.text,
            "finish_reason": c.finish_reason,
            "prompt_tokens": c.prompt_tokens,
            "output_tokens": c.output_tokens,
            "error": c.error,
            **({"reasoning": c.reasoning} if c.reasoning else {}),
        }
    )


def _parsed(line: bytes, path: Path, number: int) -> Line:
    values = read_json(line[:-1].partition(b" ")[2], path, number)
    kind = values.pop("kind", None) if isinstance(values, dict) else None
    if kind == "completion":
        own = {name: values.pop(name, None) for name in ("n", "digest")}
        completion = checked(Completion, values, path, number)
        values = {**own, "completion": completion}
    if kind not in _KINDS:
        raise DamagedFileError("the line has an unknown kind.", path=path, line=number)
    found: Line = checked(_KINDS[kind], values, path, number)
    return found


def _link(previous: str, payload: bytes) -> str:
    return hashlib.sha256(previous.encode() + payload).hexdigest()[:16]
