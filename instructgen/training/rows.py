"""Reads training rows, selects held-out rows for evaluation, and records rejected rows."""

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
from instructgen.schema.messages import Message
from instructgen.schema.sample import Sample, Shape
from instructgen.similarity.distinctions import fold
from instructgen.store import read_samples, shape_of, splits_of, training_split
from instructgen.training.encode import Encoded, Encoder, Unusable

# License of rows in plain files, which are only used for training and evaluation.
_ANY = "LicenseRef-not-given"
_HELD_OUT, _SHARE_HELD_OUT, _MOST_HELD_OUT = 64, 0.1, 0.5


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows to train on, held-out rows to evaluate on, and where the held-out rows come from."""

    train: list[Sample]
    held_out: list[Sample]
    held_out_from: str


@dataclass(slots=True)
class RejectedRows:
    """Rows that were rejected or truncated, each with its id, a reason code and details."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, sample: Sample, reason: str, detail: str) -> None:
        """Record a rejected or truncated row."""
        self.rows.append({"id": sample.id, "reason": reason, "detail": detail})

    def counts(self) -> dict[str, int]:
        """Return the number of rejected or truncated rows by reason code."""
        return dict(sorted(Counter(row["reason"] for row in self.rows).items()))


def samples_at(path: Path, split: str | None = None) -> list[Sample]:
    """Read the samples of a dataset folder, or of a file in any format that `import` supports.

    Args:
        path: dataset folder or file.
        split: name of the split to read from a dataset folder; None for all rows.

    Raises:
        InputError: the path does not exist, the dataset is empty, or a row is invalid.
        RunError: the folder does not contain a complete dataset.
    """
    if not path.exists():
        raise InputError("the dataset does not exist.", path=path, hint="Check the path.")
    if path.is_dir():
        samples = list(read_samples(path, split=split))
    else:
        samples = [row for row in read(path, license=_ANY) if isinstance(row, Sample)]
    if not samples:
        hint = "Use a dataset with at least one row."
        raise InputError("the dataset is empty.", path=path, hint=hint)
    return samples


def held_out_at(path: Path) -> list[Sample]:
    """Read the rows to evaluate on: split ``test``, else split ``validation``, else all rows.

    Raises:
        InputError: the path does not exist, the dataset is empty, or a row is invalid.
        RunError: the folder does not contain a complete dataset.
    """
    return samples_at(path, held_out_split(path))


def held_out_split(path: Path) -> str | None:
    """Return the split to evaluate on: ``test``, else ``validation``, else None."""
    splits = splits_of(path) if path.is_dir() else {}
    return next((s for s in ("test", "validation") if s in splits), None)


def shape_at(path: Path) -> Shape:
    """Return whether the rows in a dataset folder or file are instruction or preference rows."""
    if path.is_dir():
        return shape_of(path)
    return next(sample.shape for sample in samples_at(path))


def rows_for(
    data: Path, held_out: Path | None, limit: int | None, fits: Callable[[Sample], bool]
) -> Rows:
    """Select the rows to train on and the held-out rows to evaluate on.

    Held-out rows come from ``held_out`` if it is given, else from the split ``validation`` if
    ``data`` has one, else from the training rows. In that case, groups (rows with the same
    ``origin.group`` or question) are chosen by a hash, so every run chooses the same rows.
    Rows that have the same question or group as a held-out row are not used for training. The
    split ``test`` of ``data`` is never used for training.

    Args:
        data: dataset folder or file to train on.
        held_out: dataset folder or file to evaluate on.
        limit: maximum number of held-out rows; None means 64. From the training rows, at most
            half are held out, or a tenth if ``limit`` is None.
        fits: function that returns whether a row can be evaluated. Other rows are not held out.

    Raises:
        InputError: a dataset is missing or empty.
    """
    splits = splits_of(data) if data.is_dir() else {}
    most = _HELD_OUT if limit is None else limit
    train = samples_at(data, training_split(data) if splits else None)
    if held_out is not None:
        candidates = held_out_at(held_out)
        kept = list(islice(filter(fits, candidates), most))
        # Training excludes a split as a whole, but only the evaluated rows of other datasets.
        is_split = held_out.is_dir() and {"validation", "test"} & splits_of(held_out).keys()
        measured = candidates if is_split else kept
        return Rows(_disjoint(train, measured), kept, held_out.name)
    if "validation" in splits:
        kept = list(islice(filter(fits, samples_at(data, "validation")), most))
        return Rows(_disjoint(train, kept), kept, "the split validation")
    share = _SHARE_HELD_OUT if limit is None else _MOST_HELD_OUT
    most = min(most, int(len(train) * share))
    groups: dict[str, list[Sample]] = {}
    for sample in train:
        groups.setdefault(sample.origin.group or _normalized(sample), []).append(sample)
    kept = []
    for group in sorted(groups, key=_order_hash):
        if len(kept) >= most:
            break
        kept += filter(fits, groups[group])
    return Rows(_disjoint(train, kept), kept[:most], "rows of the training data")


def _disjoint(train: Sequence[Sample], held_out: Sequence[Sample]) -> list[Sample]:
    """Return the training rows that have neither the question nor the group of a held-out row."""
    questions = {_normalized(s) for s in held_out}
    groups = {s.origin.group for s in held_out} - {None}
    return [s for s in train if _normalized(s) not in questions and s.origin.group not in groups]


def _normalized(sample: Sample) -> str:
    """Return the question in a form that is equal for questions that look the same."""
    return " ".join(fold(sample.question).split())


def encoded(
    samples: Iterable[Sample],
    encoder: Encoder,
    max_length: int,
    rejected: RejectedRows,
    *,
    truncate: bool = False,
    answer: Callable[[Sample], str | Message | None] | None = None,
) -> list[tuple[Sample, Encoded]]:
    """Encode the rows as tokens, and record unusable and truncated rows in ``rejected``.

    With ``truncate``, rows that are too long are truncated instead of rejected. The function
    ``answer``, if given, returns the answer to encode in place of a row's output.
    """
    rows = []
    for sample in samples:
        row = encoder.encode(sample, None if answer is None else answer(sample))
        if isinstance(row, Unusable):
            rejected.add(sample, row.reason, row.detail)
        elif len(row.ids) <= max_length:
            rows.append((sample, row))
        elif truncate and any(row.trained[:max_length]):
            rejected.add(sample, "truncated", f"{len(row.ids)} tokens, truncated to {max_length}")
            rows.append((sample, row.cut(max_length)))
        else:
            rejected.add(sample, "too_long", f"{len(row.ids)} tokens, more than {max_length}")
    return rows


def digest_of_rows(samples: Sequence[Sample]) -> str:
    """Return the SHA-256 digest of the ids of the rows, in the given order."""
    return hashlib.sha256("".join(s.id for s in samples).encode()).hexdigest()


def _order_hash(group: str) -> str:
    return hashlib.sha256(f"held-out {group}".encode("utf-8", "replace")).hexdigest()
