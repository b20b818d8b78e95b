"""Reads documents and writes a dataset of their segments: `import documents`.

Each document is used, or rejected with a reason. So is each segment of a document that is used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from instructgen.commands.derive import Derived, Output, Written, derive, name_of
from instructgen.documents import DocumentLimits, Unreadable, document_files, reader_for
from instructgen.documents.reading import DocumentReader, read_bytes
from instructgen.documents.split import Splitter
from instructgen.errors import ConfigError, InputError
from instructgen.filters import Filter
from instructgen.filters.curation import Curation
from instructgen.filters.recipe import load_filters, recorded_filters
from instructgen.plugins import classes, provenance
from instructgen.printable import printable
from instructgen.reports.cards import rejected_table
from instructgen.schema.progress import Progress, Watch
from instructgen.schema.records import JsonRecord
from instructgen.schema.sample import Origin, Place, Rejected, Rejection, Sample
from instructgen.similarity.languages import language_of
from instructgen.store import InputRef, Provenance

if TYPE_CHECKING:
    from instructgen.commands.options import ImportOptions


@dataclass(frozen=True, slots=True)
class DocumentFacts(JsonRecord):
    """Facts about a dataset of segments, for its manifest.

    ``read`` is the number of files, and ``used`` the number of those of which a segment was kept.
    ``segments`` is the number of segments of all documents, kept or not, and ``unreadable`` the
    number of files that gave none.
    """

    read: int
    used: int
    segments: int
    unreadable: int


@dataclass(slots=True)
class _Documents:
    """The segments of the files of a folder, and those of its files that cannot be read."""

    options: ImportOptions
    license: str
    files: list[Path]
    watch: Watch | None
    unreadable: list[Rejected] = field(default_factory=list)
    read: int = 0

    def segments(self) -> Iterator[Sample]:
        """Yield the segments of all documents, in order."""
        options, limits = self.options, DocumentLimits()
        splitter = Splitter(options.segment_words, options.overlap)
        with DocumentReader(limits) as reader:
            for path in self.files:
                name = self._name(path)
                self.read += 1
                if self.watch is not None:
                    self.watch(Progress("documents", self.read))
                digest = ""
                try:
                    if not path.resolve().is_relative_to(self.above):
                        raise Unreadable("link", "a link to a file outside of the folder")
                    if (kind := reader_for(path)) is None:
                        raise Unreadable("unknown_type", f"files of the type {path.suffix!r}")
                    data = read_bytes(path, limits)
                    digest = hashlib.sha256(data).hexdigest()
                    document = reader.read(kind, data)
                except Unreadable as error:
                    self._reject(name, digest, error)
                    continue
                language, confidence = options.language, None
                if not language and (guess := language_of(document.text, "")) is not None:
                    language, confidence = guess.language, guess.likelihood
                common = Sample(
                    "",
                    language=language or "und",
                    language_confidence=confidence,
                    source=options.source or name_of(options.path),
                    license=self.license,
                    attribution=(options.attribution,) if options.attribution else (),
                    generators=(options.model,) if options.model not in ("", "human") else (),
                    origin=Origin(record=name, group=name),
                )
                for start, end, heading, page in splitter.segments(document):
                    place = Place(name, digest, start, end, heading, page)
                    yield replace(common, instruction=document.text[start:end], place=place)

    @property
    def above(self) -> Path:
        """The folder of the documents, without links."""
        path = self.options.path
        return path.resolve() if path.is_dir() else path.resolve().parent

    def _name(self, path: Path) -> str:
        """Return the name of a file below the folder that is read.

        Characters that cannot be shown are percent-encoded, so that two files never have one name.
        """
        above = self.options.path if self.options.path.is_dir() else path.parent
        name = os.fspath(path.relative_to(above))
        return "".join(
            c if printable(c) == c and c not in "\n\t" else quote(os.fsencode(c)) for c in name
        )

    def _reject(self, name: str, digest: str, error: Unreadable) -> None:
        sample = Sample("", origin=Origin(record=name), place=Place(name, digest, 0, 0))
        rejection = Rejection("import", error.code, f"{name}: {error.detail}")
        self.unreadable.append(Rejected(sample, rejection, "import", len(self.unreadable)))


def import_documents(
    options: ImportOptions, license: str, watch: Watch | None
) -> Derived[DocumentFacts]:
    """Read a document or a folder of documents, and write a dataset of their segments.

    Raises:
        InputError: the path does not exist or contains no documents.
        ConfigError: an option is invalid or a package is missing.
        RunError: the output folder contains anything other than this dataset.
        StorageError: the files cannot be written.
    """
    if options.overlap > options.segment_words / 2:
        raise ConfigError(
            f"--overlap={options.overlap} is more than half of --segment-words="
            f"{options.segment_words}.",
            "Pass a smaller number.",
        )
    if not (options.path.is_dir() or options.path.is_file()):
        raise InputError(
            "the path is not a file or a folder.", path=options.path, hint="Check the path."
        )
    files = document_files(options.path)
    if not any(reader_for(path) for path in files):
        known = " ".join(s for reader in classes("readers").values() for s in reader.suffixes)
        raise InputError(
            "the path contains no document.",
            path=options.path,
            hint=f"The types of documents are: {known}.",
        )
    if not license:
        raise InputError(
            "the documents have no license.",
            path=options.path,
            hint="Pass --license=SPDX, for example --license=CC-BY-4.0.",
        )
    filters = load_filters(options.recipe)
    documents = _Documents(options, license, files, watch)
    return derive(
        options.out,
        _provenance(options, license, files, filters),
        "documents",
        DocumentFacts,
        lambda output: _write(output, documents, filters, options.out),
    )


def _provenance(
    options: ImportOptions, license: str, files: list[Path], filters: tuple[Filter, ...]
) -> Provenance:
    recorded: dict[str, Any] = {
        "format": "documents",
        "license": license,
        "language": options.language,
        "attribution": options.attribution,
        "model": options.model,
        "source": options.source,
        "segment_words": options.segment_words,
        "overlap": options.overlap,
        "filters": recorded_filters(filters),
    }
    digest = hashlib.sha256()
    for path in files:
        digest.update(os.fsencode(path.relative_to(options.path.parent)) + b"\0")
        try:
            digest.update(read_bytes(path, DocumentLimits()))
        except Unreadable as error:
            digest.update(error.code.encode())
        digest.update(b"\0")
    kinds = {reader for path in files if (reader := reader_for(path)) is not None}
    plugins = provenance(readers=kinds, filters=map(type, filters))
    ref = InputRef(name_of(options.path), digest.hexdigest())
    return Provenance("import", (ref,), recorded, plugins=plugins)


def _write(
    output: Output, documents: _Documents, filters: tuple[Filter, ...], folder: Path
) -> Written[DocumentFacts]:
    curation = Curation(filters, folder=folder)
    used: set[str] = set()
    rejected = 0
    for block in curation.blocks(documents.segments()):
        kept = [row.sample for row in block.kept]
        output.keep(kept)
        used |= {place.document for sample in kept if (place := sample.place) is not None}
        output.reject(
            [Rejected(row.sample, row.rejection, "import", row.place) for row in block.rejected]
        )
        rejected += len(block.rejected)
    segments = sum(curation.report.read.values())
    unreadable = documents.unreadable
    output.reject([replace(r, number=segments + r.number) for r in unreadable])
    facts = DocumentFacts(documents.read, len(used), segments, len(unreadable))
    if output.kept + rejected != segments or output.rejected != rejected + len(unreadable):
        raise RuntimeError("The row counts are inconsistent. This is a bug; please report it.")
    rejections = output.rejections()
    sections = [
        "## Documents",
        "",
        f"{facts.read:,} files gave {facts.segments:,} segments. {facts.unreadable:,} files could "
        f"not be read, and {facts.used:,} have at least one segment here. The others are in "
        "`rejected/`, each with the reason.",
        "",
        *(rejected_table(rejections) if rejections else ()),
    ]
    return Written(facts, sections)
