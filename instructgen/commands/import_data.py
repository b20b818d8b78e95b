"""The command `import`: reads data in a supported format, and writes it as a dataset.

Every row is kept or rejected. For a rejected row, its line number and the reason are recorded.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructgen.commands.derive import (
    ROWS_AT_ONCE,
    Derived,
    Output,
    Written,
    derive,
    name_of,
)
from instructgen.commands.documents import DocumentFacts, import_documents
from instructgen.commands.interface import command, flag_of
from instructgen.commands.options import ImportOptions
from instructgen.errors import ConfigError
from instructgen.formats import BadRow, Format, Reader, Reading, UnusedRow, check_language, read
from instructgen.formats.files import dataset_files
from instructgen.formats.plain import Plain
from instructgen.licensing.licenses import check_license
from instructgen.plugins import provenance
from instructgen.printable import printable
from instructgen.reports.cards import rejected_table
from instructgen.schema.messages import ROLES
from instructgen.schema.progress import Progress, Watch
from instructgen.schema.records import JsonRecord
from instructgen.schema.sample import CHARACTERS_AT_ONCE, Label, Origin, Rejected, Rejection, Sample
from instructgen.store import InputRef, Provenance, digest_of


@dataclass(frozen=True, slots=True)
class ImportFacts(JsonRecord):
    """Facts about an imported dataset, for its manifest.

    ``read`` is the number of items in the input, and ``used`` the number of those that are part of
    a kept row. ``unit`` is the name of these items, such as ``rows`` or ``messages``.
    """

    format: str
    unit: str
    read: int
    used: int
    without_answer: int = 0
    edited: int = 0


@command(ImportOptions, "path", "out", "format")
def import_data(
    options: ImportOptions, watch: Watch | None = None
) -> Derived[ImportFacts] | Derived[DocumentFacts]:
    """Read data in a supported format, and write it as a dataset.

    If the folder already contains the same dataset, nothing is written.

    Raises:
        InputError: the file or a row is invalid.
        ConfigError: an option is invalid.
        RunError: the output folder contains anything other than this dataset.
        StorageError: the files cannot be written.
    """
    license = check_license(options.license) if options.license else ""
    if options.language:
        check_language(options.language)
    _check_of_documents(options)
    if options.format == "documents":
        return import_documents(options, license, watch)
    mapping = options.mapping
    reader = Reader(_roles(options.roles), options.inner_system)
    terms: dict[str, Any] = {
        "license": license,
        "language": options.language,
        "attribution": options.attribution,
        "model": options.model,
        "source": options.source,
        "on_bad_row": options.on_bad_row,
        "encoding": options.encoding,
    }
    reading = read(
        options.path,
        _plain(options) if mapping else options.format,
        shape=options.shape,
        take=options.take,
        reader=reader,
        split=options.split,
        **terms,
    )
    shape = reading.format.shape
    assert shape is not None  # The format has set its default.
    made_from = _provenance(options, reading.format, terms)
    return derive(
        options.out, made_from, shape, ImportFacts, lambda output: _write(output, reading, watch)
    )


# Options of `import` that are only for documents, and those that are only for rows.
_OF_DOCUMENTS = ("segment_words", "overlap", "recipe")
_OF_ROWS = ("mapping", "shape", "take", "roles", "inner_system", "split", "encoding")


def _check_of_documents(options: ImportOptions) -> None:
    """Raise ConfigError if an option that is set has no effect on what is imported."""
    is_documents = options.format == "documents"
    for name in _OF_ROWS if is_documents else _OF_DOCUMENTS:
        if getattr(options, name) != ImportOptions.model_fields[name].default:
            what = "rows" if is_documents else "the format documents"
            raise ConfigError(
                f"{flag_of(ImportOptions, name)} is only for {what}.", "Omit the option."
            )


def _roles(roles: Sequence[str]) -> dict[str, str]:
    """Return a dict from the name of a speaker, in lower case, to its role.

    Raises:
        ConfigError: an item does not have the form ROLE=NAME.
    """
    names: dict[str, str] = {}
    for item in roles:
        role, _, name = item.partition("=")
        if role not in ROLES or not name.strip():
            raise ConfigError(
                f"--role={item}: must have the form ROLE=NAME, where ROLE is one of "
                f"{', '.join(ROLES)}.",
                "Pass, for example, --role=user=customer.",
            )
        names[name.strip().lower()] = role
    return names


def _plain(options: ImportOptions) -> Plain:
    if options.format not in (None, Plain.name):
        message = f"--map cannot be used with the format {options.format}."
        raise ConfigError(message, "Omit the format.")
    return Plain(options.shape, options.take, mapping=options.mapping)


def _provenance(options: ImportOptions, format: Format, terms: Mapping[str, Any]) -> Provenance:
    """Return what determines the dataset: the files, their format, and default values for rows."""
    recorded = {
        "format": format.name,
        "map": options.mapping,
        "as": format.shape,
        "take": format.take,
        "roles": list(options.roles),
        "inner_system": options.inner_system,
        **terms,
    }
    ref = _input_ref(options.path, options.split)
    return Provenance("import", (ref,), recorded, plugins=provenance(sources=[type(format)]))


def _input_ref(path: Path, split: str) -> InputRef:
    """Return the name and digest of the file, or of all files that are read."""
    if path.is_file():
        return InputRef(name_of(path), digest_of(path))
    paths = dataset_files(path, split).paths
    if not paths[0].exists():
        return InputRef(str(path), split=split)
    digests = b"".join(os.fsencode(f"{file.name} {digest_of(file)}\n") for file in paths)
    return InputRef(name_of(path), hashlib.sha256(digests).hexdigest(), split=split)


def _write(output: Output, reading: Reading, watch: Watch | None) -> Written[ImportFacts]:
    kept, rejected = list[Sample](), list[Rejected]()
    number = without_answer = edited = characters = 0

    def flush() -> None:
        output.keep(kept)
        output.reject(rejected)
        kept.clear()
        rejected.clear()

    for row in reading:
        if isinstance(row, Sample):
            kept.append(row)
            characters += row.characters
            without_answer += not row.output.strip() and not row.tool_calls
            edited += bool(row.edits)
        else:
            rejected.append(_rejected(row, number))
            number += 1
        if len(kept) + len(rejected) >= ROWS_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            flush()
            characters = 0
            if watch is not None:
                watch(Progress("read", reading.used + reading.others))
    flush()
    if output.rejected != reading.others or reading.used + reading.others != reading.units:
        raise RuntimeError("The row counts are inconsistent. This is a bug; please report it.")
    facts = ImportFacts(
        *(reading.format.name, reading.format.unit, reading.units, reading.used),
        without_answer,
        edited,
    )
    rejections = output.rejections()
    sections = [
        "## Rows read",
        "",
        f"{facts.read:,} {facts.unit} were read in the format `{facts.format}`; {facts.used:,} "
        f"of them are part of a kept row. The other {reading.others:,} are in `rejected/`, each "
        "with its line number and the reason for its rejection.",
        "",
        *(rejected_table(rejections) if rejections else ()),
    ]
    return Written(facts, sections)


def _rejected(row: BadRow | UnusedRow, number: int) -> Rejected:
    # The name of a file may consist of any bytes.
    place = f"{printable(row.file)}: line {row.line}" if row.file else f"line {row.line}"
    if isinstance(row, BadRow):
        record = (Label("record", row.record),) if row.record else ()
        sample = Sample("", origin=Origin(record=place.removeprefix("line ")), labels=record)
        rejection = Rejection("import", "bad_row", f"{place}: {row.reason}")
    else:
        sample = row.sample
        rejection = Rejection("import", row.code, f"{place}: {row.reason}")
    return Rejected(sample, rejection, "import", number)
