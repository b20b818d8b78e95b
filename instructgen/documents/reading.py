"""Reads documents in a process of its own, with limits of time and memory.

The libraries that read documents were not written for hostile files. A file may keep them busy
forever, or need any amount of memory. Then only this process ends, and the document is rejected.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import orjson

from instructgen.documents import DocumentFormat, DocumentLimits, DocumentText, Unreadable
from instructgen.errors import ConfigError, first_line
from instructgen.plugins import find, load_plugin, loaded_files

_START_S = 120.0
_PROGRAM = "from instructgen.documents.reading import main; main()"


class DocumentReader:
    """Gets the texts of documents. Use it as a context manager; it ends the process.

    Args:
        limits: what a document may need.
    """

    def __init__(self, limits: DocumentLimits | None = None) -> None:
        self._limits = limits or DocumentLimits()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection[Any, Any]

    def __enter__(self) -> Self:
        """Return the reader; the process starts with the first document."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._end()

    def read(self, kind: type[DocumentFormat], data: bytes) -> DocumentText:
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
            self._pipe.send((kind.name, data))
            if not self._pipe.poll(limits.seconds):
                self._end()
                raise Unreadable("too_slow", f"not read within {limits.seconds:g} s")
            result: dict[str, Any] = orjson.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            self._end()
            raise Unreadable("broken", "the process that read it died") from None
        if "package" in result:
            raise ConfigError(
                f"documents of the type {kind.name} need the package {result['package']}.",
                "Install it: pip install 'instructgen[documents]'.",
            )
        if "code" in result:
            raise Unreadable(result["code"], result["detail"])
        return DocumentText(result["text"], tuple(result["pages"]))

    def _start(self) -> None:
        self._pipe, theirs = Pipe()
        self._process = subprocess.Popen(  # noqa: S603 (a program of our own)
            # -P: modules in the working folder have no effect.
            [sys.executable, "-P", "-c", _PROGRAM, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C ends this process, which then ends the other.
            start_new_session=True,
        )
        theirs.close()
        files = loaded_files()
        with suppress(EOFError, OSError):
            self._pipe.send((self._limits, [str(path) for path in files]))
            # The time to start does not count as the time of the first document.
            if self._pipe.poll(_START_S):
                self._pipe.recv_bytes()
                return
        self._end()
        named = f" Each of them must load alone: {', '.join(map(str, files))}." if files else ""
        raise ConfigError(
            "the process that reads documents does not start.",
            f"Check the memory of the machine and the files in --plugin.{named}",
        )

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._pipe.close()


def main() -> None:
    """Serve the process at the other end of the pipe whose descriptor is the first argument."""
    pipe: Connection[Any, Any] = Connection(int(sys.argv[1]))
    limits, plugins = pipe.recv()
    for file in plugins:
        load_plugin(file)
    _limit_memory(limits.memory)
    pipe.send_bytes(b"ready")
    with suppress(EOFError, BrokenPipeError):
        while True:
            name, data = pipe.recv()
            pipe.send_bytes(orjson.dumps(_result(find("readers", name), data, limits)))


def _limit_memory(size: int) -> None:
    import resource

    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _result(
    kind: type[DocumentFormat], data: bytes, limits: DocumentLimits
) -> dict[str, str | tuple[int, ...]]:
    """Return the text of a document, or why there is none."""
    try:
        found = kind().read(data, limits)
    except Unreadable as error:
        return {"code": error.code, "detail": error.detail}
    except ImportError as error:
        return {"package": error.name or str(error)}
    except MemoryError:
        detail = f"it needs more than {limits.memory:,} bytes of memory"
        return {"code": "too_large", "detail": detail}
    except Exception as error:  # noqa: BLE001 (libraries raise any exception for a damaged file)
        return {"code": "broken", "detail": f"{type(error).__name__}: {first_line(error)}"}
    if len(found.text) > limits.characters:
        return {"code": "too_large", "detail": f"more than {limits.characters:,} characters"}
    # A text with half of a pair of code units cannot be written to a file.
    text = found.text.encode("utf-8", "replace").decode()
    if not text.strip():
        return {"code": "empty", "detail": "the document has no text"}
    return {"text": text, "pages": found.pages}


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
