"""Datasets of other projects, read row by row into samples.

One file per format beside this one: a class with the fields it is known by, the
licence and language its rows have when they name none, and one method that
turns a record into a sample. This module sniffs the format and reads the file;
it filters nothing.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

from instructgen.errors import ConfigError, InputError
from instructgen.licences import check_licence
from instructgen.plugins import classes
from instructgen.sample import Sample
from instructgen.sources.records import BadRecord, Record, read_records

# Under "reject", rows looked at for one of a known format.
_LOOKED_AT = 100

OnBadRow = Literal["fail", "reject"]


class RowError(ValueError):
    """One row cannot be used; the message names the field."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was rejected, where it stands, and why."""

    line: int
    reason: str


class Source(ABC):
    """A dataset format.

    ``fields`` must all be present in a record of this format; of several
    formats that fit, the one with the most fields is meant.
    """

    name: ClassVar[str]
    fields: ClassVar[frozenset[str]]
    license: ClassVar[str] = ""
    language: ClassVar[str] = ""

    @abstractmethod
    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """The samples of one record, at least one.

        Raises:
            RowError: the record cannot be used.
        """


def read(
    path: Path,
    *,
    license: str = "",
    language: str = "",
    on_bad_row: OnBadRow = "fail",
) -> Iterator[Sample | BadRow]:
    """Every row of a dataset file, as a sample or as the reason why not.

    Args:
        path: a .jsonl or .json file, also gzipped.
        license: an SPDX expression for rows whose file and format name none.
        language: likewise.
        on_bad_row: ``fail`` raises at the first bad row; ``reject`` yields it.

    Raises:
        InputError: the file cannot be read, its format is not known, a row is
            bad under ``fail``, or rows have no licence.
    """
    records = read_records(path)
    source: Source | None = None
    held: list[Record | BadRecord] = []
    for record in records:
        held.append(record)
        if isinstance(record, BadRecord):
            if on_bad_row == "fail":
                raise _bad_row(path, record.line, record.reason)
            continue
        source = sniff(record.fields)
        if source is not None:
            break
        if on_bad_row == "fail" or len(held) > _LOOKED_AT:
            raise _unknown_format(record, path)
    if source is None:
        whole = [r for r in held if isinstance(r, Record)]
        if whole:
            raise _unknown_format(whole[0], path)
        raise InputError(
            "no row that can be read.", path=path, hint="Check that it is the file meant."
        )
    records = chain(held, records)
    for record in records:
        try:
            if isinstance(record, BadRecord):
                raise RowError(record.reason)
            for sample in source.samples(record.fields):
                yield _complete(sample, source, license, language, path)
        except (RowError, ConfigError) as error:
            if on_bad_row == "fail":
                raise _bad_row(path, record.line, str(error)) from None
            yield BadRow(record.line, str(error))


def sniff(fields: Mapping[str, Any]) -> Source | None:
    """The format whose fields a record has, or None."""
    known: list[Source] = [cls() for cls in classes("sources").values()]
    fitting = [s for s in known if s.fields <= fields.keys()]
    return max(fitting, key=lambda s: (len(s.fields), s.name), default=None)


def _unknown_format(record: Record, path: Path) -> InputError:
    has = ", ".join(sorted(record.fields)[:12]) or "no fields"
    known = classes("sources").values()
    forms = "; ".join(f"{s.name}: {', '.join(sorted(s.fields))}" for s in known)
    return InputError(
        f"the row has the fields {has}, which is no known format.",
        path=path,
        line=record.line,
        hint=f"Known are {forms}.",
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
        RowError: it is not there, empty, no text, or holds NUL.
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
    if "\0" in value:
        raise RowError(f'"{field}" holds a NUL character.')
    return value


def _complete(sample: Sample, source: Source, license: str, language: str, path: Path) -> Sample:
    terms = sample.license or source.license or license
    if not terms:
        raise InputError(
            f"rows of the format {source.name} name no licence.",
            path=path,
            hint="Say under which you have them: --license SPDX, such as --license CC-BY-4.0.",
        )
    if sample.language != "und":
        check_language(sample.language)
    return replace(
        sample,
        license=check_licence(terms),
        language=sample.language
        if sample.language != "und"
        else language or source.language or _guess(sample),
        source=sample.source or source.name,
    )


def _guess(sample: Sample) -> str:
    from instructgen.similarity.scripts import language_of_script

    return language_of_script(sample.instruction)


def _bad_row(path: Path, line: int, reason: str) -> InputError:
    return InputError(
        reason,
        path=path,
        line=line,
        hint="Mend the row, or pass --on-bad-row reject to leave it out.",
    )


__all__ = ["BadRow", "OnBadRow", "Record", "RowError", "Source", "read", "sniff", "text"]
