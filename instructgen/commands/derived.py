"""What the commands that make a dataset out of others have in common."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructgen.errors import InputError, RunError
from instructgen.sample import Rejected, Shape
from instructgen.store import digest_of, read_manifest, shape_of

# Rows handed to the writer at a time.
ROWS_AT_ONCE = 1_000
# Called with a name, the rows done with, and all of them where that is known.
Watch = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True)
class Derived:
    """What a command that makes a dataset came to.

    ``funnel`` counts the rejected rows by stage, filter and reason; ``facts`` is
    what the manifest says besides.
    """

    out: Path
    rows: int
    rejected: int
    funnel: list[dict[str, Any]]
    facts: dict[str, Any]
    parts: tuple[str, ...]
    card: str


def derived(folder: Path) -> Derived:
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


class Funnel:
    """Rejections counted by stage, filter and reason."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, str]] = Counter()

    def add(self, rejected: Sequence[Rejected]) -> None:
        """Count these too."""
        self._counts.update((r.stage, r.rejection.filter, r.rejection.reason) for r in rejected)

    def rows(self) -> list[dict[str, Any]]:
        """As the manifest keeps it."""
        return [
            {"stage": stage, "filter": name, "reason": reason, "count": count}
            for (stage, name, reason), count in sorted(self._counts.items())
        ]
