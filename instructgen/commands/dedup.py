"""The command dedup: datasets in, one without duplicates out, every removed row explained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructgen.card import derived_card, rejected_table
from instructgen.commands.derived import Funnel, check_apart, inputs_of, name_of
from instructgen.errors import InputError
from instructgen.licences import check_licence
from instructgen.sample import Rejected, Rejection, Sample
from instructgen.seeds import load_seeds
from instructgen.similarity import deduplicate
from instructgen.similarity.dedup import Compared, Thresholds
from instructgen.similarity.encoders import MINILM
from instructgen.similarity.near_pairs import Watch
from instructgen.sources import OnBadRow
from instructgen.store import (
    SPLITS,
    WHOLE,
    is_whole,
    making,
    read_manifest,
    read_samples,
    splits_of,
    writing,
)

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
    bad_rows = 0
    check_apart(folder, paths)
    samples: list[Sample] = []
    splits: list[str] = []
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
    given = inputs_of(paths)
    made = {
        "command": "dedup",
        "inputs": given,
        "options": options,
    }
    with making(folder, made):
        if not is_whole(folder):
            _write(folder, samples, splits, options, made, bad_rows, watch)
        return _result(folder)


def _write(
    folder: Path,
    samples: list[Sample],
    splits: list[str],
    options: dict[str, Any],
    made: dict[str, Any],
    bad_rows: int,
    watch: Watch | None,
) -> None:
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
    rejected = [
        Rejected(
            r.sample,
            Rejection("dedup", r.reason, r.detail, r.score, r.partner.id),
            r.stage,
            number,
        )
        for number, r in enumerate(result.removed)
    ]
    counted = Funnel()
    counted.add(rejected)
    funnel = counted.rows()
    chain = (
        f"Connected components would have removed {result.components_would_remove:,} rows, "
        f"the largest of {result.largest_component:,}."
    )
    names = [each["name"] for each in made["inputs"]]
    sections = [
        "## Removed",
        "",
        "Every row in `rejected/` names the kept row that it was removed for, with the "
        f"score, which is above the threshold. {chain}",
        "",
        *rejected_table(funnel),
    ]
    # Of several inputs some may be split: what is not is there to be trained on.
    parts = WHOLE if set(splits) <= set(WHOLE) else SPLITS
    rows: dict[str, list[Sample]] = {part: [] for part in parts}
    removed = {r.row for r in result.removed}
    for row, (sample, split) in enumerate(zip(samples, splits, strict=True)):
        if row not in removed:
            rows[split if split in parts else parts[0]].append(sample)
    with writing(folder, samples[0].shape, parts) as writer:
        for part, kept in rows.items():
            writer.keep(kept, part)
        writer.reject(rejected)
        writer.finish(
            lambda contents: derived_card(
                name_of(folder), contents, names, ", without duplicates", sections, made
            ),
            {
                "funnel": funnel,
                "largest_component": result.largest_component,
                "components_would_remove": result.components_would_remove,
                "unread": result.unread,
                "bad_rows": bad_rows,
            },
        )


def _result(folder: Path) -> DedupResult:
    manifest = read_manifest(folder) or {}
    return DedupResult(
        out=folder,
        rows=manifest["rows"],
        removed=manifest["rejected"],
        funnel=manifest["funnel"],
        largest_component=manifest["largest_component"],
        components_would_remove=manifest["components_would_remove"],
        unread=manifest["unread"],
        bad_rows=manifest["bad_rows"],
        parts=tuple(str(folder / file["path"]) for file in manifest["files"]),
        card=str(folder / "README.md"),
    )
