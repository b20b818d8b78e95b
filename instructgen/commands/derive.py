"""Writes the output dataset of commands such as `curate`, unless the dataset already exists.

The function `derive` creates the folder and calls the function with which the command writes the
rows. It also writes the provenance, the rejection counts and the card.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from instructgen.errors import InputError, RunError
from instructgen.reports.cards import derived_card
from instructgen.schema.records import JsonRecord
from instructgen.schema.sample import Rejected, Sample, Shape
from instructgen.store import (
    WHOLE,
    DatasetReader,
    InputRef,
    LicenseCounts,
    Provenance,
    RejectionCount,
    Writer,
    digest_of,
    is_complete,
    manifest_in,
    output_folder,
    splits_of,
    writing,
)

# The number of rows that commands pass to the writer at a time.
ROWS_AT_ONCE = 1_000
F = TypeVar("F", bound=JsonRecord)


@dataclass(frozen=True, slots=True)
class Derived(Generic[F]):
    """The result of a command that derives a dataset.

    ``splits`` is the number of rows in each split, and ``rejections`` the number of rejected rows
    per stage, filter and reason. ``terms`` are row counts by license, model and attribution, and
    ``facts`` are further results that depend on the command. ``parts`` are the paths of the
    Parquet files, and ``card`` is the path of the dataset card. ``unchanged`` is true if the
    dataset already existed and nothing was written.
    """

    out: Path
    rows: int
    rejected: int
    splits: dict[str, int]
    rejections: tuple[RejectionCount, ...]
    terms: LicenseCounts
    facts: F
    parts: tuple[str, ...]
    card: str
    unchanged: bool = False


@dataclass(frozen=True, slots=True)
class Written(Generic[F]):
    """What a command reports about the rows that it wrote.

    ``facts`` are results of the command, for the manifest. ``sections`` are lines of Markdown for
    the card. ``what`` is appended to "N rows from INPUTS" in the card, for example ``, curated``.
    """

    facts: F
    sections: list[str]
    what: str = ""


class Output:
    """The dataset being written: accepted rows, rejected rows, and the rejection counts."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._counts: Counter[tuple[str, str, str]] = Counter()

    @property
    def rejected(self) -> int:
        """The number of rows rejected so far, which is also the index of the next rejected row."""
        return self._writer.contents.rejected

    @property
    def kept(self) -> int:
        """The number of rows kept so far."""
        return self._writer.contents.rows

    def keep(self, samples: Sequence[Sample], split: str = "part") -> None:
        """Append accepted rows to a split of the dataset."""
        self._writer.keep(samples, split)

    def reject(self, rejected: Sequence[Rejected]) -> None:
        """Append rejected rows to the dataset, and count them by stage, filter and reason."""
        self._writer.reject(rejected)
        self._counts.update((r.stage, r.rejection.filter, r.rejection.reason) for r in rejected)

    def rejections(self) -> list[RejectionCount]:
        """Return the counts of rejected rows by stage, filter and reason, for the manifest."""
        return [RejectionCount(*key, count) for key, count in sorted(self._counts.items())]


def derive(
    folder: Path,
    provenance: Provenance,
    shape: Shape,
    facts: type[F],
    write: Callable[[Output], Written[F]],
    splits: Sequence[str] = WHOLE,
) -> Derived[F]:
    """Write a dataset, unless the folder already contains the same complete dataset.

    Datasets are the same if their commands, inputs, options and plug-in code are the same.

    Args:
        folder: the output folder; it is created if it does not exist.
        provenance: the command, its inputs, options and plug-in code, which determine the
            dataset.
        shape: the kind of rows: ``instructions`` or ``preferences``.
        facts: the class of the facts that ``write`` returns.
        write: a function that appends the rows to an `Output`, and returns a `Written`.
        splits: the names of the dataset's splits.

    Raises:
        RunError: the folder contains a different dataset or other files, or is locked.
        StorageError: the files cannot be written.
    """
    with output_folder(folder, provenance):
        unchanged = is_complete(folder)
        if not unchanged:
            with writing(folder, shape, splits) as writer:
                output = Output(writer)
                written = write(output)
                writer.finish(
                    lambda contents: derived_card(
                        name_of(folder), contents, written.what, written.sections, provenance
                    ),
                    output.rejections(),
                    written.facts.to_dict(),
                )
        return _derived(folder, facts, unchanged)


def _derived(folder: Path, facts: type[F], unchanged: bool) -> Derived[F]:
    """Return the result of a command, read from the manifest of its complete dataset."""
    manifest = manifest_in(folder)
    return Derived(
        out=folder,
        rows=manifest.rows,
        rejected=manifest.rejected,
        splits=splits_of(folder),
        rejections=manifest.rejections,
        terms=manifest.terms,
        facts=facts.of(manifest.facts, folder / "manifest.json"),
        parts=tuple(str(folder / part.path) for part in manifest.files),
        card=str(folder / "README.md"),
        unchanged=unchanged,
    )


def name_of(path: Path) -> str:
    """Return the name of a file or folder as text; bytes that are not UTF-8 are replaced."""
    return os.fsencode(path.resolve().name).decode("utf-8", "replace")


def inputs_of(paths: Sequence[Path]) -> tuple[InputRef, ...]:
    """Return the name and SHA-256 digest of each file or dataset folder, for the provenance.

    Raises:
        InputError: a path does not exist.
        RunError: a folder contains no complete dataset.
    """
    for path in paths:
        if not path.exists():
            raise InputError("the path does not exist.", path=path, hint="Check the path.")
    return tuple(InputRef(name_of(p), digest_of(p)) for p in paths)


def check_separate(folder: Path, inputs: Sequence[Path]) -> None:
    """Check that no input is passed twice, and that the output folder is not inside an input.

    Raises:
        InputError: an input is passed twice, or the output folder is inside an input.
    """
    seen: set[Path] = set()
    for path in inputs:
        place = path.resolve()
        if place in seen:
            raise InputError("the input is passed twice.", path=path, hint="Pass each input once.")
        seen.add(place)
        if folder.resolve().is_relative_to(place):
            raise InputError(
                f"the output folder {folder} is inside this input.",
                path=path,
                hint="Pass an --out outside the inputs.",
            )


def readers_of(folders: Sequence[Path]) -> list[DatasetReader]:
    """Open dataset folders, so that a command reads the same data from its start to its end.

    Raises:
        InputError: a folder does not exist.
        RunError: a path is not a folder, or contains no complete dataset.
    """
    for folder in folders:
        if not folder.exists():
            raise InputError("the path does not exist.", path=folder, hint="Check the path.")
        if not folder.is_dir():
            raise RunError(
                f"{folder} is not a dataset folder.", "Create a dataset with instructgen import."
            )
    return [DatasetReader(folder) for folder in folders]


def refs_of(readers: Sequence[DatasetReader]) -> tuple[InputRef, ...]:
    """Return the name and SHA-256 digest of each dataset, for the provenance."""
    return tuple(InputRef(name_of(r.folder), r.digest) for r in readers)


def common_shape(readers: Sequence[DatasetReader]) -> Shape:
    """Return the kind of rows that all datasets contain: ``instructions`` or ``preferences``.

    Raises:
        RunError: the datasets contain different kinds of rows.
    """
    shapes: dict[Shape, Path] = {}
    for reader in readers:
        shapes.setdefault(reader.shape, reader.folder)
    if len(shapes) > 1:
        kinds = ", ".join(f"{folder} contains {shape}" for shape, folder in shapes.items())
        raise RunError(
            f"the datasets have different kinds of rows: {kinds}.",
            "Pass only instruction datasets, or only preference datasets.",
        )
    return next(iter(shapes))
