"""The command import: a dataset of another project in, one of ours out, every row accounted for."""

from __future__ import annotations

from collections.abc import Mapping
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
from instructgen.errors import ConfigError
from instructgen.formats import BadRow, LeftOut, OnBadRow, Reading, Source, check_language, read
from instructgen.formats.plain import Plain
from instructgen.licensing.licenses import check_licence
from instructgen.plugins import find, provenance
from instructgen.reports.cards import rejected_table
from instructgen.schema.progress import Progress, Watch
from instructgen.schema.sample import Origin, Rejected, Rejection, Sample, Shape
from instructgen.store import digest_of


def import_data(
    path: str | Path,
    out: str | Path,
    source: str | None = None,
    *,
    mapping: Mapping[str, str] | None = None,
    shape: Shape | None = None,
    take: str | None = None,
    license: str = "",
    language: str = "",
    attribution: str = "",
    model: str = "",
    split: str = "train",
    on_bad_row: OnBadRow = "fail",
    watch: Watch | None = None,
) -> Derived:
    """Read a dataset of another project into a dataset folder.

    Args:
        path: a JSONL, JSON, CSV or Parquet file, or ORG/NAME of the Hub.
        out: a folder for the dataset. One made from the same is left as it is.
        source: the format, such as ``dolly``; sniffed where it is left out.
        mapping: of a format that is none of the known: our fields to the file's.
        shape: ``instructions`` or ``preferences``, of formats that give both.
        take: which rows of a format that offers a choice.
        license: SPDX licence of rows whose file and format name none.
        language: ISO 639 language of rows that name none.
        attribution: the credit that goes with rows that name none.
        model: the model that wrote the rows, if one did.
        split: of a dataset on the Hub.
        on_bad_row: ``fail``, or ``reject`` to put bad rows among the rejected.
        watch: called with progress.

    Raises:
        InputError: the file or a row is bad.
        ConfigError: an option is bad.
        RunError: ``out`` holds something else.
        StorageError: the disk refuses.
    """
    file, folder = Path(path), Path(out)
    license = check_licence(license) if license else ""
    if language:
        check_language(language)
    _check_texts(attribution, model, *(mapping or {}), *(mapping or {}).values())
    wanted = _source(source, mapping, shape, take)
    reading = read(
        file,
        wanted,
        license=license,
        language=language,
        attribution=attribution,
        model=model,
        on_bad_row=on_bad_row,
        split=split,
    )
    if wanted is None and (shape or take):
        # Sniffed, and now with the options that the format was to have.
        reading.source = type(reading.source)(shape, take)
    terms = {
        "license": license,
        "language": language,
        "attribution": attribution,
        "model": model,
        "on_bad_row": on_bad_row,
    }
    made = _made(file, reading.source, split, dict(mapping or {}), terms)
    assert reading.source.shape is not None  # the source has settled it
    return derive(folder, made, reading.source.shape, lambda output: _write(output, reading, watch))


def _check_texts(*texts: str) -> None:
    for said in texts:
        if any("\ud800" <= c <= "\udfff" for c in said):
            raise ConfigError(f"{said[:40]!r} is no valid UTF-8.", "Write it in UTF-8.")


def _made(
    file: Path, source: Source, split: str, mapping: dict[str, str], terms: dict[str, Any]
) -> dict[str, Any]:
    """What decides the dataset: the file, its format, and what rows that name nothing get."""
    return {
        "command": "import",
        "inputs": [
            {"name": name_of(file), "sha256": digest_of(file)}
            if file.exists()
            else {"name": str(file), "split": split}
        ],
        "options": {
            "source": source.name,
            "map": mapping,
            "as": source.shape,
            "take": source.take,
            **terms,
        },
        **provenance(sources=[type(source)]),
    }


def _source(
    name: str | None, mapping: Mapping[str, str] | None, shape: Shape | None, take: str | None
) -> Source | None:
    if mapping:
        if name not in (None, Plain.name):
            raise ConfigError(f"--map is for other formats than {name}.", "Leave SOURCE out.")
        return Plain(shape, take, mapping)
    if name is None:
        return None
    found: Source = find("sources", name)(shape, take)
    return found


def _write(output: Output, reading: Reading, watch: Watch | None) -> Written:
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
        raise RuntimeError("the rows read do not add up; please report this file's format")
    facts = {
        "source": reading.source.name,
        "unit": reading.source.unit,
        "read": reading.units,
        "used": reading.used,
    }
    counts = output.funnel()
    sections = [
        "## Read",
        "",
        f"Of {reading.units:,} {reading.source.unit} read as `{reading.source.name}`, "
        f"{reading.used:,} stand in the rows; {reading.others:,} do not, and are in "
        "`rejected/`, each with its line and its reason.",
        "",
        *(rejected_table(counts) if counts else ()),
    ]
    return Written(facts, sections)


def _rejected(row: BadRow | LeftOut, number: int) -> Rejected:
    if isinstance(row, BadRow):
        sample = Sample("", origin=Origin(record=str(row.line)))
        rejection = Rejection("import", "bad_row", f"line {row.line}: {row.reason}")
    else:
        sample = row.sample
        rejection = Rejection("import", row.code, f"line {row.line}: {row.reason}")
    return Rejected(sample, rejection, "import", number)
