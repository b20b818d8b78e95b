"""The command dedup: datasets in, one without duplicates out, every removed row explained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructgen.commands.derive import Derived, Output, Written, check_apart, derive, inputs_of
from instructgen.errors import InputError
from instructgen.formats import OnBadRow
from instructgen.generation.seed_pool import load_seeds
from instructgen.licensing.licenses import check_licence
from instructgen.plugins import classes, provenance
from instructgen.reports.cards import rejected_table
from instructgen.schema.progress import Watch
from instructgen.schema.sample import Rejected, Rejection, Sample
from instructgen.similarity import deduplicate
from instructgen.similarity.dedup import Compared, Thresholds
from instructgen.similarity.encoders import MINILM
from instructgen.store import SPLITS, WHOLE, read_samples, splits_of

# Pairs are looked for above the thresholds alone: nobody asks again at another.
_NO_LOWER = 0.999


@dataclass(frozen=True, slots=True)
class DedupResult:
    """What a deduplication came to.

    ``funnel`` counts the removed rows by stage and reason. ``largest_component``
    and ``components_would_remove`` say what connected components would have done;
    ``unread`` texts are in languages that the embedding model cannot read.
    """

    out: Path
    rows: int
    removed: int
    funnel: list[dict[str, Any]]
    largest_component: int
    components_would_remove: int
    unread: int
    bad_rows: int
    parts: tuple[str, ...]
    card: str
    unchanged: bool


def dedup(
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    how: Sequence[str] = ("exact", "minhash", "semantic"),
    priority: Sequence[str] = ("source", "licence", "quality", "length"),
    threshold: Thresholds | None = None,
    compared: Compared = "row",
    sources: Sequence[str] = (),
    frame_quota: int = 3,
    embedding_model: str = MINILM,
    license: str = "",
    language: str = "",
    on_bad_row: OnBadRow = "fail",
    watch: Watch | None = None,
) -> DedupResult:
    """Write the rows of datasets without those that `deduplicate` removes.

    A dataset that is split stays so; rows of inputs that are not are trained on.

    Args:
        inputs: dataset folders, or files as seeds may be; the first come first.
        out: a folder for the dataset. One made from the same is left as it is.
        how: see `instructgen.similarity.deduplicate`, as for the following.
        priority: criteria of which copy is kept.
        threshold: highest similarity kept.
        compared: ``row``, ``prompt`` or ``instruction``.
        sources: the most trusted first.
        frame_quota: rows kept of a frame.
        embedding_model: ``minilm``, a folder, or a Hub name.
        license: SPDX licence of rows that name none.
        language: ISO 639 language of rows that name none.
        on_bad_row: ``fail`` or ``reject``.
        watch: called with progress.

    Raises:
        InputError: a file is bad, or holds no rows.
        ConfigError: an option is bad, or packages are missing.
        RunError: an input is no complete dataset, or ``out`` holds something else.
        StorageError: the disk refuses.
    """
    paths = [Path(p) for p in ([inputs] if isinstance(inputs, str | Path) else inputs)]
    folder = Path(out)
    if license:
        check_licence(license)
    check_apart(folder, paths)
    samples, splits, bad_rows = _read(paths, license, language, on_bad_row)
    options: dict[str, Any] = {
        "how": list(how),
        "priority": list(priority),
        "threshold": threshold,
        "compared": compared,
        "sources": list(sources),
        "frame_quota": frame_quota,
        "embedding_model": embedding_model,
        "license": license,
        "language": language,
        "on_bad_row": on_bad_row,
    }
    made = {"command": "dedup", "inputs": inputs_of(paths), "options": options}
    if any(path.is_file() for path in paths):
        # A file's format need not be named: any that is installed may be the one.
        made |= provenance(sources=classes("sources").values())
    # Of several inputs some may be split: what is not is there to be trained on.
    parts = WHOLE if set(splits) <= set(WHOLE) else SPLITS
    done = derive(
        folder,
        made,
        samples[0].shape,
        lambda output: _write(output, samples, splits, parts, options, bad_rows, watch),
        parts,
    )
    return _result(done)


def _result(done: Derived) -> DedupResult:
    known = ("largest_component", "components_would_remove", "unread", "bad_rows")
    return DedupResult(
        out=done.out,
        rows=done.rows,
        removed=done.rejected,
        funnel=done.funnel,
        parts=done.parts,
        card=done.card,
        unchanged=done.unchanged,
        **{name: done.facts[name] for name in known},
    )


def _read(
    paths: Sequence[Path], license: str, language: str, on_bad_row: OnBadRow
) -> tuple[list[Sample], list[str], int]:
    """The rows of all inputs, the split of each, and how many rows were bad."""
    samples: list[Sample] = []
    splits: list[str] = []
    bad_rows = 0
    for path in paths:
        if path.is_dir():
            samples += read_samples(path)
            splits += [name for name, rows in splits_of(path).items() for _ in range(rows)]
            continue
        found, bad = load_seeds([path], license=license, language=language, on_bad_row=on_bad_row)
        samples += found
        splits += WHOLE * len(found)
        bad_rows += len(bad)
    if not samples:
        raise InputError("the inputs hold no rows.", hint="Check the paths.")
    if len({sample.shape for sample in samples}) > 1:
        raise InputError(
            "the inputs hold instructions and preferences.", hint="Give one kind at a time."
        )
    return samples, splits, bad_rows


def _write(
    output: Output,
    samples: list[Sample],
    splits: list[str],
    parts: tuple[str, ...],
    options: dict[str, Any],
    bad_rows: int,
    watch: Watch | None,
) -> Written:
    result = deduplicate(
        samples,
        options["how"],
        priority=options["priority"],
        threshold=options["threshold"],
        compared=options["compared"],
        sources=options["sources"],
        floor=_NO_LOWER,
        frame_quota=options["frame_quota"],
        model=options["embedding_model"],
        watch=watch,
    )
    rows: dict[str, list[Sample]] = {part: [] for part in parts}
    removed = {r.row for r in result.removed}
    for row, (sample, split) in enumerate(zip(samples, splits, strict=True)):
        if row not in removed:
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
            for number, r in enumerate(result.removed)
        ]
    )
    sections = [
        "## Removed",
        "",
        "Every row in `rejected/` names the kept row that it was removed for, with the "
        "score, which is above the threshold. "
        f"Connected components would have removed {result.components_would_remove:,} rows, "
        f"the largest of {result.largest_component:,}.",
        "",
        *rejected_table(output.funnel()),
    ]
    facts = {
        "largest_component": result.largest_component,
        "components_would_remove": result.components_would_remove,
        "unread": result.unread,
        "bad_rows": bad_rows,
    }
    return Written(facts, sections, ", without duplicates")
