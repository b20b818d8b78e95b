"""The command merge: datasets in, one mix out, and what it obliges whoever uses it.

Reads the inputs twice: first to decide by numbers what is taken, then to write
it. Rows wait for their place on disk, so that memory does not grow with the mix.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from instructgen.commands.derive import (
    ROWS_AT_ONCE,
    Derived,
    Output,
    Written,
    check_apart,
    common_shape,
    derive,
    inputs_of,
)
from instructgen.commands.mixing import MixOptions, SplitOptions, Strata, Together, copies, load_mix
from instructgen.errors import ConfigError, InputError
from instructgen.licensing.licenses import Requirement
from instructgen.reports.cards import rejected_table, table
from instructgen.schema.progress import Progress, Watch
from instructgen.schema.sample import Label, Rejected, Rejection, Sample, Shape
from instructgen.schema.seeding import digest
from instructgen.store import SPLITS, Spool, read_samples, splits_of

_ROWS_PER_BUCKET = 20_000
_NOT_DRAWN = Rejection("mix", "not_drawn", "the shares of the mix leave no room for it")
_MEASURED = {"validation", "test"}
_HELD_OUT = Rejection("mix", "held_out", "its question stands, or nearly, in a split to measure on")


def merge(
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    recipe: str | Path | None = None,
    require: str | None = None,
    watch: Watch | None = None,
) -> Derived:
    """Mix datasets into one.

    Of inputs that are split, rows to measure on stay in their split, and no row of the mix
    that is trained on has one of their questions or nearly.

    Args:
        inputs: dataset or run folders.
        out: a folder for the mix. One made from the same is left as it is.
        recipe: a TOML file with the tables [mix] and [split]; all rows, shuffled,
            without one.
        require: what every row has to allow: ``commercial-use``, ``permissive``, or
            licences separated by commas. Rows that fail are rejected.
        watch: called with progress.

    Raises:
        InputError: an input is not there, or no row is left.
        ConfigError: the recipe or ``require`` is bad, or splits again what is split.
        RunError: an input is no complete dataset, or ``out`` holds something else.
        StorageError: the disk refuses.
    """
    paths, folder = [Path(p) for p in inputs], Path(out)
    mix, split = load_mix(None if recipe is None else str(recipe))
    wanted = None if require is None else Requirement.of(require)
    given = inputs_of(paths)
    check_apart(folder, paths)
    shape = common_shape(paths)
    made = {
        "command": "merge",
        "inputs": given,
        "options": {
            "mix": mix.model_dump(mode="json"),
            "split": split.model_dump(mode="json"),
            "require": require,
        },
    }
    merging = _Merge(paths, folder, shape, mix, split, wanted, watch)
    return derive(folder, made, shape, merging.write, merging.splits)


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
        parted = next((p for p in paths if _MEASURED & splits_of(p).keys()), None)
        asked = split.validation or split.test
        if parted is not None and asked:
            raise ConfigError(
                f"{parted} is split already, and stays so in a mix.", "Leave [split] out."
            )
        self.splits = SPLITS if asked or parted is not None else ("part",)

    def write(self, output: Output) -> Written:
        strata, together, count = Strata(self.mix.by), Together(self.split), 0
        parted: dict[int, str] = {}
        for row, split, sample in self._rows("weigh"):
            count = row + 1
            refused = self._refused(sample) is not None
            if not refused:
                strata.add(row, sample)
            if split in _MEASURED:
                # Also one that may not be in the mix is measured on elsewhere.
                parted[row] = split
            if len(self.splits) > 1 and (not refused or split in _MEASURED):
                together.add(row, sample)
        beside = together.beside(parted) if parted else set()
        strata.remove(beside)
        taken = copies(strata, self.mix)
        if not taken:
            raise InputError("no row is left for the mix.", hint="Look at --require and [mix].")
        sides = dict.fromkeys(taken, "part")
        if len(self.splits) > 1:
            sides = (
                {row: parted.get(row, "train") for row in taken}
                if parted
                else together.sides(list(taken), self.mix.seed)
            )
            if "train" not in sides.values():
                raise InputError(
                    "the split leaves nothing to train on.",
                    hint="Lower [split], or take more rows.",
                )
            # To judge a model twice by the same row tells nothing.
            taken = {row: n if sides[row] == "train" else 1 for row, n in taken.items()}
        self._write_rows(output, taken, sides, beside)
        if len(taken) + output.rejected != count:
            raise RuntimeError(f"{count} rows read, {len(taken)} taken, {output.rejected} not")
        facts = {
            "read": count,
            "taken": len(taken),
            "strata": self._strata(strata, taken),
            "splits": dict(Counter(sides[row] for row in taken)),
        }
        return Written(facts, _sections(facts, self.mix.by, output.funnel()))

    def _rows(self, stage: str) -> Iterator[tuple[int, str, Sample]]:
        number = 0
        for path in self.paths:
            for split in splits_of(path):
                for sample in read_samples(path, split=split):
                    yield number, split, sample
                    number += 1
                    if self.watch is not None and number % ROWS_AT_ONCE == 0:
                        self.watch(Progress(stage, number))

    def _refused(self, sample: Sample) -> Rejection | None:
        if self.require is None:
            return None
        found = self.require.objection(sample.license, sample.generators)
        return None if found is None else Rejection("licence", *found)

    def _write_rows(
        self,
        output: Output,
        taken: dict[int, int],
        sides: dict[int, str],
        beside: set[int],
    ) -> None:
        """Park every row where its place in the mix is, then write place by place."""
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
                    left = _HELD_OUT if number in beside else _NOT_DRAWN
                    reason = self._refused(sample) or left
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

    def _strata(self, strata: Strata, taken: dict[int, int]) -> list[dict[str, Any]]:
        return [
            {
                self.mix.by: name,
                "rows": len(rows),
                "taken": sum(row in taken for row in rows),
                "with_copies": sum(taken.get(row, 0) for row in rows),
            }
            for name, rows in sorted(strata.rows.items())
        ]


def _sections(facts: dict[str, Any], by: str, funnel: list[dict[str, Any]]) -> list[str]:
    strata = [
        (s[by], f"{s['rows']:,}", f"{s['taken']:,}", f"{s['with_copies']:,}")
        for s in facts["strata"]
    ]
    splits = [(name, f"{rows:,}") for name, rows in facts["splits"].items() if name != "part"]
    return [
        "## Mix",
        "",
        f"{facts['read']:,} rows were read, and {facts['taken']:,} of them taken. "
        "The others are in `rejected/`, each with its reason.",
        "",
        *table((by, "rows", "taken", "with copies"), strata),
        "",
        *([*table(("split", "different rows"), splits), ""] if splits else []),
        *(rejected_table(funnel) if funnel else ()),
    ]
