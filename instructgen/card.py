"""The dataset card: README.md with the Hub's front matter, made from what made the data.

No dates and no host names, so that the same data always has the same card.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from instructgen.licences import terms

if TYPE_CHECKING:
    from instructgen.loop import Loop, Stop
    from instructgen.sample import Sample
    from instructgen.store import Run

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def dataset_card(run: Run, loop: Loop, funnel: dict[str, Any], stopped: Stop) -> str:
    """The card of a generated dataset, as Markdown."""
    config = run.info["config"]
    title = run.folder.name
    return "\n".join(
        [
            *_front_matter(title, loop.rows, ("synthetic",)),
            f"# {title}",
            "",
            f"{len(loop.rows):,} rows of instruction data, written by the model "
            f"`{config['engine']['model'] or config['engine']['name']}` with the method "
            f"`{config['method']['name']}` from {len(loop.pool.seeds):,} seed tasks. "
            "Made with instructgen. No person has read the rows.",
            "",
            "## Licences",
            "",
            "A row has the licences of the demonstrations it was written from. "
            "The terms of the model that wrote it apply beside them.",
            "",
            *_licences(loop.rows),
            *_languages(loop.rows),
            "## Seeds",
            "",
            *_sources(loop.pool.seeds, "tasks"),
            f"SHA-256 of the seeds: `{run.info['seeds']['sha256']}`",
            "",
            "## Funnel",
            "",
            f"{funnel['requests']:,} requests gave {funnel['candidates']:,} candidates: "
            f"{funnel['kept_instructions']:,} instructions entered the pool and "
            f"{funnel['kept_rows']:,} rows the dataset. The run ended for the reason "
            f"`{stopped.reason}`: {stopped.detail}.",
            "",
            *_rejected(funnel["rejected"]),
            "",
            f"Of the instructions in the pool {funnel['not_expanded']:,} never had rows asked for. "
            "All these are in `rejected/`, each with its reason, and with score and nearest "
            "row where the filter compares.",
            "",
            "## How to make it again",
            "",
            f"Run `{run.id}`, seed {config['generate']['seed']}. "
            "`instructgen rebuild` makes the same bytes from `journal.jsonl`.",
            "",
            "```json",
            json.dumps({**config, "form": run.info["form"]}, indent=1, ensure_ascii=False),
            "```",
            "",
        ]
    )


def deduplicated_card(
    title: str,
    rows: Sequence[Sample],
    inputs: Sequence[str],
    removed: Sequence[Mapping[str, Any]],
    chain: str,
    made: Mapping[str, Any],
) -> str:
    """The card of a dataset that `instructgen dedup` made.

    Args:
        title: its name.
        rows: what was kept.
        inputs: what it was made from.
        removed: ``stage``, ``filter``, ``reason`` and ``count``.
        chain: a sentence on what connected components would have done.
        made: inputs and options, to make it again.
    """
    made_up = [s for s in rows if s.origin.method != "human"]
    models = sorted({f"`{s.origin.model}`" for s in made_up if s.origin.model})
    return "\n".join(
        [
            *_front_matter(title, rows, ("synthetic",) if made_up else ()),
            f"# {title}",
            "",
            f"{len(rows):,} rows of {' and '.join(inputs)}, without duplicates. "
            "Made with instructgen.",
            "",
            *(
                [
                    f"{len(made_up):,} of them were written by {' and '.join(models)}; "
                    "no person has read those.",
                    "",
                ]
                if made_up
                else []
            ),
            "## Licences",
            "",
            *(
                ["The terms of the models that wrote rows apply beside their licences.", ""]
                if made_up
                else []
            ),
            *_licences(rows),
            *_languages(rows),
            "## Sources",
            "",
            *_sources(rows, "rows"),
            "## Removed",
            "",
            "Every row in `rejected/` names the kept row that it was removed for, with the "
            f"score, which is above the threshold. {chain}",
            "",
            *_rejected(removed),
            "",
            "## How to make it again",
            "",
            "```json",
            json.dumps(made, indent=1, ensure_ascii=False),
            "```",
            "",
        ]
    )


def _licences(rows: Sequence[Sample]) -> list[str]:
    counts = Counter(s.license for s in rows)
    head = ("licence", "rows", "attribution", "share alike", "commercial use")
    lines = [(name, f"{n:,}", *_asked(name)) for name, n in sorted(counts.items())]
    return [*_table(head, lines), ""]


def _languages(rows: Sequence[Sample]) -> list[str]:
    counts = Counter(s.language for s in rows)
    lines = [(k, f"{n:,}") for k, n in sorted(counts.items())]
    return ["## Languages", "", *_table(("language", "rows"), lines), ""]


def _sources(samples: Sequence[Sample], counted: str) -> list[str]:
    counts = Counter((s.source, s.license, s.language) for s in samples)
    lines = [(*key, f"{n:,}") for key, n in sorted(counts.items())]
    return [*_table(("source", "licence", "language", counted), lines), ""]


def _rejected(counts: Sequence[Mapping[str, Any]]) -> list[str]:
    return _table(
        ("stage", "filter", "reason", "rejected"),
        [(r["stage"], r["filter"], r["reason"], f"{r['count']:,}") for r in counts],
    )


def _front_matter(title: str, rows: Sequence[Sample], tags: Sequence[str] = ()) -> Iterable[str]:
    licences, languages = {s.license for s in rows}, {s.language for s in rows}
    size = next((name for most, name in _SIZES if len(rows) < most), "n>1M")
    names = sorted(licences)
    yield "---"
    if len(names) == 1 and " " not in names[0]:
        yield f"license: {names[0].lower()}"
    else:
        yield "license: other"
        yield f"license_name: {json.dumps(' and '.join(names) or 'none')}"
    known = [code for code in sorted(languages) if code != "und"]
    if known:
        yield "language:"
        # Quoted: the code for Norwegian is a YAML boolean.
        yield from (f"- {json.dumps(code)}" for code in known)
    yield f"pretty_name: {json.dumps(title, ensure_ascii=False)}"
    yield from ("task_categories:", "- text-generation", "size_categories:", f"- {size}")
    yield "tags:"
    yield from (f"- {tag}" for tag in (*tags, "instruction-tuning", "instructgen"))
    yield "configs:"
    for name, folder in (("default", "data"), ("rejected", "rejected")):
        yield f"- config_name: {name}"
        yield "  data_files:"
        yield "  - split: train"
        yield f"    path: {folder}/part-*.parquet"
    yield "---"
    yield ""


def _asked(licence: str) -> tuple[str, str, str]:
    known = terms(licence)
    if known is None:
        return ("see its text",) * 3
    yes_no = {True: "yes", False: "no"}
    return yes_no[known.attribution], yes_no[known.share_alike], yes_no[known.commercial_use]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [[str(c).replace("|", "\\|").replace("\n", " ") for c in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return [f"| {' | '.join(line)} |" for line in lines]
