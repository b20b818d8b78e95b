"""The command `merge`: mixes several datasets into one.

The inputs are read twice: first to decide which rows the mix contains, then to write them. Rows
are sorted on disk, so that memory use does not grow with the size of the mix.
"""

from __future__ import annotations

import itertools
import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from instructgen.commands.derive import (
    ROWS_AT_ONCE,
    Derived,
    Output,
    Written,
    check_separate,
    common_shape,
    derive,
    readers_of,
    refs_of,
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
from instructgen.schema.arrow import conformed, samples_in
from instructgen.schema.progress import Progress, Watch
from instructgen.schema.records import JsonRecord
from instructgen.schema.sample import Label, Rejected, Rejection, Sample, Shape
from instructgen.schema.seeding import digest
from instructgen.similarity.blocks import Array
from instructgen.similarity.temporary import RowFile
from instructgen.store import (
    SPLITS,
    WHOLE,
    DatasetReader,
    Provenance,
    RejectionCount,
)

# A bucket is held in memory when it is sorted, and each bucket is an open file.
_ROWS_PER_BUCKET, _BYTES_PER_BUCKET, _MOST_BUCKETS = 20_000, 2**26, 256
_ROWS_WAITING = 16_384
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
    check_separate(options.out, options.inputs)
    readers = readers_of(options.inputs)
    shape = common_shape(readers)
    recorded: dict[str, Any] = {
        "mix": mix.model_dump(mode="json"),
        "split": split.model_dump(mode="json"),
        "require": options.require,
        "accept_terms": list(options.accept_terms),
    }
    merging = _Merge(readers, options.out, shape, mix, split, require, watch)
    provenance = Provenance("merge", refs_of(readers), recorded)
    return derive(options.out, provenance, shape, MergeFacts, merging.write, merging.splits)


class _Row(NamedTuple):
    """What the first pass needs of a row; ``stratum`` is its source, category or language."""

    stratum: str
    license: str
    generators: tuple[str, ...]
    question: str
    source: str
    tree: str | None


class _Merge:
    def __init__(
        self,
        readers: Sequence[DatasetReader],
        folder: Path,
        shape: Shape,
        mix: MixOptions,
        split: SplitOptions,
        require: Requirement | None,
        watch: Watch | None,
    ) -> None:
        self.readers, self.folder, self.shape = readers, folder, shape
        self.mix, self.split, self.require, self.watch = mix, split, require, watch
        self._problems: dict[tuple[str, tuple[str, ...]], Rejection | None] = {}
        with_splits = next((r.folder for r in readers if _EVALUATION & r.splits.keys()), None)
        splits_rows = bool(split.validation or split.test)
        if with_splits is not None and splits_rows:
            raise ConfigError(
                f"{with_splits} already has splits, so the table [split] must not define new ones.",
                "Remove the table [split] from the recipe.",
            )
        self.splits = SPLITS if splits_rows or with_splits is not None else WHOLE

    def write(self, output: Output) -> Written[MergeFacts]:
        strata, groups = Strata(), SplitGroups(self.split, self.folder)
        evaluation = array("b")
        for row, (split, light) in enumerate(self._light_rows()):
            allowed = self._license_problem(light.license, light.generators) is None
            strata.add(light.stratum if allowed else None)
            # A row with a rejected license may still be used for evaluation elsewhere.
            evaluates = split in _EVALUATION
            evaluation.append(SPLITS.index(split) if evaluates else 0)
            if len(self.splits) > 1 and (allowed or evaluates):
                groups.add(row, light.question, light.source, light.tree)
        sides = np.array(evaluation)
        held_out = np.zeros(0, np.int64)
        if sides.any():
            held_out = groups.near(np.flatnonzero(sides), len(strata))
            strata.remove(held_out)
        counts = copies(strata, self.mix)
        taken = np.flatnonzero(counts)
        if len(self.splits) > 1:
            if not sides.any():
                sides[taken] = groups.sides(taken, len(strata), self.mix.seed)
            if len(taken) and not (sides[taken] == 0).any():
                raise InputError(
                    "no rows are left for training: all rows are in the splits validation and "
                    "test.",
                    hint="Use smaller fractions in the table [split], or more rows for training.",
                )
            # A second copy of an evaluation row would not add information.
            counts[sides > 0] = np.minimum(counts[sides > 0], 1)
        self._write_rows(output, counts, sides, held_out)
        if len(taken) + output.rejected != len(strata):
            raise RuntimeError(
                f"{len(strata)} rows were read, but {len(taken)} rows in the mix and "
                f"{output.rejected} rejected rows do not add up to that number. This is a bug; "
                "please report it."
            )
        facts = MergeFacts(len(strata), len(taken), self.mix.by, _strata(strata, counts))
        numbers = np.bincount(sides[taken], minlength=len(self.splits)).tolist()
        splits = dict(zip(self.splits, numbers, strict=True))
        return Written(facts, _sections(facts, splits, output.rejections()))

    def _light_rows(self) -> Iterator[tuple[str, _Row]]:
        """Yield the split of each row, and what decides whether the mix contains it."""
        columns = ["source", "license", "generators", self.mix.by]
        if len(self.splits) > 1:
            columns += ["instruction", "input", "origin.group"]
        for split, batch in self._batches("weigh", list(dict.fromkeys(columns))):
            rows = batch.num_rows
            values = {name: batch.column(name).to_pylist() for name in batch.schema.names}
            none: list[Any] = [None] * rows
            for k in range(rows):
                instruction = values.get("instruction", none)[k] or ""
                input_ = values.get("input", none)[k] or ""
                yield (
                    split,
                    _Row(
                        str(values[self.mix.by][k] or "none"),
                        values["license"][k],
                        tuple(values["generators"][k]),
                        f"{instruction}\n\n{input_}" if input_ else instruction,
                        values["source"][k],
                        (values.get("origin", none)[k] or {}).get("group"),
                    ),
                )

    def _batches(self, stage: str, columns: list[str] | None = None) -> Iterator[tuple[str, Any]]:
        """Yield the rows of all inputs as Arrow record batches, each with its split."""
        done = 0
        for reader in self.readers:
            for split in reader.splits:
                for batch in reader.batches(split=split, columns=columns):
                    yield split, batch
                    done += batch.num_rows
                    if self.watch is not None:
                        self.watch(Progress(stage, done))

    def _license_problem(self, license: str, generators: tuple[str, ...]) -> Rejection | None:
        if self.require is None:
            return None
        key = (license, generators)
        if key not in self._problems:
            problem = self.require.objection(license, generators)
            self._problems[key] = None if problem is None else Rejection("license", *problem)
        return self._problems[key]

    def _write_rows(self, output: Output, counts: Array, sides: Array, held_out: Array) -> None:
        """Write the rows of the mix in order, sorted in temporary files, and reject the rest."""
        order = np.repeat(np.arange(len(counts)), counts)
        if self.mix.shuffle:
            shuffled = order.tolist()
            random.Random(digest(self.mix.seed, "shuffle")).shuffle(shuffled)
            order = np.array(shuffled, np.int64)
        # The places of each row in the mix: those of row i begin at starts[i].
        places = np.argsort(order, kind="stable")
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        sizes = [reader.size() for reader in self.readers]
        size, plain = sum(size for size, _ in sizes), all(plain for _, plain in sizes)
        buckets = _Buckets(len(order), size * len(order) // max(len(counts), 1), self.folder)
        late = np.zeros(len(counts), np.bool_)
        late[held_out] = True
        first = 0
        for _, batch in self._batches("read"):
            rows = np.arange(first, first + batch.num_rows)
            at = places[starts[first] : starts[first + batch.num_rows]]
            table = conformed(batch, self.shape, plain=plain)
            buckets.add(at, table.take(order[at] - first))
            others = rows[counts[rows] == 0]
            self._reject(output, batch.take(others - first), late[others])
            first += batch.num_rows
        copy = np.empty(len(order), np.int64)
        copy[places] = np.arange(len(order)) - starts[order[places]] + 1
        done = 0
        for at, table in buckets.sorted():
            waiting: dict[int, list[Sample]] = {}
            for place, sample in zip(at.tolist(), samples_in(table), strict=True):
                if (number := int(copy[place])) > 1:
                    sample = replace(sample, labels=(*sample.labels, Label("copy", str(number))))
                waiting.setdefault(int(sides[order[place]]), []).append(sample)
            for side, samples in waiting.items():
                output.keep(samples, self.splits[side])
            done += len(at)
            if self.watch is not None:
                self.watch(Progress("write", done, len(order)))

    def _reject(self, output: Output, rows: Any, held_out: Array) -> None:
        """Write rejected rows; ``held_out`` states which are similar to evaluation rows."""
        rejected: list[Rejected] = []
        for sample, late in zip(samples_in(rows), held_out.tolist(), strict=True):
            reason = self._license_problem(sample.license, sample.generators)
            reason = reason or (_HELD_OUT if late else _NOT_DRAWN)
            rejected.append(Rejected(sample, reason, "merge", output.rejected + len(rejected)))
        output.reject(rejected)


class _Buckets:
    """Sorts the rows of a mix: rows whose places are near each other are in the same file.

    Args:
        rows: the number of rows in the mix.
        size: the bytes that the rows take in memory.
        folder: the folder of the temporary files.
    """

    def __init__(self, rows: int, size: int, folder: Path) -> None:
        count = max(-(-rows // _ROWS_PER_BUCKET), -(-size // _BYTES_PER_BUCKET), 1)
        self._rows_each = max(-(-rows // min(count, _MOST_BUCKETS)), 1)
        self._files = [RowFile(folder) for _ in range(-(-rows // self._rows_each))]
        self._waiting: list[tuple[Array, Any]] = []
        self._rows = self._bytes = 0

    def add(self, places: Array, rows: Any) -> None:
        """Add the rows of an Arrow table, and the place of each in the mix."""
        self._waiting.append((places, rows))
        self._rows += len(places)
        self._bytes += rows.nbytes
        if self._rows >= _ROWS_WAITING or self._bytes >= _BYTES_PER_BUCKET:
            self._write()

    def _write(self) -> None:
        import pyarrow as pa

        places = np.concatenate([np.zeros(0, np.int64), *(at for at, _ in self._waiting)])
        if len(places):
            order = np.argsort(places // self._rows_each, kind="stable")
            places = places[order]
            table = pa.concat_tables([rows for _, rows in self._waiting]).take(order)
            buckets = places // self._rows_each
            begins = np.flatnonzero(np.diff(buckets, prepend=-1)).tolist()
            for begin, end in itertools.pairwise([*begins, len(places)]):
                rows = table.slice(begin, end - begin)
                self._files[int(buckets[begin])].add(places[begin:end], rows)
        self._waiting, self._rows, self._bytes = [], 0, 0

    def sorted(self) -> Iterator[tuple[Array, Any]]:
        """Yield the places and rows of parts of the mix, in order."""
        import pyarrow as pa

        self._write()
        for file in self._files:
            parts = list(file.tables())
            places = np.concatenate([at for at, _ in parts])
            table = pa.concat_tables([rows for _, rows in parts]).combine_chunks()
            order = np.argsort(places)
            for start in range(0, len(order), ROWS_AT_ONCE):
                some = order[start : start + ROWS_AT_ONCE]
                yield places[some], table.take(some)


def _strata(strata: Strata, counts: Array) -> tuple[Stratum, ...]:
    return tuple(
        Stratum(name, len(rows), int((counts[rows] > 0).sum()), int(counts[rows].sum()))
        for name, rows in sorted(strata.rows().items())
    )


def _sections(
    facts: MergeFacts, splits: Mapping[str, int], rejections: Sequence[RejectionCount]
) -> list[str]:
    strata = [(s.name, f"{s.rows:,}", f"{s.taken:,}", f"{s.with_copies:,}") for s in facts.strata]
    sizes = [(name, f"{rows:,}") for name, rows in splits.items() if rows and name != "part"]
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
