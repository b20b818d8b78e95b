"""Files that survive a kill: whole or absent, locked folders, the disk's refusals in one line."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from instructgen.errors import RunError, StorageError

LOCK = "lock"
_MENDED_BY = {
    errno.ENOSPC: "Free space",
    errno.EDQUOT: "Free space",
    errno.EACCES: "Mend permissions",
    errno.EPERM: "Mend permissions",
    errno.EROFS: "Make it writable",
}


def write_atomic(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file so that its name always stands for a whole one."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a few files into a folder that holds nothing else, or the same files.

    Raises:
        RunError: the folder holds something else.
        StorageError: the disk refuses.
    """
    with storage(folder):
        make_folder(folder, *files)
        for name, data in files.items():
            write_atomic(folder / name, [data])


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: Path, *begun: str) -> None:
    """Make a folder, unless it holds more than these files, whole or not, and the lock."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is no folder.", "Give another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    ours = {LOCK, *begun, *(f".{name}.partial" for name in begun)}
    if others := sorted({p.name for p in folder.iterdir()} - ours):
        raise RunError(f"{folder} holds {others[0]} and is none of ours.", "Give another --out.")


def regular_file(path: Path) -> Path:
    """The path, unless it is a pipe or the like, which would be waited on for ever."""
    if path.exists() and not path.is_file():
        raise RunError(f"{path} is no regular file.", "Restore it from a copy.")
    return path


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(folder: Path, wait_s: float = 0.0) -> Iterator[int]:
    """Hold a folder for this process, and for those that inherit the lock's file descriptor.

    Raises:
        RunError: another process holds it, and did all the time that was waited.
    """
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        until = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise RunError(
                        f"{folder} is in use by another process.",
                        "Wait for it, or give another --out.",
                    ) from None
                time.sleep(0.05)
        yield handle
    finally:
        os.close(handle)


@contextmanager
def storage(path: Path) -> Iterator[None]:
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


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys, as ``table.key``, that two records do not agree on, with both values.

    A key that one does not have is None there, as an option that is not given.
    """
    one, other = _flat(was), _flat(now)
    keys = [k for k in (one | other) if one.get(k) != other.get(k)]
    return {key: (one.get(key), other.get(key)) for key in keys}


def _flat(value: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            found |= _flat(inner, f"{before}{key}.")
        else:
            found[before + key] = inner
    return found
