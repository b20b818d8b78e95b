"""Reads dataset files in the formats of other projects, and converts their rows to samples.

Each format is a class in its own file of this package. The class states the fields by which the
format is detected and the license and language of its rows, and converts each record to samples
(rows of instructgen). This module detects the format of a file, and returns every row either as a
sample or with the reason why it is not used. It does not filter rows.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

from instructgen.errors import ConfigError, InputError
from instructgen.formats.records import BadRecord, Record, read_records
from instructgen.licensing.licenses import check_license
from instructgen.plugins import classes, find, suggest
from instructgen.schema.sample import Origin, Sample, Shape

# With on_bad_row "reject": maximum number of rows read to detect the format.
_DETECTION_ROWS = 100
# Instruction data does not contain longer texts. One of them would slow down every comparison.
_MAX_CHARACTERS = 2**20

OnBadRow = Literal["fail", "reject"]


class RowError(ValueError):
    """Raised if a row cannot be used; the message names the invalid field."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read, with its line number and the reason why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class UnusedRow:
    """A valid row that no sample contains, such as a message in a branch that is not selected.

    ``code`` is a short name for why it is not used, and ``reason`` a text that explains it.
    """

    line: int
    code: str
    reason: str
    sample: Sample


@dataclass(frozen=True, slots=True)
class Conversion:
    """The samples made from one record, or from several records such as those of one dialogue.

    A record is one JSON object or table row of the file. It counts as one row, unless the format
    packs several rows, such as messages, into a record. ``used`` is the number of rows that are
    part of a sample; ``others`` are the remaining rows, with the reasons why they are not used.
    ``line`` is the line of the first record; it identifies the samples of datasets without row
    IDs. ``records`` is the number of records.
    """

    line: int
    used: int
    samples: list[Sample]
    others: list[BadRow | UnusedRow] = field(default_factory=list)
    records: int = 1


@dataclass(frozen=True)
class Format(ABC):
    """A dataset format.

    A record matches the format if it contains all ``fields``; if several formats match, the
    one with the most fields is used. ``identifies_dataset`` is False if many datasets have these
    fields. The ``license``, ``attribution``, ``method`` and ``model`` of such a format apply only
    if the user names the format. ``unit`` is the word for rows in printed text, such as messages.
    ``shapes`` are the allowed values of ``--as``: the kinds of dataset (instructions, preferences)
    to which records can be converted. ``takes`` are the allowed values of ``--take``: which
    samples of a record to import. The first item of each is the default.
    """

    name: ClassVar[str]
    fields: ClassVar[frozenset[str]]
    identifies_dataset: ClassVar[bool] = True
    license: ClassVar[str] = ""
    language: ClassVar[str] = ""
    attribution: ClassVar[tuple[str, ...]] = ()
    method: ClassVar[str] = "human"
    model: ClassVar[str | None] = None
    unit: ClassVar[str] = "rows"
    shapes: ClassVar[tuple[Shape, ...]] = ("instructions",)
    takes: ClassVar[tuple[str, ...]] = ()

    shape: Shape | None = None
    take: str | None = None

    def __post_init__(self) -> None:
        """Set the defaults of ``shape`` and ``take``; raise ConfigError for unsupported values."""
        shape, take = self.shape or self.shapes[0], self.take or next(iter(self.takes), "")
        if shape not in self.shapes:
            hint = f"Pass --as={self.shapes[0]}."
            raise ConfigError(f"the format {self.name} does not support --as={shape}.", hint)
        if take and take not in self.takes:
            hint = suggest(take, list(self.takes)) if self.takes else "Omit --take."
            raise ConfigError(f"the format {self.name} does not support --take={take}.", hint)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "take", take)

    @abstractmethod
    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Convert one record to one or more samples.

        Raises:
            RowError: if the record cannot be used.
        """

    def convert_all(self, records: Iterable[Record]) -> Iterator[Conversion]:
        """Convert all records. Formats that combine several records override this method."""
        for record in records:
            try:
                samples = self.samples(record.fields)
            except RowError as error:
                yield Conversion(record.line, 0, [], [BadRow(record.line, str(error))])
                continue
            yield Conversion(record.line, 1, samples)


class Reading:
    """Iterates once over a dataset file, converts its rows, and counts them.

    Attributes:
        format: the format.
        units: number of rows (or messages) in the file; 0 until the last row was read.
        used: number of rows read so far that are part of a sample.
        others: number of rows read so far that are not part of a sample.
    """

    def __init__(
        self,
        path: Path,
        format: Format,
        records: Iterator[Record | BadRecord],
        defaults: _RowDefaults,
        on_bad_row: OnBadRow,
    ) -> None:
        self.path, self.format = path, format
        self.units = self.used = self.others = 0
        self._records, self._defaults, self._on_bad_row = records, defaults, on_bad_row
        self._seen = self._accounted = 0

    def __iter__(self) -> Iterator[Sample | BadRow | UnusedRow]:
        """Yield every row, either as a sample or with the reason why it is not used.

        Raises:
            InputError: if the rest of the file cannot be read, if a row cannot be read and
                ``on_bad_row`` is ``fail``, or if a row has no license.
            RuntimeError: if the number of converted records is not the number of records read.
        """
        pending: deque[BadRow] = deque()
        for taken in self.format.convert_all(self._valid_records(pending)):
            while pending:
                yield self._count_other(pending.popleft())
            self._accounted += taken.records
            try:
                samples = [self._with_defaults(sample, taken.line) for sample in taken.samples]
            except ConfigError as error:
                # An invalid license or language, which all samples of a record share.
                for _ in range(taken.used):
                    yield self._count_other(BadRow(taken.line, str(error)))
            else:
                self.used += taken.used
                yield from samples
            for other in taken.others:
                yield self._count_other(other)
        while pending:
            yield self._count_other(pending.popleft())
        self.units = self.used + self.others
        if self._accounted != self._seen:
            raise RuntimeError(
                f"{self._seen} records were read, but {self._accounted} were converted. "
                "This is a bug; please report it."
            )

    def _valid_records(self, pending: deque[BadRow]) -> Iterator[Record]:
        for record in self._records:
            if isinstance(record, BadRecord):
                pending.append(BadRow(record.line, record.reason))
            else:
                self._seen += 1
                yield record

    def _count_other(self, other: BadRow | UnusedRow) -> BadRow | UnusedRow:
        if isinstance(other, BadRow) and self._on_bad_row == "fail":
            raise bad_row(self.path, other)
        self.others += 1
        return other

    def _with_defaults(self, sample: Sample, line: int) -> Sample:
        defaults, format = self._defaults, self.format
        license = sample.license or defaults.license
        if not license:
            raise InputError(
                f"the row has no license, and the format {format.name} does not set one.",
                path=self.path,
                line=line,
                hint="Pass --license=SPDX for such rows, for example --license=CC-BY-4.0.",
            )
        language = sample.language
        if language != "und":
            check_language(language)
        else:
            language = defaults.language or format.language or _detect_language(sample)
        generators, origin = sample.generators, sample.origin
        method, model = origin.method, origin.model
        if defaults.method != "human" and method == "human":
            generators = generators or ((defaults.model,) if defaults.model else ())
            method, model = defaults.method, defaults.model
        return replace(
            sample,
            license=check_license(license),
            language=language,
            source=sample.source or format.name,
            attribution=sample.attribution or defaults.attribution,
            generators=generators,
            origin=Origin(method, model, record=origin.record or str(line), group=origin.group),
        )


@dataclass(frozen=True, slots=True)
class _RowDefaults:
    """Values for the rows of a file in which these values are missing."""

    license: str
    language: str
    attribution: tuple[str, ...]
    method: str
    model: str | None


def read(
    path: Path,
    format: str | Format | None = None,
    *,
    license: str = "",
    language: str = "",
    attribution: str = "",
    model: str = "",
    on_bad_row: OnBadRow = "fail",
    split: str = "train",
) -> Reading:
    """Open a dataset file and detect its format; iterate over the result to get the rows.

    Args:
        path: a file, or a Hub dataset as ORG/NAME; see `read_records`.
        format: the format or its name; None to detect it from the fields of the rows.
        license: SPDX expression for rows that have no license, if the format sets none either.
        language: ISO 639 code for rows that do not specify their language.
        attribution: attribution text, which replaces the attribution text of the format.
        model: the model that wrote the rows, if they are not human-written.
        on_bad_row: ``fail`` raises an error at the first row that cannot be read; ``reject``
            yields such rows as `BadRow`.
        split: the split to read if ``path`` is a Hub dataset.

    Raises:
        InputError: if the file cannot be read, or its format is unknown.
        ConfigError: if no format has the name ``format``.
    """
    records = read_records(path, split)
    detected = format is None
    requested: Format | None = find("sources", format)() if isinstance(format, str) else format
    format, buffered = _detect_format(path, requested, records, on_bad_row)
    # Fields that many datasets share do not identify the dataset, so its license is unknown.
    known = format.identifies_dataset or not detected
    defaults = _RowDefaults(
        license=(format.license if known else "") or license,
        language=language,
        attribution=(attribution,) if attribution else format.attribution if known else (),
        method="model" if model else format.method if known else "human",
        model=model or (format.model if known else None),
    )
    return Reading(path, format, chain(buffered, records), defaults, on_bad_row)


def _detect_format(
    path: Path,
    format: Format | None,
    records: Iterator[Record | BadRecord],
    on_bad_row: OnBadRow,
) -> tuple[Format, list[Record | BadRecord]]:
    """Return the format of a file, and the records that were read to detect it."""
    buffered: list[Record | BadRecord] = []
    for record in records:
        buffered.append(record)
        if isinstance(record, BadRecord):
            if on_bad_row == "fail":
                raise bad_row(path, BadRow(record.line, record.reason))
            continue
        if format is None:
            format = detect_format(record.fields)
        if format is not None:
            break
        if on_bad_row == "fail" or len(buffered) > _DETECTION_ROWS:
            raise _unknown_format(record, path)
    valid = [r for r in buffered if isinstance(r, Record)]
    if not valid:
        raise InputError(
            "the file has no valid row.", path=path, hint="Check that this is the right file."
        )
    if format is None:
        raise _unknown_format(valid[0], path)
    return format, buffered


def detect_format(fields: Mapping[str, Any]) -> Format | None:
    """Return the format that matches the fields of a record, or None if no format matches."""
    known: list[type[Format]] = list(classes("sources").values())
    matching = [s for s in known if s.fields and fields.keys() >= set(s.fields)]
    best = max(matching, key=lambda s: (len(s.fields), s.name), default=None)
    return None if best is None else best()


def bad_row(path: Path, row: BadRow) -> InputError:
    """Return the error to raise for a row that cannot be read, if ``on_bad_row`` is ``fail``."""
    return InputError(
        row.reason,
        path=path,
        line=row.line,
        hint="Fix the row, or pass --on-bad-row=reject to reject such rows and continue.",
    )


def _unknown_format(record: Record, path: Path) -> InputError:
    names = ", ".join(sorted(map(str, record.fields))[:12]) or "none"
    known = [s for s in classes("sources").values() if s.fields]
    formats = "; ".join(f"{s.name}: {', '.join(sorted(s.fields))}" for s in known)
    return InputError(
        f"the fields of the row do not match any known format (the row has the fields: {names}).",
        path=path,
        line=record.line,
        hint=f"Pass --map with instruction=FIELD and output=FIELD. Known formats: {formats}.",
    )


def check_language(code: str) -> None:
    """Check that a language code has the form of an ISO 639 code, such as fa or zh-Hant.

    Raises:
        ConfigError: if the code has a different form.
    """
    if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*", code):
        raise ConfigError(
            f"{code[:40]!r} is not a language code.", "Use an ISO 639 code, such as fa."
        )


def text(
    record: Mapping[str, Any], field: str, *, required: bool = True, filled: bool = True
) -> str:
    """Return the text in a field of a record, without leading and trailing white space.

    Args:
        record: the row.
        field: the name of the field.
        required: whether a missing field is an error; if not, a missing field is read as "".
        filled: whether a required field must contain more than white space.

    Raises:
        RowError: if the field is not text, is too long or contains NUL, or if it is required
            but missing or empty.
    """
    value = record.get(field)
    if value is None:
        if required:
            raise RowError(f'the field "{field}" is missing.')
        return ""
    if not isinstance(value, str):
        raise RowError(f'the field "{field}" is a {type(value).__name__}, not text.')
    value = value.strip()
    if required and filled and not value:
        raise RowError(f'the field "{field}" is empty.')
    if len(value) > _MAX_CHARACTERS:
        raise RowError(f'the field "{field}" has more than {_MAX_CHARACTERS:,} characters.')
    if "\0" in value:
        raise RowError(f'the field "{field}" contains a NUL character.')
    return value


def number(record: Mapping[str, Any], field: str) -> float | None:
    """Return the number in a field of a record, or None if the field is missing, NaN or infinite.

    Raises:
        RowError: if the field is not a number.
    """
    value = record.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(f'the field "{field}" is a {type(value).__name__}, not a number.')
    # Parquet files use NaN for missing values.
    return float(value) if math.isfinite(value) else None


def _detect_language(sample: Sample) -> str:
    from instructgen.similarity.scripts import language_of_script

    return language_of_script(sample.instruction)


__all__ = [
    "BadRow",
    "Conversion",
    "Format",
    "OnBadRow",
    "Reading",
    "Record",
    "RowError",
    "UnusedRow",
    "bad_row",
    "detect_format",
    "number",
    "read",
    "text",
]


def __getattr__(name: str) -> object:
    """Raise an ImportError with the new name, `Format`, if a plug-in imports `Source`."""
    if name == "Source":
        raise ImportError("instructgen.formats.Source was renamed to Format. Import Format.")
    raise AttributeError(f"module 'instructgen.formats' has no attribute {name!r}")
