"""Datasets of other projects, read row by row into samples.

One file per format beside this one: a class with the fields it is known by, the
terms and language its rows have when they name none, and one method that turns
a record into samples. This module sniffs the format, reads, and accounts for
every row; it filters nothing.
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
from instructgen.licensing.licenses import check_licence
from instructgen.plugins import classes, find, suggest
from instructgen.schema.sample import Origin, Sample, Shape

# Under "reject", rows looked at for one of a known format.
_LOOKED_AT = 100
# Longer than any text of instruction data: one would hold up every comparison.
_MAX_CHARACTERS = 2**20

OnBadRow = Literal["fail", "reject"]


class RowError(ValueError):
    """One row cannot be used; the message names the field."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read, where it stands, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that is sound and not taken: ``code`` is short, ``reason`` a sentence."""

    line: int
    code: str
    reason: str
    sample: Sample


@dataclass(frozen=True, slots=True)
class Taken:
    """What some records came to: ``used`` rows stand in samples, the others are named.

    A record is a row, unless a format packs several into one. ``line`` is the
    first record's, and what a sample is found by whose source has no id for it.
    """

    line: int
    used: int
    samples: list[Sample]
    others: list[BadRow | LeftOut] = field(default_factory=list)
    records: int = 1


@dataclass(frozen=True)
class Source(ABC):
    """A dataset format.

    ``fields`` must all be present in a record of this format; of several
    formats that fit, the one with the most fields is meant. Where the fields do
    not tell whose rows they are (``telling``), the terms hold only for a source
    that was named. ``shapes`` are the kinds of rows it can give, ``takes`` the
    ways to take them from a record; the first of each is the default.
    """

    name: ClassVar[str]
    fields: ClassVar[frozenset[str]]
    telling: ClassVar[bool] = True
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
        """Settle the defaults, and refuse what the format does not offer."""
        shape, take = self.shape or self.shapes[0], self.take or next(iter(self.takes), "")
        if shape not in self.shapes:
            raise ConfigError(f"{self.name} gives no {shape}.", f"It gives {self.shapes[0]}.")
        if take and take not in self.takes:
            hint = suggest(take, list(self.takes)) if self.takes else "Leave --take out."
            raise ConfigError(f"{self.name} cannot take {take!r}.", hint)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "take", take)

    @abstractmethod
    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """The samples of one record, at least one.

        Raises:
            RowError: the record cannot be used.
        """

    def taken(self, records: Iterable[Record]) -> Iterator[Taken]:
        """The samples of all records; a format whose rows belong together overrides this."""
        for record in records:
            try:
                samples = self.samples(record.fields)
            except RowError as error:
                yield Taken(record.line, 0, [], [BadRow(record.line, str(error))])
                continue
            yield Taken(record.line, 1, samples)


class Reading:
    """The rows of a dataset file, to go through once.

    Attributes:
        source: the format.
        units: rows (or messages) read, once all were gone through.
        used: the ones so far that stand in a sample.
        others: the ones so far that do not.
    """

    def __init__(
        self,
        path: Path,
        source: Source,
        records: Iterator[Record | BadRecord],
        terms: _Terms,
        on_bad_row: OnBadRow,
    ) -> None:
        self.path, self.source = path, source
        self.units = self.used = self.others = 0
        self._records, self._terms, self._on_bad_row = records, terms, on_bad_row
        self._seen = self._accounted = 0

    def __iter__(self) -> Iterator[Sample | BadRow | LeftOut]:
        """Every row, as a sample or as the reason why not.

        Raises:
            InputError: the rest cannot be read, a row is bad under ``fail``, or rows
                have no licence.
            RuntimeError: a row got lost.
        """
        waiting: deque[BadRow] = deque()
        for taken in self.source.taken(self._sound(waiting)):
            while waiting:
                yield self._other(waiting.popleft())
            self._accounted += taken.records
            try:
                samples = [self._complete(sample, taken.line) for sample in taken.samples]
            except ConfigError as error:
                # A licence or a language that is none; it is the same in all of them.
                for _ in range(taken.used):
                    yield self._other(BadRow(taken.line, str(error)))
            else:
                self.used += taken.used
                yield from samples
            for other in taken.others:
                yield self._other(other)
        while waiting:
            yield self._other(waiting.popleft())
        self.units = self.used + self.others
        if self._accounted != self._seen:
            raise RuntimeError(f"{self._seen} rows read, {self._accounted} accounted for")

    def _sound(self, waiting: deque[BadRow]) -> Iterator[Record]:
        for record in self._records:
            if isinstance(record, BadRecord):
                waiting.append(BadRow(record.line, record.reason))
            else:
                self._seen += 1
                yield record

    def _other(self, other: BadRow | LeftOut) -> BadRow | LeftOut:
        if isinstance(other, BadRow) and self._on_bad_row == "fail":
            raise bad_row(self.path, other)
        self.others += 1
        return other

    def _complete(self, sample: Sample, line: int) -> Sample:
        terms, source = self._terms, self.source
        license = sample.license or terms.license
        if not license:
            raise InputError(
                f"a row of the format {source.name} names no licence.",
                path=self.path,
                line=line,
                hint="Say under which you have them: --license SPDX, such as --license CC-BY-4.0.",
            )
        language = sample.language
        if language != "und":
            check_language(language)
        else:
            language = terms.language or source.language or _guess(sample)
        generators, origin = sample.generators, sample.origin
        method, model = origin.method, origin.model
        if terms.method != "human" and method == "human":
            generators = generators or ((terms.model,) if terms.model else ())
            method, model = terms.method, terms.model
        return replace(
            sample,
            license=check_licence(license),
            language=language,
            source=sample.source or source.name,
            attribution=sample.attribution or terms.attribution,
            generators=generators,
            origin=Origin(method, model, record=origin.record or str(line), group=origin.group),
        )


@dataclass(frozen=True, slots=True)
class _Terms:
    """What holds for rows that do not say it themselves."""

    license: str
    language: str
    attribution: tuple[str, ...]
    method: str
    model: str | None


def read(
    path: Path,
    source: str | Source | None = None,
    *,
    license: str = "",
    language: str = "",
    attribution: str = "",
    model: str = "",
    on_bad_row: OnBadRow = "fail",
    split: str = "train",
) -> Reading:
    """A dataset file, ready to be gone through.

    Args:
        path: see `read_records`.
        source: the format or its name; sniffed where it is left out.
        license: an SPDX expression for rows whose file and format name none.
        language: likewise.
        attribution: the credit that goes with them; likewise.
        model: the model that wrote them, if one did; likewise.
        on_bad_row: ``fail`` raises at the first bad row; ``reject`` gives it.
        split: of a dataset on the Hub.

    Raises:
        InputError: the file cannot be read, or its format is not known.
        ConfigError: there is no such source.
    """
    records = read_records(path, split)
    sniffed = source is None
    given: Source | None = find("sources", source)() if isinstance(source, str) else source
    source, held = _sniffed(path, given, records, on_bad_row)
    # Of a shape that many share, what is known of one dataset holds if it was named.
    known = source.telling or not sniffed
    terms = _Terms(
        license=(source.license if known else "") or license,
        language=language,
        attribution=(attribution,) if attribution else source.attribution if known else (),
        method="model" if model else source.method if known else "human",
        model=model or (source.model if known else None),
    )
    return Reading(path, source, chain(held, records), terms, on_bad_row)


def _sniffed(
    path: Path,
    source: Source | None,
    records: Iterator[Record | BadRecord],
    on_bad_row: OnBadRow,
) -> tuple[Source, list[Record | BadRecord]]:
    """The format of a file, and the records that were read to find it."""
    held: list[Record | BadRecord] = []
    for record in records:
        held.append(record)
        if isinstance(record, BadRecord):
            if on_bad_row == "fail":
                raise bad_row(path, BadRow(record.line, record.reason))
            continue
        if source is None:
            source = sniff(record.fields)
        if source is not None:
            break
        if on_bad_row == "fail" or len(held) > _LOOKED_AT:
            raise _unknown_format(record, path)
    whole = [r for r in held if isinstance(r, Record)]
    if not whole:
        raise InputError(
            "no row that can be read.", path=path, hint="Check that it is the file meant."
        )
    if source is None:
        raise _unknown_format(whole[0], path)
    return source, held


def sniff(fields: Mapping[str, Any]) -> Source | None:
    """The format whose fields a record has, or None."""
    known: list[type[Source]] = list(classes("sources").values())
    fitting = [s for s in known if s.fields and fields.keys() >= set(s.fields)]
    best = max(fitting, key=lambda s: (len(s.fields), s.name), default=None)
    return None if best is None else best()


def bad_row(path: Path, row: BadRow) -> InputError:
    """The error for a row that stops the reading."""
    return InputError(
        row.reason,
        path=path,
        line=row.line,
        hint="Mend the row, or pass --on-bad-row reject to leave it out.",
    )


def _unknown_format(record: Record, path: Path) -> InputError:
    has = ", ".join(sorted(map(str, record.fields))[:12]) or "no fields"
    known = [s for s in classes("sources").values() if s.fields]
    forms = "; ".join(f"{s.name}: {', '.join(sorted(s.fields))}" for s in known)
    return InputError(
        f"the row has the fields {has}, which is no known format.",
        path=path,
        line=record.line,
        hint=f"Name its fields: --map instruction=FIELD --map output=FIELD. Known are {forms}.",
    )


def check_language(code: str) -> None:
    """Refuse what is no language code.

    Raises:
        ConfigError: it does not look like ISO 639, such as fa or zh-Hant.
    """
    if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*", code):
        raise ConfigError(f"{code[:40]!r} is no language code.", "Use ISO 639, such as en or fa.")


def text(
    record: Mapping[str, Any], field: str, *, required: bool = True, filled: bool = True
) -> str:
    """A text field of a record, without outer white space.

    Args:
        record: the row.
        field: the field's name.
        required: whether it must be there; "" stands for a missing one otherwise.
        filled: whether a required field must hold more than white space.

    Raises:
        RowError: it is not there, empty, no text, too long, or holds NUL.
    """
    value = record.get(field)
    if value is None:
        if required:
            raise RowError(f'"{field}" is missing.')
        return ""
    if not isinstance(value, str):
        raise RowError(f'"{field}" is a {type(value).__name__}, not text.')
    value = value.strip()
    if required and filled and not value:
        raise RowError(f'"{field}" is empty.')
    if len(value) > _MAX_CHARACTERS:
        raise RowError(f'"{field}" has more than {_MAX_CHARACTERS:,} characters.')
    if "\0" in value:
        raise RowError(f'"{field}" holds a NUL character.')
    return value


def number(record: Mapping[str, Any], field: str) -> float | None:
    """A finite number of a record, or None where there is none.

    Raises:
        RowError: it is something else.
    """
    value = record.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(f'"{field}" is a {type(value).__name__}, not a number.')
    # NaN is how tables write that nothing is there.
    return float(value) if math.isfinite(value) else None


def _guess(sample: Sample) -> str:
    from instructgen.similarity.scripts import language_of_script

    return language_of_script(sample.instruction)


__all__ = [
    "BadRow",
    "LeftOut",
    "OnBadRow",
    "Reading",
    "Record",
    "RowError",
    "Source",
    "Taken",
    "bad_row",
    "number",
    "read",
    "sniff",
    "text",
]
