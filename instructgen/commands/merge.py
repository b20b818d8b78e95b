"""The command `merge`: mixes several datasets into one.

The inputs are read twice: first to decide which rows the mix contains, then to write them. Rows
are sorted on disk, so that memory use does not grow with the size of the mix.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instructgen.commands.derive import (
    ROWS_AT_ONCE,
    Derived,
    Output,
    Written,
    check_separate,
    common_shape,
    derive,
    inputs_of,
)
from instructgen.commands.interface import command
from instructgen.commands.mixing import (
    MixOptions,
    SplitGroups,
    SplitOptions,
    Strata,
    copies,
    load_mix,
)
from instructgen.commands.options import MergeOptions
from instructgen.errors import ConfigError, InputError
from instructgen.licensing.licenses import Requirement
from instructgen.reports.cards import rejected_table, table
from instructgen.schema.progress import Progress, Watch
from instructgen.schema.records import JsonRecord
from instructgen.schema.sample import Label, Rejected, Rejection, Sample, Shape
from instructgen.schema.seeding import digest
from instructgen.store import (
    SPLITS,
    Provenance,
    RejectionCount,
    Spool,
    read_samples,
    splits_of,
)

_ROWS_PER_BUCKET = 20_000
_NOT_DRAWN = Rejection(
    "mix", "not_drawn", "the mix contains a random sample of the rows, and this row was not drawn"
)
_EVALUATION = {"validation", "test"}
_HELD_OUT = Rejection(
    "mix", "held_out", "the same question, or a similar one, is in an evaluation split"
)


@dataclass(frozen=True, slots=True)
class Stratum:
    """The row counts of one source, category or language.

    ``rows`` is the number of rows read, ``taken`` the number of them in the mix, and
    ``with_copies`` the number of rows in the mix when every copy is counted.
    """

    name: str
    rows: int
    taken: int
    with_copies: int


@dataclass(frozen=True, slots=True)
class MergeFacts(JsonRecord):
    """Facts about a merge, for the manifest.

    ``read`` is the number of rows read, ``taken`` the number of them in the mix. ``by`` is the
    property that groups rows (source, category or language). ``strata`` has the row counts of
    each group.
    """

    read: int
    taken: int
    by: str
    strata: tuple[Stratum, ...]


@command(MergeOptions, "inputs", "out")
def merge(options: MergeOptions, watch: Watch | None = None) -> Derived[MergeFacts]:
    """Mix datasets into one.

    Rows in the validation or test split of an input stay in that split. Training rows with
    the same question as one of these rows, or with a similar question, are rejected.

    Raises:
        InputError: an input does not exist, or all rows were rejected.
        ConfigError: the recipe or ``require`` is invalid, or the recipe splits an input that
            already has splits.
        RunError: an input is not a complete dataset, or the output folder contains other
            files or a different dataset.
        StorageError: the files cannot be written.
    """
    recipe = options.recipe
    mix, split = load_mix(None if recipe is None else str(recipe))
    require = (
        None if options.require is None else Requirement.of(options.require, options.accept_terms)
    )
    inputs = inputs_of(options.inputs)
    check_separate(options.out, options.inputs)
    shape = common_shape(options.inputs)
    recorded: dict[str, Any] = {
        "mix": mix.model_dump(mode="json"),
        "split": split.model_dump(mode="json"),
        "require": options.require,
        "accept_terms": list(options.accept_terms),
    }
    merging = _Merge(options.inputs, options.out, shape, mix, split, require, watch)
    provenance = Provenance("merge", inputs, recorded)
    return derive(options.out, provenance, shape, MergeFacts, merging.write, merging.splits)


class _Merge:
    def __init__(
        self,
        paths: Sequence[Path],
        folder: Path,
        shape: Shape,
        mix: MixOptions,
        split: SplitOptions,
        require: Requirement | None,
        watch: Watch | None,
    ) -> None:
        self.paths, self.folder, self.shape = paths, folder, shape
        self.mix, self.split, self.require, self.watch = mix, split, require, watch
        with_splits = next((p for p in paths if _EVALUATION & splits_of(p).keys()), None)
        splits_rows = bool(split.validation or split.test)
        if with_splits is not None and splits_rows:
            raise ConfigError(
                f"{with_splits} already has splits, so the table [split] must not define new ones.",
                "Remove the table [split] from the recipe.",
            )
        self.splits = SPLITS if splits_rows or with_splits is not None else ("part",)

    def write(self, output: Output) -> Written[MergeFacts]:
        strata, groups, count = Strata(self.mix.by), SplitGroups(self.split), 0
        evaluation: dict[int, str] = {}
        for row, split, sample in self._rows("weigh"):
            count = row + 1
            allowed = self._license_problem(sample) is None
            if allowed:
                strata.add(row, sample)
            if split in _EVALUATION:
                # A row with a rejected license may still be used for evaluation elsewhere.
                evaluation[row] = split
            if len(self.splits) > 1 and (allowed or split in _EVALUATION):
                groups.add(row, sample)
        held_out = groups.near(evaluation) if evaluation else set()
        strata.remove(held_out)
        taken = copies(strata, self.mix)
        taken, sides = self._sides(taken, groups, evaluation)
        self._write_rows(output, taken, sides, held_out)
        if len(taken) + output.rejected != count:
            raise RuntimeError(
                f"{count} rows were read, but {len(taken)} rows in the mix and {output.rejected} "
                "rejected rows do not add up to that number. This is a bug; please report it."
            )
        facts = MergeFacts(count, len(taken), self.mix.by, self._strata(strata, taken))
        splits = Counter(sides[row] for row in taken)
        return Written(facts, _sections(facts, splits, output.rejections()))

    def _sides(
        self, taken: dict[int, int], groups: SplitGroups, evaluation: dict[int, str]
    ) -> tuple[dict[int, int], dict[int, str]]:
        """Return each row's number of copies (1 for validation and test rows) and its split."""
        if len(self.splits) == 1:
            return taken, dict.fromkeys(taken, "part")
        sides = (
            {row: evaluation.get(row, "train") for row in taken}
            if evaluation
            else groups.sides(list(taken), self.mix.seed)
        )
        if taken and "train" not in sides.values():
            raise InputError(
                "no rows are left for training: all rows are in the splits validation and test.",
                hint="Use smaller fractions in the table [split], or more rows for training.",
            )
        # A second copy of an evaluation row would not add information.
        return {row: n if sides[row] == "train" else 1 for row, n in taken.items()}, sides

    def _rows(self, stage: str) -> Iterator[tuple[int, str, Sample]]:
        number = 0
        for path in self.paths:
            for split in splits_of(path):
                for sample in read_samples(path, split=split):
                    yield number, split, sample
                    number += 1
                    if self.watch is not None and number % ROWS_AT_ONCE == 0:
                        self.watch(Progress(stage, number))

    def _license_problem(self, sample: Sample) -> Rejection | None:
        if self.require is None:
            return None
        problem = self.require.objection(sample.license, sample.generators)
        return None if problem is None else Rejection("license", *problem)

    def _write_rows(
        self,
        output: Output,
        taken: dict[int, int],
        sides: dict[int, str],
        held_out: set[int],
    ) -> None:
        """Write the rows of the mix in order, sorted in temporary files, and reject the rest."""
        order = [row for row in sorted(taken) for _ in range(taken[row])]
        if self.mix.shuffle:
            random.Random(digest(self.mix.seed, "shuffle")).shuffle(order)
        places: dict[int, list[int]] = {}
        for place, row in enumerate(order):
            places.setdefault(row, []).append(place)
        buckets = -(-len(order) // _ROWS_PER_BUCKET)
        with Spool(self.folder, self.shape, buckets) as spool:
            rejected: list[Rejected] = []
            for number, _, sample in self._rows("read"):
                for place in places.get(number, ()):
                    spool.add(place // _ROWS_PER_BUCKET, place, sample)
                if number not in taken:
                    other = _HELD_OUT if number in held_out else _NOT_DRAWN
                    reason = self._license_problem(sample) or other
                    at = output.rejected + len(rejected)
                    rejected.append(Rejected(sample, reason, "merge", at))
                if len(rejected) >= ROWS_AT_ONCE:
                    output.reject(rejected)
                    rejected = []
            output.reject(rejected)
            copies_seen: Counter[int] = Counter()
            for bucket in range(buckets):
                waiting: dict[str, list[Sample]] = {name: [] for name in self.splits}
                for place, sample in spool.take(bucket):
                    row = order[place]
                    copies_seen[row] += 1
                    if (copy := copies_seen[row]) > 1:
                        sample = replace(sample, labels=(*sample.labels, Label("copy", str(copy))))
                    waiting[sides[row]].append(sample)
                for name, samples in waiting.items():
                    output.keep(samples, name)
                if self.watch is not None:
                    self.watch(Progress("write", sum(copies_seen.values()), len(order)))

    def _strata(self, strata: Strata, taken: dict[int, int]) -> tuple[Stratum, ...]:
        return tuple(
            Stratum(
                name,
                len(rows),
                sum(row in taken for row in rows),
                sum(taken.get(row, 0) for row in rows),
            )
            for name, rows in sorted(strata.rows.items())
        )


def _sections(
    facts: MergeFacts, splits: Counter[str], rejections: Sequence[RejectionCount]
) -> list[str]:
    strata = [(s.name, f"{s.rows:,}", f"{s.taken:,}", f"{s.with_copies:,}") for s in facts.strata]
    sizes = [(name, f"{rows:,}") for name, rows in splits.items() if name != "part"]
    return [
        "## Mix",
        "",
        f"{facts.read:,} rows were read, and {facts.taken:,} of them are in the mix. "
        "The other rows are in `rejected/`, each with the reason for its rejection.",
        "",
        *table((facts.by, "rows read", "in the mix", "with copies"), strata),
        "",
        *([*table(("split", "different rows"), sizes), ""] if sizes else []),
        *(rejected_table(rejections) if rejections else ()),
    ]
