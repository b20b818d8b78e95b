"""The command `dedup`: rejects duplicate rows.

Each rejected row is recorded with the ID of the kept row that it duplicates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from instructgen.commands.derive import (
    Derived,
    Output,
    Written,
    check_separate,
    derive,
    inputs_of,
)
from instructgen.commands.interface import command
from instructgen.commands.options import DedupOptions
from instructgen.errors import InputError
from instructgen.generation.seed_pool import load_seeds
from instructgen.licensing.licenses import check_license
from instructgen.plugins import classes, provenance
from instructgen.reports.cards import rejected_table
from instructgen.schema.progress import Watch
from instructgen.schema.records import JsonRecord
from instructgen.schema.sample import Rejected, Rejection, Sample
from instructgen.similarity import deduplicate
from instructgen.store import SPLITS, WHOLE, Provenance, read_samples, splits_of

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
    samples, splits, invalid = _read(options)
    recorded = options.model_dump(mode="json", exclude={"inputs", "out"})
    # The format of a file is recognized, so any installed format may be used.
    read = classes("sources").values() if any(path.is_file() for path in paths) else ()
    made_from = Provenance("dedup", inputs_of(paths), recorded, plugins=provenance(sources=read))
    # If only some inputs have splits, the rows of the others are training rows.
    parts = WHOLE if set(splits) <= set(WHOLE) else SPLITS

    def write(output: Output) -> Written[DedupFacts]:
        return _write(output, options, samples, splits, parts, invalid, watch)

    return derive(options.out, made_from, samples[0].shape, DedupFacts, write, parts)


def _read(options: DedupOptions) -> tuple[list[Sample], list[str], int]:
    """Return the rows of all inputs, the split of each row, and the number of invalid rows."""
    terms: dict[str, Any] = options.model_dump(include={"license", "language", "on_bad_row"})
    samples: list[Sample] = []
    splits: list[str] = []
    invalid = 0
    for path in options.inputs:
        if path.is_dir():
            samples += read_samples(path)
            splits += [name for name, rows in splits_of(path).items() for _ in range(rows)]
            continue
        rows, bad = load_seeds([path], **terms)
        samples += rows
        splits += WHOLE * len(rows)
        invalid += len(bad)
    if not samples:
        raise InputError("the inputs contain no rows.", hint="Check the paths.")
    if len({sample.shape for sample in samples}) > 1:
        raise InputError(
            "the inputs mix instruction rows and preference rows.",
            hint="Pass only instruction rows, or only preference rows.",
        )
    return samples, splits, invalid


def _write(
    output: Output,
    options: DedupOptions,
    samples: list[Sample],
    splits: list[str],
    parts: tuple[str, ...],
    invalid: int,
    watch: Watch | None,
) -> Written[DedupFacts]:
    result = deduplicate(
        samples,
        options.how,
        priority=options.priority,
        threshold=options.threshold,
        compared=options.compared,
        sources=options.sources,
        floor=_FLOOR,
        frame_quota=options.frame_quota,
        model=options.embedding_model,
        same_if_equal=options.same_if_equal,
        watch=watch,
    )
    rows: dict[str, list[Sample]] = {part: [] for part in parts}
    duplicates = {r.row for r in result.rejected}
    for row, (sample, split) in enumerate(zip(samples, splits, strict=True)):
        if row not in duplicates:
            rows[split if split in parts else parts[0]].append(sample)
    for part, kept in rows.items():
        output.keep(kept, part)
    output.reject(
        [
            Rejected(
                r.sample,
                Rejection("dedup", r.reason, r.detail, r.score, r.partner.id),
                r.stage,
                number,
            )
            for number, r in enumerate(result.rejected)
        ]
    )
    facts = DedupFacts(
        largest_component=result.largest_component,
        components_would_reject=result.components_would_reject,
        uncompared=result.uncompared,
        invalid=invalid,
    )
    return Written(facts, _sections(facts, output), ", without duplicates")


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
