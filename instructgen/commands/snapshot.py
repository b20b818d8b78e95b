"""The command `snapshot`: writes the rows that a run has so far, also while it is in progress."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from instructgen.commands.derive import name_of
from instructgen.commands.generate import RunFacts, facts_of, rejections_of, reopen, replayed
from instructgen.commands.interface import command
from instructgen.commands.options import SnapshotOptions
from instructgen.reports.cards import generated_card
from instructgen.schema.progress import Watch
from instructgen.store import (
    InputRef,
    Provenance,
    RejectionCount,
    Run,
    output_folder,
    write_dataset,
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A dataset with the rows that a run had when the command `snapshot` read its journal."""

    out: Path
    rows: int
    rejected: int
    facts: RunFacts
    rejections: tuple[RejectionCount, ...]
    parts: tuple[str, ...]
    card: str


@command(SnapshotOptions, "run", "out")
def snapshot(options: SnapshotOptions, watch: Watch | None = None) -> Snapshot:
    """Write a dataset with the rows that a run has so far; the run may be in progress.

    The rows are in draft order, as in the dataset of the finished run. A later call with the same
    folders replaces the dataset.

    Raises:
        RunError: the folder is not a run, or the output folder contains other files.
        DamagedFileError: the journal is damaged.
        StorageError: the files cannot be written.
    """
    out = options.out or options.run / "snapshot"
    with Run.view(options.run) as run:
        loop = replayed(run, reopen(run), watch).work
        provenance = Provenance("snapshot", (InputRef(name_of(run.folder), run.id),), {})
    ended = loop.finish()
    facts, rejections = facts_of(loop, ended), rejections_of(ended)
    with output_folder(out, provenance):
        parts = write_dataset(
            out,
            ended.rows,
            ended.rejected,
            lambda contents: generated_card(run, loop, contents, facts, rejections),
            rejections,
            facts.to_dict(),
        )
    return Snapshot(
        out=out,
        rows=len(ended.rows),
        rejected=len(ended.rejected),
        facts=facts,
        rejections=tuple(rejections),
        parts=tuple(str(out / p.path) for p in parts),
        card=str(out / "README.md"),
    )
