"""The command `export`: writes a dataset as JSON Lines, in a format that other tools can read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from instructgen.commands.interface import command
from instructgen.commands.options import ExportOptions
from instructgen.errors import ConfigError, InputError
from instructgen.formats import Format
from instructgen.formats.conversation import parts_of
from instructgen.licensing.licenses import commercial_use, obligations
from instructgen.plugins import classes, suggest
from instructgen.schema.messages import json_text
from instructgen.schema.progress import Progress, Watch
from instructgen.schema.sample import Sample
from instructgen.schema.statistics import RowCounts
from instructgen.store import (
    is_run,
    read_file,
    read_samples,
    shape_of,
    splits_of,
    storage,
    write_atomic,
)

_COLUMNS = ("id", "category", "language", "source", "license", "attribution", "generators")
# Fields of a row that no format of other tools has.
_OWN = ("scores", "labels", "edits")


@dataclass(frozen=True, slots=True)
class Exported:
    """The result of an export.

    ``files`` are the files written, ``rows`` the number of rows, and ``obligations`` the license
    obligations for these rows. ``not_written`` is the number of rows by the name of a field that
    the format cannot express. ``commercial_use`` states whether the rows may be used commercially.
    """

    files: tuple[Path, ...]
    rows: int
    not_written: dict[str, int]
    obligations: list[str]
    commercial_use: str


@command(ExportOptions, "data", "to")
def export(options: ExportOptions, watch: Watch | None = None) -> Exported:
    """Write a dataset as JSON Lines, in a format that other tools can read.

    A dataset with splits is written to one file per split, unless a split is selected.

    Raises:
        ConfigError: a column or the format is unknown, or the format does not support the rows.
        InputError: an output file already exists, or would be inside a dataset folder.
        RunError: the folder contains no complete dataset.
        StorageError: a file cannot be written.
    """
    folder = options.data
    format = _checked(folder, options.format, options.columns)
    files = _files(options)
    for file in files.values():
        _check_target(file, overwrite=options.overwrite)
    info = _info_file(options.to, files.values()) if options.format == "sharegpt" else None
    entries = {} if info is None else _info_entries(info)
    writing = _Writing(format, options, watch, sum(splits_of(folder).values()))
    for split, file in files.items():
        with storage(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, writing.lines(split))
    if info is not None:
        entries |= {file.stem: _info_entry(file, writing.tools) for file in files.values()}
        with storage(info):
            write_atomic(info, [orjson.dumps(entries, option=orjson.OPT_INDENT_2) + b"\n"])
    counts = writing.counts
    terms = (counts.licenses, counts.generators)
    return Exported(
        tuple(files.values()),
        counts.rows,
        dict(sorted(writing.not_written.items())),
        obligations(*terms, counts.attributions),
        str(commercial_use(*terms)),
    )


@dataclass(slots=True)
class _Writing:
    """Converts rows to lines, and counts the rows and the fields that are not written."""

    format: type[Format]
    options: ExportOptions
    watch: Watch | None
    total: int
    counts: RowCounts = field(default_factory=RowCounts)
    not_written: Counter[str] = field(default_factory=Counter)
    tools: bool = False

    def lines(self, split: str | None) -> Iterator[bytes]:
        options = self.options
        for sample in read_samples(options.data, split=split):
            self.counts.add([sample])
            rows = self.counts.rows
            if self.watch is not None and rows % 1_000 == 0:
                self.watch(Progress("export", rows, self.total))
            self.tools = self.tools or bool(sample.tools)
            self.not_written.update(parts_of(sample) - self.format.holds)
            row = self.format.row(sample, options.format)
            own = (name for name in _OWN if getattr(sample, name))
            self.not_written.update(name for name in own if not _holds(row, sample, name))
            extra = {name: getattr(sample, name) for name in options.columns}
            # Arguments of tool calls may contain integers that orjson does not support.
            yield json_text({**row, **extra}).encode() + b"\n"


def _holds(row: Mapping[str, Any], sample: Sample, name: str) -> bool:
    """Return whether the row contains the scores of a sample, as preferences do."""
    return name == "scores" and all(score.name in row for score in sample.scores)


def export_formats() -> dict[str, type[Format]]:
    """Return the formats that can be exported, as a dict keyed by the name of the export format."""
    formats: list[type[Format]] = list(classes("sources").values())
    return dict(sorted((name, cls) for cls in formats for name in cls.exports))


def _checked(folder: Path, name: str, columns: Sequence[str]) -> type[Format]:
    """Return the format, after checking that it supports the rows, and the columns."""
    formats = export_formats()
    if name not in formats:
        raise ConfigError(f"--format={name}: unknown format.", suggest(name, list(formats)))
    for column in columns:
        if column not in _COLUMNS:
            hint = suggest(column, list(_COLUMNS))
            raise ConfigError(f"--columns={column}: unknown column.", hint)
    shape, supported = shape_of(folder), formats[name].exports[name]
    if shape != supported:
        other = next((n for n, cls in formats.items() if cls.exports[n] == shape), None)
        raise ConfigError(
            f"{folder} contains {shape}, but {name} is a format for {supported}.",
            f"Pass --format={other}." if other else "Its Parquet files are in the folder data.",
        )
    return formats[name]


def _files(options: ExportOptions) -> dict[str | None, Path]:
    """Return the file for each split; the key None means all rows."""
    splits = list(splits_of(options.data))
    if options.split is not None or len(splits) < 2:
        return {options.split: options.to}
    to = options.to
    return {split: to.with_name(f"{to.stem}-{split}{to.suffix}") for split in splits}


def _check_target(file: Path, *, overwrite: bool) -> None:
    for place in file.resolve().parents:
        if is_run(place) or (place / "manifest.json").exists():
            raise InputError(
                f"the file would be inside the dataset folder {place}.",
                path=file,
                hint="Use a different folder.",
            )
    if file.exists() and not overwrite:
        raise InputError(
            "the file already exists.", path=file, hint="Pass --overwrite to replace it."
        )


def _info_file(to: Path, files: Iterable[Path]) -> Path:
    """Return the path of LLaMA-Factory's list of datasets, which is in the same folder.

    Raises:
        InputError: the list cannot contain the name of a file.
    """
    for file in files:
        if os.fsencode(file.name).decode("utf-8", "ignore") != file.name:
            raise InputError(
                "the name is not valid UTF-8, so dataset_info.json cannot contain it.",
                path=file,
                hint="Use another name.",
            )
    return to.parent / "dataset_info.json"


def _info_entries(path: Path) -> dict[str, Any]:
    """Return the entries of an existing list of datasets; other entries are kept."""
    if not path.exists():
        return {}
    try:
        entries = orjson.loads(read_file(path))
    except (OSError, ValueError) as error:
        raise InputError(
            f"the file is not valid JSON ({error}).", path=path, hint="Fix or remove the file."
        ) from error
    if not isinstance(entries, dict):
        raise InputError("the file is not a JSON object.", path=path, hint="Remove the file.")
    return entries


def _info_entry(file: Path, tools: bool) -> dict[str, Any]:
    columns = {"messages": "conversations", **({"tools": "tools"} if tools else {})}
    return {"file_name": file.name, "formatting": "sharegpt", "columns": columns}
