"""The command `import`: reads data in a supported format, and writes it as a dataset.

Every row is kept or rejected. For a rejected row, its line number and the reason are recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from instructgen.commands.derive import (
    ROWS_AT_ONCE,
    Derived,
    Output,
    Written,
    derive,
    name_of,
)
from instructgen.commands.interface import command
from instructgen.commands.options import ImportOptions
from instructgen.errors import ConfigError
from instructgen.formats import BadRow, Format, Reading, UnusedRow, check_language, read
from instructgen.formats.plain import Plain
from instructgen.licensing.licenses import check_license
from instructgen.plugins import find, provenance
from instructgen.reports.cards import rejected_table
from instructgen.schema.progress import Progress, Watch
from instructgen.schema.records import JsonRecord
from instructgen.schema.sample import Origin, Rejected, Rejection, Sample, Shape
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


@command(ImportOptions, "path", "out", "format")
def import_data(options: ImportOptions, watch: Watch | None = None) -> Derived[ImportFacts]:
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
    mapping = options.mapping
    _check_texts(options.attribution, options.model, *mapping, *mapping.values())
    format = _format(options.format, mapping, options.shape, options.take)
    terms: dict[str, Any] = {
        "license": license,
        "language": options.language,
        "attribution": options.attribution,
        "model": options.model,
        "on_bad_row": options.on_bad_row,
    }
    reading = read(options.path, format, split=options.split, **terms)
    if format is None and (options.shape or options.take):
        # The format was detected from the fields of the rows, so the options are applied only now.
        reading.format = type(reading.format)(options.shape, options.take)
    shape = reading.format.shape
    assert shape is not None  # The format has set its default.
    made_from = _provenance(options, reading.format, terms)
    return derive(
        options.out, made_from, shape, ImportFacts, lambda output: _write(output, reading, watch)
    )


def _check_texts(*texts: str) -> None:
    for text in texts:
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise ConfigError(f"the option value {text[:40]!r} is not valid UTF-8.", "Use UTF-8.")


def _provenance(options: ImportOptions, format: Format, terms: Mapping[str, Any]) -> Provenance:
    """Return what determines the rows of the dataset: the file, its format and the options."""
    path = options.path
    ref = InputRef(str(path), split=options.split)
    if path.exists():
        ref = InputRef(name_of(path), digest_of(path))
    recorded = {
        "format": format.name,
        "map": options.mapping,
        "as": format.shape,
        "take": format.take,
        **terms,
    }
    return Provenance("import", (ref,), recorded, plugins=provenance(sources=[type(format)]))


def _format(
    name: str | None, mapping: Mapping[str, str], shape: Shape | None, take: str | None
) -> Format | None:
    if mapping:
        if name not in (None, Plain.name):
            raise ConfigError(f"--map cannot be used with the format {name}.", "Omit one of them.")
        return Plain(shape, take, mapping)
    if name is None:
        return None
    format: Format = find("sources", name)(shape, take)
    return format


def _write(output: Output, reading: Reading, watch: Watch | None) -> Written[ImportFacts]:
    kept, rejected = list[Sample](), list[Rejected]()
    number = 0

    def flush() -> None:
        output.keep(kept)
        output.reject(rejected)
        kept.clear()
        rejected.clear()

    for row in reading:
        if isinstance(row, Sample):
            kept.append(row)
        else:
            rejected.append(_rejected(row, number))
            number += 1
        if len(kept) + len(rejected) >= ROWS_AT_ONCE:
            flush()
            if watch is not None:
                watch(Progress("read", reading.used + reading.others))
    flush()
    if output.rejected != reading.others or reading.used + reading.others != reading.units:
        raise RuntimeError("The row counts are inconsistent. This is a bug; please report it.")
    facts = ImportFacts(reading.format.name, reading.format.unit, reading.units, reading.used)
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
    if isinstance(row, BadRow):
        sample = Sample("", origin=Origin(record=str(row.line)))
        rejection = Rejection("import", "bad_row", f"line {row.line}: {row.reason}")
    else:
        sample = row.sample
        rejection = Rejection("import", row.code, f"line {row.line}: {row.reason}")
    return Rejected(sample, rejection, "import", number)
