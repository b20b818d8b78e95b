"""The rows of a dataset for training, those held out, and a word on each that is left out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from instructgen.errors import InputError
from instructgen.formats import read
from instructgen.schema.sample import Sample, Shape
from instructgen.store import read_samples, shape_of, splits_of, training_split
from instructgen.training.encode import Encoded, Encoder, Unusable

# Of a file to evaluate on: its rows go into nothing that is given away.
_ANY = "LicenseRef-not-given"
_HELD_OUT, _SHARE_HELD_OUT, _MOST_HELD_OUT = 64, 0.1, 0.5


@dataclass(frozen=True, slots=True)
class Rows:
    """What there is to train on and to evaluate on."""

    train: list[Sample]
    held_out: list[Sample]
    held_out_from: str


@dataclass(slots=True)
class Excluded:
    """The rows that are not trained on, or only in part, by id and reason."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, sample: Sample, reason: str, detail: str) -> None:
        """Count and name one."""
        self.rows.append({"id": sample.id, "reason": reason, "detail": detail})

    def counts(self) -> dict[str, int]:
        """Rows by reason."""
        return dict(sorted(Counter(row["reason"] for row in self.rows).items()))


def samples_at(path: Path, split: str | None = None) -> list[Sample]:
    """The samples of a dataset folder, or of a file in any format that import knows.

    Args:
        path: where.
        split: of a folder that is split; None for all rows.

    Raises:
        InputError: nothing is there, it holds no rows, or a row is bad.
        RunError: a folder without a complete dataset.
    """
    if not path.exists():
        raise InputError("no such dataset.", path=path, hint="Check the path.")
    if path.is_dir():
        found = list(read_samples(path, split=split))
    else:
        found = [row for row in read(path, license=_ANY) if isinstance(row, Sample)]
    if not found:
        raise InputError("the dataset is empty.", path=path, hint="Give one with rows.")
    return found


def held_out_at(path: Path) -> list[Sample]:
    """The rows to measure on: of a folder that is split those of ``test``, or ``validation``.

    Raises:
        InputError: nothing is there, it holds no rows, or a row is bad.
        RunError: a folder without a complete dataset.
    """
    splits = splits_of(path) if path.is_dir() else {}
    return samples_at(path, next((s for s in ("test", "validation") if s in splits), None))


def shape_at(path: Path) -> Shape:
    """The shape of the rows of a dataset folder or file."""
    if path.is_dir():
        return shape_of(path)
    return next(sample.shape for sample in samples_at(path))


def rows_for(
    data: Path, held_out: Path | None, asked: int | None, fits: Callable[[Sample], bool]
) -> Rows:
    """The rows to train on, and others to evaluate on.

    Those held out are, in this order: of the file or folder given; of the split
    ``validation``; or of the rows themselves, chosen by their ids, whole groups
    together. No row with one of their questions, or of one of their groups, is
    trained on, and a split ``test`` is never touched. Rows that do not fit are passed
    over.

    Raises:
        InputError: a dataset is missing or empty.
    """
    splits = splits_of(data) if data.is_dir() else {}
    most = _HELD_OUT if asked is None else asked
    train = samples_at(data, training_split(data) if splits else None)
    if held_out is not None:
        there = held_out_at(held_out)
        kept = list(islice(filter(fits, there), most))
        # A split is there to be measured on as a whole; of other rows those that are.
        parted = held_out.is_dir() and {"validation", "test"} & splits_of(held_out).keys()
        return Rows(_apart(train, there if parted else kept), kept, held_out.name)
    if "validation" in splits:
        kept = list(islice(filter(fits, samples_at(data, "validation")), most))
        return Rows(_apart(train, kept), kept, "its split validation")
    share = _SHARE_HELD_OUT if asked is None else _MOST_HELD_OUT
    most = min(most, int(len(train) * share))
    groups: dict[str, list[Sample]] = {}
    for sample in train:
        groups.setdefault(sample.origin.group or sample.question, []).append(sample)
    kept = []
    for group in sorted(groups, key=_place):
        if len(kept) >= most:
            break
        kept += filter(fits, groups[group])
    return Rows(_apart(train, kept), kept[:most], "its own rows")


def _apart(train: Sequence[Sample], kept: Sequence[Sample]) -> list[Sample]:
    """Rows that share neither a question nor a group with those held out."""
    questions = {s.question for s in kept}
    groups = {s.origin.group for s in kept} - {None}
    return [s for s in train if s.question not in questions and s.origin.group not in groups]


def encoded(
    samples: Iterable[Sample],
    encoder: Encoder,
    max_length: int,
    left_out: Excluded,
    *,
    truncate: bool = False,
    answer: Callable[[Sample], str] | None = None,
) -> list[tuple[Sample, Encoded]]:
    """The rows as tokens; those that cannot be used are named in ``left_out``."""
    found = []
    for sample in samples:
        row = encoder.encode(sample, None if answer is None else answer(sample))
        if isinstance(row, Unusable):
            left_out.add(sample, row.reason, row.detail)
        elif len(row.ids) <= max_length:
            found.append((sample, row))
        elif truncate and any(row.trained[:max_length]):
            left_out.add(sample, "truncated", f"{len(row.ids)} tokens, cut to {max_length}")
            found.append((sample, row.cut(max_length)))
        else:
            left_out.add(sample, "too_long", f"{len(row.ids)} tokens, more than {max_length}")
    return found


def digest_of_rows(samples: Sequence[Sample]) -> str:
    """SHA-256 of the rows' ids, in order."""
    return hashlib.sha256("".join(s.id for s in samples).encode()).hexdigest()


def _place(group: str) -> str:
    return hashlib.sha256(f"held-out {group}".encode("utf-8", "replace")).hexdigest()
