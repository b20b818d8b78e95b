"""The command `dedup`: rejects duplicate rows.

Each rejected row is recorded with the ID of the kept row that it duplicates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from instructgen.commands.derive import (
    ROWS_AT_ONCE,
    Derived,
    Output,
    Written,
    check_separate,
    derive,
    inputs_of,
    refs_of,
)
from instructgen.commands.interface import command
from instructgen.commands.options import DedupOptions
from instructgen.distributed.blocks import RayCluster, numbered
from instructgen.distributed.cluster import connected
from instructgen.errors import ConfigError, InputError
from instructgen.generation.seed_pool import load_seeds
from instructgen.licensing.licenses import check_license
from instructgen.plugins import classes, provenance
from instructgen.reports.cards import rejected_table
from instructgen.schema.progress import Progress, Watch
from instructgen.schema.records import JsonRecord
from instructgen.schema.sample import CHARACTERS_AT_ONCE, Rejected, Rejection, Sample
from instructgen.similarity import Duplicates, find_duplicates
from instructgen.store import SPLITS, WHOLE, DatasetReader, InputRef, Provenance

# Pairs below the thresholds are not searched for, as no later call uses a lower threshold.
_FLOOR = 0.999


@dataclass(frozen=True, slots=True)
class DedupFacts(JsonRecord):
    """Facts about a deduplicated dataset, for its manifest.

    Pairs of duplicates form a graph. ``largest_component`` is the size of its largest connected
    component, and ``components_would_reject`` the number of rows that would be rejected if one
    row per component were kept. ``uncompared`` is the number of texts that were not compared by
    meaning, because the embedding model does not support their language. ``invalid`` is the number
    of rows that could not be read.
    """

    largest_component: int
    components_would_reject: int
    uncompared: int
    invalid: int


@command(DedupOptions, "inputs", "out")
def dedup(options: DedupOptions, watch: Watch | None = None) -> Derived[DedupFacts]:
    """Combine datasets into one, and reject duplicates (see `instructgen.similarity.deduplicate`).

    Each row keeps the split that it has in its input: train, validation or test. If only some
    inputs have splits, the rows of the other inputs become training rows. If duplicates are equal
    by all criteria in ``priority``, the first one in the order of the inputs is kept.

    Raises:
        InputError: a file is invalid, or contains no rows.
        ConfigError: an option is invalid, or a required package is missing.
        RunError: an input is not a complete dataset, or the output folder contains files
            that the same command, inputs and options did not write.
        StorageError: the files cannot be written.
    """
    paths = options.inputs
    if options.license:
        check_license(options.license)
    check_separate(options.out, paths)
    rows = _Inputs(options)
    recorded = options.model_dump(mode="json", exclude={"inputs", "out", "ray"})
    # The format of a file is recognized, so any installed format may be used.
    read = classes("sources").values() if any(path.is_file() for path in paths) else ()
    made_from = Provenance("dedup", rows.refs(), recorded, plugins=provenance(sources=read))

    def write(output: Output) -> Written[DedupFacts]:
        return _write(output, options, rows, watch)

    return derive(options.out, made_from, rows.shape, DedupFacts, write, rows.splits)


class _Inputs:
    """The rows of all inputs, which can be read several times and are not held in memory.

    ``shape`` is the kind of rows, and ``splits`` are the splits of the output. ``invalid`` is the
    number of rows of files that could not be read, when all rows have been read once.
    """

    def __init__(self, options: DedupOptions) -> None:
        self._paths = options.inputs
        terms: dict[str, Any] = options.model_dump(include={"license", "language", "on_bad_row"})
        self._files = {p: load_seeds([p], **terms) for p in self._paths if not p.is_dir()}
        self.invalid = sum(len(bad) for _, bad in self._files.values())
        self._readers = {path: DatasetReader(path) for path in self._paths if path.is_dir()}
        shapes = {reader.shape for reader in self._readers.values()}
        shapes |= {sample.shape for rows, _ in self._files.values() for sample in rows}
        counts = [reader.splits for reader in self._readers.values()]
        if not any(rows for rows, _ in self._files.values()) and not any(
            sum(count.values()) for count in counts
        ):
            raise InputError("the inputs contain no rows.", hint="Check the paths.")
        if len(shapes) > 1:
            raise InputError(
                f"the inputs mix rows of different kinds: {' and '.join(sorted(shapes))}.",
                hint="Pass only inputs with one kind of rows.",
            )
        (self.shape,) = shapes
        # If only some inputs have splits, the rows of the others are training rows.
        split = {name for count in counts for name in count} - set(WHOLE)
        self.splits = SPLITS if split else WHOLE

    def __iter__(self) -> Iterator[tuple[str, Sample]]:
        """Yield the split and the sample of each row."""
        for path in self._paths:
            if path in self._files:
                yield from ((self.splits[0], sample) for sample in self._files[path][0])
                continue
            reader = self._readers[path]
            for split in reader.splits:
                here = split if split in self.splits else self.splits[0]
                yield from ((here, sample) for sample in reader.samples(split=split))

    def readers(self) -> list[DatasetReader]:
        """Return the readers of the inputs.

        Raises:
            ConfigError: an input is a file.
        """
        if self._files:
            raise ConfigError(
                f"--ray: {next(iter(self._files))} is a file.", "First run: instructgen import."
            )
        return list(self._readers.values())

    def refs(self) -> tuple[InputRef, ...]:
        """Return the name and digest of each input."""
        readers = self._readers
        return tuple(
            refs_of([readers[path]])[0] if path in readers else inputs_of([path])[0]
            for path in self._paths
        )


def _write(
    output: Output, options: DedupOptions, rows: _Inputs, watch: Watch | None
) -> Written[DedupFacts]:
    found = _found(options, rows, watch)
    duplicates = found.rejected()
    next_one = next(duplicates, None)
    kept: dict[str, list[Sample]] = {split: [] for split in rows.splits}
    rejected: list[Rejected] = []

    def flush() -> None:
        for split, samples in kept.items():
            output.keep(samples, split)
            samples.clear()
        output.reject(rejected)
        rejected.clear()

    waiting = characters = 0
    for row, (split, sample) in enumerate(rows):
        if next_one is not None and next_one.row == row:
            d, number = next_one, output.rejected + len(rejected)
            rejection = Rejection("dedup", d.reason, d.detail, d.score, d.partner_id)
            rejected.append(Rejected(sample, rejection, d.stage, number))
            next_one = next(duplicates, None)
        else:
            kept[split].append(sample)
        waiting, characters = waiting + 1, characters + sample.characters
        if waiting >= ROWS_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            flush()
            waiting = characters = 0
            if watch is not None:
                watch(Progress("write", row + 1, found.rows))
    flush()
    facts = DedupFacts(
        largest_component=found.largest_component,
        components_would_reject=found.components_would_reject,
        uncompared=found.uncompared,
        invalid=rows.invalid,
    )
    return Written(facts, _sections(facts, output), ", without duplicates")


def _found(options: DedupOptions, rows: _Inputs, watch: Watch | None) -> Duplicates:
    arguments: dict[str, Any] = {
        "priority": options.priority,
        "threshold": options.threshold,
        "compared": options.compared,
        "sources": options.sources,
        "floor": _FLOOR,
        "frame_quota": options.frame_quota,
        "model": options.embedding_model,
        "same_if_equal": options.same_if_equal,
        "watch": watch,
    }
    if options.ray is None:
        samples = (sample for _, sample in rows)
        return find_duplicates(samples, options.how, folder=options.out, **arguments)
    from instructgen.distributed import duplicates

    with connected(options.ray, options.out) as ray:
        cluster = RayCluster(ray)
        dataset = cluster.mapped(cluster.blocks(rows.readers()), numbered)
        return duplicates.find_duplicates(cluster, dataset, options.how, **arguments)


def _sections(facts: DedupFacts, output: Output) -> list[str]:
    return [
        "## Duplicates",
        "",
        "For every row in `rejected/`, the ID of the kept row that it duplicates and the "
        "similarity of the two rows are recorded. If duplicates of duplicates were rejected too, "
        f"{facts.components_would_reject:,} rows would be rejected; the largest group of such rows "
        f"has {facts.largest_component:,} rows.",
        "",
        *rejected_table(output.rejections()),
    ]
