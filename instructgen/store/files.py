"""Writes files and locks folders so that no file is damaged if the process is killed.

A file is either complete or absent. File system errors are raised as `StorageError`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

import orjson

from instructgen.errors import DamagedFileError, RunError, StorageError
from instructgen.printable import without_secrets

LOCK = "lock"
# Files that describe data or a run are small. A line of a journal contains a completion.
_MOST_BYTES, _MOST_BYTES_OF_A_LINE = 2**26, 2**27
_NEXT_STEPS = {
    errno.ENOSPC: "Free up disk space",
    errno.EDQUOT: "Free up disk space",
    errno.EACCES: "Fix the permissions",
    errno.EPERM: "Fix the permissions",
    errno.EROFS: "Make the file system writable",
}


def write_atomic(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file atomically: under its name, only a complete file is ever visible."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open_new(partial) as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def open_new(path: Path) -> IO[bytes]:
    """Open a file that is new, for writing; a file or a link in its place is removed first."""
    path.unlink(missing_ok=True)
    return path.open("xb")


def open_existing(path: Path, flags: int) -> int:
    """Open a file that instructgen wrote and return its descriptor; a link is not followed.

    Args:
        path: the file, which is created if ``flags`` contain O_CREAT.
        flags: how to open it, as for `os.open`.

    Raises:
        DamagedFileError: it is a link, a pipe, a device or a folder, or is opened for writing and
            has another name elsewhere (a hard link).
    """
    try:
        # Opening a pipe that nobody writes to would never end.
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise _special(path) from error
        raise
    state = os.fstat(handle)
    linked = state.st_nlink > 1 and flags & (os.O_WRONLY | os.O_RDWR)
    if not stat.S_ISREG(state.st_mode) or linked:
        os.close(handle)
        raise _special(path)
    return handle


def open_file(path: Path) -> BufferedReader:
    """Open a file that instructgen wrote for reading; raise as `open_existing`."""
    return os.fdopen(open_existing(path, os.O_RDONLY), "rb")


def read_file(path: Path) -> bytes:
    """Return the contents of a file that instructgen wrote.

    Raises:
        DamagedFileError: as for `open_existing`, or the file has more than 64 MiB.
        OSError: the file cannot be read.
    """
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > _MOST_BYTES:
            raise DamagedFileError(f"the file has more than {_MOST_BYTES // 2**20} MiB.", path=path)
        return file.read()


def lines_of(file: IO[bytes], path: Path) -> Iterator[bytes]:
    """Yield the lines of an open file, with their newlines.

    Raises:
        DamagedFileError: a line has more than 128 MiB.
    """
    while line := file.readline(_MOST_BYTES_OF_A_LINE):
        if len(line) == _MOST_BYTES_OF_A_LINE:
            message = f"a line has more than {_MOST_BYTES_OF_A_LINE // 2**20} MiB."
            raise DamagedFileError(message, path=path)
        yield line


def _special(path: Path) -> DamagedFileError:
    return DamagedFileError(
        "a link, pipe, device or folder is in place of the file, or it is a hard link.",
        path=path,
        hint="Remove it, or replace it with a copy of the file.",
    )


def write_record(path: Path, data: bytes) -> None:
    """Write a file about data or a run, such as a card or a manifest, without any secrets."""
    text = data.decode("utf-8", "surrogateescape")
    clean = without_secrets(text)
    if clean != text and path.suffix == ".json":
        # Only texts can contain a secret; a name of a key or a number may look like one.
        data = orjson.dumps(_cleaned(orjson.loads(data)), option=orjson.OPT_INDENT_2)
    else:
        data = clean.encode("utf-8", "surrogateescape")
    write_atomic(path, [data])


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, list):
        return [_cleaned(each) for each in value]
    return {k: _cleaned(v) for k, v in value.items()} if isinstance(value, dict) else value


def write_files(folder: Path, files: Mapping[str, bytes], *others: str) -> None:
    """Write files into a folder that is new or contains only these files and ``others``.

    Raises:
        RunError: the folder contains other files.
        StorageError: a file cannot be written.
    """
    with storage(folder):
        make_folder(folder, *files, *others)
        for name, data in files.items():
            write_record(folder / name, data)


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 digest of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: Path, *names: str) -> None:
    """Create a folder; raise RunError if it contains files other than ``names`` and the lock."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is not a folder.", "Use another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    known = {LOCK, *names, *(f".{name}.partial" for name in names)}
    if others := sorted({p.name for p in folder.iterdir()} - known):
        raise RunError(
            f"{folder} is not an instructgen output folder (contains {others[0]}).",
            "Use another --out.",
        )


def regular_file(path: Path) -> Path:
    """Return the path; raise DamagedFileError if it is a link, a pipe, a device or a folder."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise _special(path)
    return path


def own_folder(path: Path) -> Path:
    """Return the path of a folder in an output folder; raise DamagedFileError if it is a link."""
    if path.is_symlink():
        raise _special(path)
    return path


def sync_folder(folder: Path) -> None:
    """Flush the list of files in a folder to disk, so that new names survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(folder: Path, wait_s: float = 0.0) -> Iterator[int]:
    """Lock a folder for this process, and for processes that inherit the yielded file descriptor.

    Raises:
        RunError: another process still holds the lock after ``wait_s`` seconds.
    """
    handle = open_existing(folder / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise RunError(
                        f"{folder} is in use by another process.",
                        "Wait until that process ends, or use another --out.",
                    ) from None
                time.sleep(0.05)
        yield handle
    finally:
        os.close(handle)


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Convert file system errors to a `StorageError` that names the file and the next step."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        where = error.filename or path
        step = _NEXT_STEPS.get(error.errno or 0, "Fix the cause")
        raise StorageError(
            f"{where} cannot be written ({error.strerror or error}).",
            f"{step}, then rerun the same command to resume.",
        ) from error


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the old and the new value of each key whose values differ between two dicts.

    A nested key is written ``outer.inner``. A key that is missing in a dict counts as None.
    """
    before, after = _flat(was), _flat(now)
    keys = [k for k in (before | after) if before.get(k) != after.get(k)]
    return {key: (before.get(key), after.get(key)) for key in keys}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= _flat(inner, f"{prefix}{key}.")
        else:
            flat[prefix + key] = inner
    return flat
