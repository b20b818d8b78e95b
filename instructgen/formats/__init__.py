"""Reads dataset files in the formats of other projects, and converts their rows to samples.

Each format is a class in its own file of this package. The class states the fields by which the
format is detected and the license and language of its rows, and converts each record to samples
(rows of instructgen). This module detects the format of a file, and returns every row either as a
sample or with the reason why it is not used. It does not filter rows.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

from instructgen.errors import ConfigError, InputError
from instructgen.formats.conversation import Reader, decoded, has_conversation
from instructgen.formats.fields import RowError, number, text
from instructgen.formats.files import dataset_files
from instructgen.formats.metadata import with_metadata
from instructgen.formats.records import BadRecord, EmptyFileError, Record, read_records
from instructgen.licensing.licenses import check_license
from instructgen.licensing.model_terms import UNNAMED_MODEL
from instructgen.plugins import classes, find, suggest
from instructgen.printable import printable
from instructgen.schema.sample import Sample, Shape
from instructgen.similarity.languages import language_of

# With on_bad_row "reject": maximum number of rows read to detect the format.
_DETECTION_ROWS = 100
# The rows before the first valid one are held in memory.
_MAX_BAD_ROWS = 100_000
# Maximum number of characters of a rejected record that are stored.
_MAX_RECORD = 2**17

OnBadRow = Literal["fail", "reject"]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read, with the reason why.

    ``line`` is its line, and ``file`` the name of its file if several files are read. ``record``
    is the row as JSON, if it could be parsed.
    """

    line: int
    reason: str
    record: str = ""
    file: str = ""


@dataclass(frozen=True, slots=True)
class UnusedRow:
    """A valid row that no sample contains, such as a message in a branch that is not selected.

    ``code`` is a short name for why it is not used, and ``reason`` a text that explains it.
    ``line`` and ``file`` are as in `BadRow`.
    """

    line: int
    code: str
    reason: str
    sample: Sample
    file: str = ""


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
    one with the highest value of `matches` is used. ``identifies_dataset`` is False if many
    datasets have these fields. The ``license``, ``attribution``, ``method`` and ``model`` of such a
    format apply only if the user names the format. ``unit`` is the word for rows in printed text,
    such as messages. ``shapes`` are the allowed values of ``--as``: the kinds of dataset
    (instructions, preferences, feedback) to which records can be converted. ``takes`` are the
    allowed values of ``--take``: which samples of a record to import. The first item of each is
    the default. ``reader`` converts conversations to samples. If ``has_metadata`` is True, the
    columns that many datasets share, such as ``license`` and ``model``, are read as well; see
    `with_metadata`. If ``is_complete`` is True, rows have all values, and no defaults are
    set. ``example`` is a row in the format, for the documentation. ``exports`` maps
    the names of the formats of the command `export` that this class writes to the kind of rows
    that they contain; ``holds`` are the parts of a conversation that they can express.
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
    has_metadata: ClassVar[bool] = False
    is_complete: ClassVar[bool] = False
    example: ClassVar[Mapping[str, Any]] = {}
    exports: ClassVar[Mapping[str, Shape]] = {}
    holds: ClassVar[frozenset[str]] = frozenset()

    shape: Shape | None = None
    take: str | None = None
    reader: Reader = field(default_factory=Reader)

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

    @classmethod
    def matches(cls, record: Mapping[str, Any]) -> int:
        """Return how well a record matches the format: 0 means not at all.

        By default, this is the number of ``fields`` if the record contains all of them.
        """
        return len(cls.fields) if cls.fields and record.keys() >= cls.fields else 0

    @classmethod
    def row(cls, sample: Sample, export: str) -> dict[str, Any]:
        """Convert a sample to a row of the export format with this name (a key of ``exports``).

        `samples` converts the row back to an equal sample, except for the fields of the sample
        that are not in ``holds``.
        """
        raise NotImplementedError(f"The format {cls.name} cannot be exported.")

    @classmethod
    def shape_of(cls, record: Mapping[str, Any]) -> Shape | None:
        """Return the kind of dataset that a record states, or None to use the default."""
        return None

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
                if self.has_metadata:
                    samples = [with_metadata(sample, record.fields) for sample in samples]
            except RowError as error:
                yield Conversion(record.line, 0, [], [bad_record(record, str(error))])
                continue
            yield Conversion(record.line, 1, samples)


class Reading:
    """Iterates once over dataset files of one format, converts their rows, and counts them.

    Attributes:
        path: the file that is being read.
        format: the format.
        units: number of rows (or messages) in the files; 0 until the last row was read.
        used: number of rows read so far that are part of a sample.
        others: number of rows read so far that are not part of a sample.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        format: Format,
        first: Iterator[Record | BadRecord],
        defaults: _RowDefaults,
        options: _Options,
    ) -> None:
        self.path, self.format = paths[0], format
        self.units = self.used = self.others = 0
        self._paths, self._first, self._defaults, self._options = paths, first, defaults, options
        self._seen = self._accounted = 0

    def __iter__(self) -> Iterator[Sample | BadRow | UnusedRow]:
        """Yield every row, either as a sample or with the reason why it is not used.

        Raises:
            InputError: if the rest of a file cannot be read, if a row cannot be read and
                ``on_bad_row`` is ``fail``, or if a row has no license.
            RuntimeError: if the number of converted records is not the number of records read.
        """
        options = self._options
        for path in self._paths:
            first = path == self._paths[0]
            self.path = path
            try:
                yield from self._rows(
                    self._first if first else read_records(path, options.split, options.encoding)
                )
            except EmptyFileError:
                if len(self._paths) == 1:
                    raise
        self.units = self.used + self.others
        if self._accounted != self._seen:
            raise RuntimeError(
                f"{self._seen} records were read, but {self._accounted} were converted. "
                "This is a bug; please report it."
            )

    def _rows(self, records: Iterator[Record | BadRecord]) -> Iterator[Sample | BadRow | UnusedRow]:
        pending: deque[BadRow] = deque()
        for taken in self.format.convert_all(self._valid_records(records, pending)):
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

    def _valid_records(
        self, records: Iterator[Record | BadRecord], pending: deque[BadRow]
    ) -> Iterator[Record]:
        for record in records:
            if isinstance(record, BadRecord):
                pending.append(BadRow(record.line, record.reason))
                continue
            try:
                valid = _with_messages(_folded(record) if self._options.fold else record)
            except RowError as error:
                pending.append(bad_record(record, str(error)))
                continue
            self._seen += 1
            yield valid

    def _count_other(self, other: BadRow | UnusedRow) -> BadRow | UnusedRow:
        if isinstance(other, BadRow) and self._options.on_bad_row == "fail":
            raise bad_row(self.path, other)
        self.others += 1
        return replace(other, file=printable(self.path.name)) if len(self._paths) > 1 else other

    def _with_defaults(self, sample: Sample, line: int) -> Sample:
        defaults, format = self._defaults, self.format
        if format.is_complete:
            return sample
        license = sample.license or defaults.license
        if not license:
            raise InputError(
                f"the row has no license, and the format {format.name} does not set one.",
                path=self.path,
                line=line,
                hint="Pass --license=SPDX for such rows, for example --license=CC-BY-4.0.",
            )
        language, confidence = sample.language, sample.language_confidence
        if language != "und":
            check_language(language)
        elif defaults.language:
            language = defaults.language
        elif (guess := language_of(sample.question, sample.output)) is not None:
            language, confidence = guess.language, round(guess.likelihood, 4)
        generators, origin = sample.generators, sample.origin
        method, model = origin.method, origin.model
        if defaults.human:
            generators, method, model = (), "human", None
        elif defaults.method != "human" and (method == "human" or model is None):
            named = (defaults.model,) if defaults.model else ()
            unnamed = not generators or generators == (UNNAMED_MODEL,)
            generators = (named or generators) if unnamed else generators
            method, model = (defaults.method if method == "human" else method), defaults.model
        place = f"{printable(self.path.name)}:{line}" if len(self._paths) > 1 else str(line)
        return replace(
            sample,
            license=check_license(license),
            language=language,
            language_confidence=confidence,
            source=defaults.source or sample.source or format.name,
            attribution=sample.attribution or defaults.attribution,
            generators=generators,
            origin=replace(origin, method=method, model=model, record=origin.record or place),
        )


@dataclass(frozen=True, slots=True)
class _RowDefaults:
    """Values for the rows of a file in which these values are missing."""

    license: str
    language: str
    attribution: tuple[str, ...]
    method: str
    model: str | None
    source: str
    human: bool


@dataclass(frozen=True, slots=True)
class _Options:
    """How files are read; ``fold`` states whether column names are converted to lower case."""

    on_bad_row: OnBadRow
    split: str
    encoding: str | None
    fold: bool


def read(
    path: Path,
    format: str | Format | None = None,
    *,
    shape: Shape | None = None,
    take: str | None = None,
    reader: Reader | None = None,
    license: str = "",
    language: str = "",
    attribution: str = "",
    model: str = "",
    source: str = "",
    on_bad_row: OnBadRow = "fail",
    split: str = "train",
    encoding: str | None = None,
) -> Reading:
    """Open the files of a dataset and detect their format; iterate over the result to get the rows.

    Args:
        path: a file, a pattern such as ``data/*.jsonl``, a folder of files, or a Hub dataset as
            ORG/NAME; see `dataset_files` and `read_records`.
        format: the format or its name; None to detect it from the fields of the rows.
        shape: the kind of dataset to convert the rows to; default: the first of the format.
        take: which samples of a record to read; default: the first of the format.
        reader: how to convert conversations.
        license: SPDX expression for rows that have no license. Without it, the license of the
            format or of the folder applies.
        language: ISO 639 code for rows that do not specify their language. By default, the language
            is identified from the text.
        attribution: attribution text, which replaces the attribution text of the format.
        model: the model that wrote the rows, or ``human`` if people wrote them.
        source: the name of the dataset, which replaces the source that rows specify.
        on_bad_row: ``fail`` raises an error at the first row that cannot be read; ``reject``
            yields such rows as `BadRow`.
        split: the split to read if the path is a folder with splits or a Hub dataset.
        encoding: the character encoding of text files; default: UTF-8, or UTF-16 with a byte-order
            mark.

    Raises:
        InputError: if a file cannot be read, or its format is unknown.
        ConfigError: if no format has the name ``format``.
    """
    files = dataset_files(path, split)
    if isinstance(format, str):
        format = find("sources", format)
    paths = files.paths if len(files.paths) == 1 else _with_rows(files.paths, split, encoding)
    records = read_records(paths[0], split, encoding)
    detected = format is None
    cls, fold, buffered = _detect_format(paths[0], format, shape, records, on_bad_row)
    if not isinstance(cls, Format):
        first = next(r.fields for r in reversed(buffered) if isinstance(r, Record))
        cls = cls(shape or cls.shape_of(first), take, reader or Reader())
    # Fields that many datasets share do not identify the dataset, so its license is unknown.
    known = cls.identifies_dataset or not detected
    # Own rows in the layout of a known dataset, which has a different license.
    known = known and (not license or not cls.license or check_license(license) == cls.license)
    human = model == "human"
    defaults = _RowDefaults(
        license=license or (cls.license if known else "") or files.license,
        language=language or (cls.language if known else ""),
        attribution=(attribution,) if attribution else cls.attribution if known else (),
        method="model" if model else cls.method if known else "human",
        model=model or (cls.model if known else None),
        source=source,
        human=human,
    )
    options = _Options(on_bad_row, split, encoding, fold)
    return Reading(paths, cls, chain(buffered, records), defaults, options)


def _with_rows(paths: Sequence[Path], split: str, encoding: str | None) -> Sequence[Path]:
    """Return the paths from the first file that has rows, by which the format is detected."""
    for place, path in enumerate(paths):
        try:
            next(iter(read_records(path, split, encoding)), None)
        except EmptyFileError:
            continue
        return paths[place:]
    raise InputError("no file has rows.", path=paths[0].parent, hint="Check the files.")


def _detect_format(
    path: Path,
    format: Any,
    shape: Shape | None,
    records: Iterator[Record | BadRecord],
    on_bad_row: OnBadRow,
) -> tuple[Any, bool, list[Record | BadRecord]]:
    """Return a format or its class, whether to fold names, and the records read to detect it."""
    buffered: list[Record | BadRecord] = []
    for record in records:
        buffered.append(record)
        if isinstance(record, BadRecord):
            if on_bad_row == "fail":
                raise bad_row(path, BadRow(record.line, record.reason))
            if len(buffered) > _MAX_BAD_ROWS:
                raise InputError(
                    f"none of the first {_MAX_BAD_ROWS:,} rows can be read ({record.reason}).",
                    path=path,
                    hint="Check that this is the right file.",
                )
            continue
        try:
            found, fold = _find_format(record, format, shape)
        except RowError as error:
            raise bad_row(path, BadRow(record.line, str(error))) from error
        if found is not None:
            return found, fold, buffered
        if on_bad_row == "fail" or len(buffered) > _DETECTION_ROWS:
            raise _unknown_format(record, path)
    valid = [r for r in buffered if isinstance(r, Record)]
    if not valid:
        raise InputError(
            "the file has no valid row.", path=path, hint="Check that this is the right file."
        )
    raise _unknown_format(valid[0], path)


def _find_format(record: Record, format: Any, shape: Shape | None) -> tuple[Any, bool]:
    """Return the format of a record, and whether it fits only if names are in lower case."""
    record = _with_messages(record)
    for fold in (False, True):
        fields = (_folded(record) if fold else record).fields
        if format is not None and fields.keys() >= format.fields:
            return format, fold
        if format is None and (best := detect_format(fields, shape)) is not None:
            return best, fold
    return format, False


def detect_format(fields: Mapping[str, Any], shape: Shape | None = None) -> type[Format] | None:
    """Return the format that matches the fields of a record best, or None if no format matches.

    Formats that can be converted to the shape are preferred.
    """
    known: list[type[Format]] = list(classes("sources").values())
    matching = [(shape in f.shapes, f.matches(fields), f.name, f) for f in known]
    best = max((m for m in matching if m[1]), default=None, key=lambda m: m[:3])
    return None if best is None else best[3]


def _with_messages(record: Record) -> Record:
    """Decode lists of messages that are written as JSON text, as in the cells of a CSV file."""
    lists = {n: v for n, v in record.fields.items() if has_conversation({n: v}, n)}
    texts = {n: decoded(v) for n, v in lists.items() if isinstance(v, str)}
    texts = {n: v for n, v in texts.items() if v[0].keys() & {"role", "from", "speaker"}}
    return Record(record.line, {**record.fields, **texts}) if texts else record


def _folded(record: Record) -> Record:
    """Return a record with the names of its fields in lower case.

    Raises:
        RowError: two names differ only in case, so that one of their values would be lost.
    """
    names = [name.strip().lower() for name in record.fields]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise RowError(f"several fields have the name {twice[0][:40]!r}, in different spellings.")
    return Record(record.line, dict(zip(names, record.fields.values(), strict=True)))


def bad_record(record: Record, reason: str) -> BadRow:
    """Return a row that cannot be used, together with its text, so that the text is not lost."""
    text = json.dumps(record.fields, ensure_ascii=False, default=str)
    valid = text.encode("utf-8", "replace").decode()
    return BadRow(record.line, reason, valid[:_MAX_RECORD])


def bad_row(path: Path, row: BadRow) -> InputError:
    """Return the error to raise for a row that cannot be read, if ``on_bad_row`` is ``fail``."""
    return InputError(
        row.reason,
        path=path,
        line=row.line,
        hint="Fix the row, or pass --on-bad-row=reject to reject such rows and continue.",
    )


def _unknown_format(record: Record, path: Path) -> InputError:
    names = [str(name) for name in record.fields]
    seen = ", ".join(f"{n[:40]!r} ({_kind(v)})" for n, v in list(record.fields.items())[:12])
    if len(names) == 1 and any(mark in names[0] for mark in ";\t|,"):
        hint = "The file seems to be a CSV file with another delimiter or without a header line."
    else:
        hint = "Pass --map=instruction=FIELD --map=output=FIELD."
    return InputError(
        f"the row does not match any known format; its fields are {seen or 'none'}.",
        path=path,
        line=record.line,
        hint=f"{hint} The command `instructgen formats` lists the formats with examples.",
    )


def _kind(value: Any) -> str:
    """Return the kind of a value, in words for a message."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    kinds = {str: "text", dict: "an object", bool: "true or false", type(None): "empty"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else "a value")


def check_language(code: str) -> None:
    """Check that a language code has the form of an ISO 639 code, such as fa or zh-Hant.

    Raises:
        ConfigError: if the code has a different form.
    """
    if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*", code):
        raise ConfigError(
            f"{code[:40]!r} is not a language code.", "Use an ISO 639 code, such as fa."
        )


__all__ = [
    "BadRow",
    "Conversion",
    "Format",
    "OnBadRow",
    "Reader",
    "Reading",
    "Record",
    "RowError",
    "UnusedRow",
    "bad_record",
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
