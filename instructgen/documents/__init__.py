"""The interface of readers, which get the text of documents such as PDF files.

Each reader has its own file in this folder. `instructgen.documents.reading` runs readers in a
process of its own, and `instructgen.documents.split` divides a text into segments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from instructgen.formats.files import files_below
from instructgen.plugins import classes


@dataclass(frozen=True, slots=True)
class DocumentLimits:
    """What one document may need.

    ``bytes`` is the size of its file, ``characters`` the length of its text, ``seconds`` the time
    to read it, and ``memory`` the bytes that the process which reads it may have.
    """

    bytes: int = 100 * 2**20
    characters: int = 20_000_000
    pages: int = 5_000
    seconds: float = 60.0
    memory: int = 2**31


@dataclass(frozen=True, slots=True)
class DocumentText:
    """The text of a document, with headings as in Markdown.

    ``pages`` are the positions at which its pages begin, or () for a document without pages.
    """

    text: str
    pages: tuple[int, ...] = ()


class Unreadable(Exception):
    """A document that cannot be used: ``code`` is the reason, and ``detail`` a sentence."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)
        self.code, self.detail = code, detail


class DocumentFormat(ABC):
    """Gets the text of documents of one type. ``suffixes`` are the endings of their files."""

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    @abstractmethod
    def read(self, data: bytes, limits: DocumentLimits) -> DocumentText:
        """Return the text of a document.

        Raises:
            Unreadable: the document cannot be used.
        """


def reader_for(path: Path) -> type[DocumentFormat] | None:
    """Return the reader for the ending of a file's name, or None."""
    suffix = path.suffix.lower()
    readers: list[type[DocumentFormat]] = list(classes("readers").values())
    return next((reader for reader in readers if suffix in reader.suffixes), None)


def document_files(path: Path) -> list[Path]:
    """Return the file at a path, or all files in a folder and its subfolders, in order.

    Hidden files are left out, and links to folders are not followed.

    Raises:
        InputError: the folder cannot be read.
    """
    return sorted(files_below(path)) if path.is_dir() else [path]
