"""One way to make a dataset out of others: check, write, describe, and only once.

Each command computes what it does to rows and hands `derive` a function that writes them;
the folder, its provenance, the funnel and the card are looked after here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructgen.errors import InputError, RunError
from instructgen.reports.cards import derived_card
from instructgen.schema.sample import Rejected, Sample, Shape
from instructgen.store import (
    WHOLE,
    Writer,
    digest_of,
    is_whole,
    making,
    read_manifest,
    shape_of,
    writing,
)

# Rows handed to the writer at a time.
ROWS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Derived:
    """What a command that makes a dataset came to.

    ``funnel`` counts the rejected rows by stage, filter and reason; ``facts`` is
    what else the manifest contains. ``unchanged`` is true if the dataset already existed
    and nothing was written.
    """

    out: Path
    rows: int
    rejected: int
    funnel: list[dict[str, Any]]
    facts: dict[str, Any]
    parts: tuple[str, ...]
    card: str
    unchanged: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """What a command reports about the rows that it wrote.

    ``facts`` go into the manifest, ``sections`` (Markdown, line by line) into the card, and
    ``what`` ends the card's sentence that begins with the rows and the inputs.
    """

    facts: dict[str, Any]
    sections: list[str]
    what: str = ""


class Output:
    """The dataset being written: rows kept, rows rejected, and the rejections counted."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._funnel: Counter[tuple[str, str, str]] = Counter()

    @property
    def rejected(self) -> int:
        """How many rows were rejected so far: the number of the next one."""
        return self._writer.contents.rejected

    def keep(self, samples: Sequence[Sample], split: str = "part") -> None:
        """Append rows to the dataset."""
        self._writer.keep(samples, split)

    def reject(self, rejected: Sequence[Rejected]) -> None:
        """Append rows that are not in the dataset."""
        self._writer.reject(rejected)
        self._funnel.update((r.stage, r.rejection.filter, r.rejection.reason) for r in rejected)

    def funnel(self) -> list[dict[str, Any]]:
        """Rejections by stage, filter and reason, as the manifest keeps them."""
        return [
            {"stage": stage, "filter": name, "reason": reason, "count": count}
            for (stage, name, reason), count in sorted(self._funnel.items())
        ]


def derive(
    folder: Path,
    made: Mapping[str, Any],
    shape: Shape,
    write: Callable[[Output], Written],
    splits: Sequence[str] = WHOLE,
) -> Derived:
    """Write a dataset, unless the folder already contains it, complete and unchanged.

    Unchanged means: the same command, inputs, options and plug-in code.

    Args:
        folder: the output folder; created with its parents.
        made: the command, its inputs, options and plug-in code, which determine the dataset.
        shape: ``instructions`` or ``preferences``.
        write: writes the rows and returns the facts and card sections about them.
        splits: the names of the dataset's splits.

    Raises:
        RunError: the folder contains something else or a different dataset, or is in use.
        StorageError: the files cannot be written.
    """
    with making(folder, made):
        unchanged = is_whole(folder)
        if not unchanged:
            with writing(folder, shape, splits) as writer:
                output = Output(writer)
                written = write(output)
                inputs = [each["name"] for each in made["inputs"]]
                writer.finish(
                    lambda contents: derived_card(
                        name_of(folder), contents, inputs, written.what, written.sections, made
                    ),
                    {**written.facts, "funnel": output.funnel()},
                )
        return _derived(folder, unchanged)


def _derived(folder: Path, unchanged: bool) -> Derived:
    """The result that a complete dataset's manifest tells of."""
    manifest = dict(read_manifest(folder) or {})
    files, known = manifest.pop("files"), ("format", "rows", "rejected", "funnel")
    return Derived(
        out=folder,
        rows=manifest["rows"],
        rejected=manifest["rejected"],
        funnel=manifest["funnel"],
        facts={k: v for k, v in manifest.items() if k not in known},
        parts=tuple(str(folder / file["path"]) for file in files),
        card=str(folder / "README.md"),
        unchanged=unchanged,
    )


def name_of(path: Path) -> str:
    """The name of a file or folder as text, whatever bytes it has."""
    return os.fsencode(path.resolve().name).decode("utf-8", "replace")


def inputs_of(paths: Sequence[Path]) -> list[dict[str, str]]:
    """Names and digests of files and dataset folders, as made.json keeps them.

    Raises:
        InputError: one of them is not there.
        RunError: a folder holds no complete dataset.
    """
    for path in paths:
        if not path.exists():
            raise InputError("no such dataset.", path=path, hint="Check the path.")
    return [{"name": name_of(p), "sha256": digest_of(p)} for p in paths]


def check_apart(folder: Path, inputs: Sequence[Path]) -> None:
    """Refuse a dataset given twice, and an output inside an input.

    Raises:
        InputError: one of these.
    """
    seen: set[Path] = set()
    for path in inputs:
        place = path.resolve()
        if place in seen:
            raise InputError("the dataset is given twice.", path=path, hint="Give it once.")
        seen.add(place)
        if folder.resolve().is_relative_to(place):
            raise InputError(f"{folder} lies in an input.", path=path, hint="Give another --out.")


def common_shape(folders: Sequence[Path]) -> Shape:
    """The shape of the rows of all these datasets.

    Raises:
        RunError: one is no dataset, or they differ.
    """
    shapes: dict[Shape, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise RunError(f"{folder} is no dataset folder.", "Run: instructgen import.")
        shapes.setdefault(shape_of(folder), folder)
    if len(shapes) > 1:
        said = ", ".join(f"{folder} {shape}" for shape, folder in shapes.items())
        raise RunError(f"the datasets differ: {said}.", "Give one kind at a time.")
    return next(iter(shapes))
