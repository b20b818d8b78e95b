"""Reads documents in a process of its own, with limits of time and memory.

The libraries that read documents were not written for hostile files. A file may keep them busy
forever, or need any amount of memory. Then only this process ends, and the document is rejected.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from instructgen.documents import DocumentFormat, DocumentLimits, DocumentText, Unreadable
from instructgen.errors import ConfigError, first_line
from instructgen.plugins import load_plugin, loaded_files

_START_S = 120.0


class DocumentReader:
    """Gets the texts of documents. Use it as a context manager; it ends the process.

    Args:
        limits: what a document may need.
    """

    def __init__(self, limits: DocumentLimits | None = None) -> None:
        self._limits = limits or DocumentLimits()
        self._process: Any = None
        self._pipe: Connection

    def __enter__(self) -> Self:
        """Return the reader; the process starts with the first document."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._end()

    def read(self, reader: type[DocumentFormat], data: bytes) -> DocumentText:
        """Return the text of a document.

        Raises:
            Unreadable: the document cannot be used, or exceeds a limit.
            ConfigError: a library is missing.
        """
        limits = self._limits
        if len(data) > limits.bytes:
            raise Unreadable("too_large", f"{len(data):,} bytes, more than {limits.bytes:,}")
        if not data.strip():
            raise Unreadable("empty", "the file is empty")
        if self._process is None:
            self._start()
        try:
            self._pipe.send((reader, data))
            if not self._pipe.poll(limits.seconds):
                self._end()
                raise Unreadable("too_slow", f"not read within {limits.seconds:g} s")
            result = self._pipe.recv()
        except (EOFError, OSError):
            self._end()
            raise Unreadable("broken", "the process that read it died") from None
        if isinstance(result, Exception):
            raise result
        text: DocumentText = result
        return text

    def _start(self) -> None:
        # A forked process would have the threads and the memory of this one.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self._limits, loaded_files()), daemon=True
        )
        self._process.start()
        theirs.close()
        # The time to start does not count as the time of the first document.
        if not self._pipe.poll(_START_S):
            self._end()
            raise Unreadable("too_slow", "the process that reads documents does not start")
        self._pipe.recv()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _serve(pipe: Connection, limits: DocumentLimits, plugins: Sequence[Path]) -> None:
    """Answer with the text of each document, or the exception that says why there is none."""
    for file in plugins:
        load_plugin(file)
    _limit_memory(limits.memory)
    pipe.send(None)
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            reader, data = pipe.recv()
            pipe.send(_result(reader, data, limits))


def _limit_memory(size: int) -> None:
    if sys.platform != "win32":
        import resource

        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _result(
    reader: type[DocumentFormat], data: bytes, limits: DocumentLimits
) -> DocumentText | Exception:
    try:
        found = reader().read(data, limits)
    except Unreadable as error:
        return error
    except ImportError as error:
        return ConfigError(
            f"documents of the type {reader.name} need the package {error.name}.",
            "Install it: pip install 'instructgen[documents]'.",
        )
    except MemoryError:
        return Unreadable("too_large", f"it needs more than {limits.memory:,} bytes of memory")
    except Exception as error:  # noqa: BLE001 (libraries raise any exception for a damaged file)
        return Unreadable("broken", f"{type(error).__name__}: {first_line(error)}")
    if len(found.text) > limits.characters:
        return Unreadable("too_large", f"more than {limits.characters:,} characters")
    # A text with half of a pair of code units cannot be written to a file.
    text = found.text.encode("utf-8", "replace").decode()
    if not text.strip():
        return Unreadable("empty", "the document has no text")
    return DocumentText(text, found.pages)


def read_bytes(path: Path, limits: DocumentLimits) -> bytes:
    """Return the bytes of a file, at most one more than the limit.

    Raises:
        Unreadable: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(limits.bytes + 1)
    except OSError as error:
        raise Unreadable("broken", f"the file cannot be read ({error.strerror})") from None
