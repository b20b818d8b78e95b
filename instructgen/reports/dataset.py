"""The chapter about a dataset, and about the run that made it where one did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from instructgen.licensing.licenses import obligations
from instructgen.reports.charts import Series, bars, histogram, lines
from instructgen.reports.columns import (
    FIELDS,
    REJECTED,
    WORD_EDGES,
    Columns,
    Counts,
    Rejections,
    read_columns,
    read_rejections,
    word_classes,
)
from instructgen.reports.examples import BORDERLINE, borderline, some_rows, thresholds_of
from instructgen.reports.html import Markup, element
from instructgen.reports.page import (
    Chapter,
    card,
    figure,
    figures,
    listed,
    table,
    tiles,
)
from instructgen.reports.variety import embedding_map, nearest_seed, variety
from instructgen.schema.sample import Sample
from instructgen.store import is_run, read_info, read_made, read_manifest, read_sessions

# Rows that the costly figures are drawn from, evenly over the whole dataset.
_DRAWN = 20_000
_SOURCES, _REASONS, _BINS = 7, 16, 40


@dataclass(frozen=True, slots=True)
class Beside:
    """What a dataset is shown beside: seeds, and rows written by people; and a price.

    ``reference`` counts words of people's rows, as `read_words`; ``price`` is of a million
    tokens of prompts and of completions.
    """

    seeds: Sequence[Sample] = ()
    reference: Mapping[str, Counts] = field(default_factory=dict)
    reference_name: str = ""
    price: tuple[float, float] | None = None


def dataset_chapter(folder: Path, name: str, beside: Beside, seeds: Sequence[Sample]) -> Chapter:
    """Funnel, likeness to the seeds, variety, lengths, terms, a map and rows.

    Args:
        folder: a complete dataset.
        name: its name.
        beside: what it is shown beside.
        seeds: of the run that made it, if one did.
    """
    manifest = dict(read_manifest(folder) or {})
    columns = read_columns(folder, _DRAWN)
    thresholds = thresholds_of(folder)
    rejections = read_rejections(folder, thresholds, BORDERLINE)
    seeds = beside.seeds or seeds
    nodes = [
        _tiles(manifest, columns, rejections),
        figures(
            _funnel(columns, rejections),
            _over_the_run(columns, rejections) if is_run(folder) else None,
            nearest_seed(columns, seeds),
            variety(columns),
            *_lengths(columns, beside, seeds),
            *(_share(columns, key) for key in ("language", "category", "source")),
            _terms(manifest),
            embedding_map(columns),
            borderline(folder, manifest, thresholds, rejections, columns, seeds),
            _spent(folder, manifest, beside.price),
            some_rows(columns),
        ),
    ]
    return Chapter(name, _about(folder), nodes)


def _about(folder: Path) -> str:
    if is_run(folder):
        config = read_info(folder)["config"]
        model = config["engine"]["model"] or config["engine"]["name"]
        return f"A run of {config['method']['name']} with {model}."
    made = read_made(folder)
    inputs = ", ".join(str(each["name"]) for each in made["inputs"])
    return f"Made by {made['command']} of {inputs}."


def _tiles(manifest: Mapping[str, Any], columns: Columns, rejections: Rejections) -> Markup:
    # What the loop itself left, for want of a turn or of room, was not found wanting.
    left = sum(n for (_, name, _, _), n in rejections.by.items() if name == "loop")
    rejected = sum(rejections.by.values()) - left
    whole = columns.rows + rejected
    facts = [
        ("rows", f"{columns.rows:,}"),
        ("rejected", f"{rejected:,}"),
        ("kept", f"{columns.rows / whole:.0%}" if whole else "none"),
        *([("instructions that had no turn", f"{left:,}")] if left else []),
        ("sources", f"{len(columns.counted('source')):,}"),
        ("languages", f"{len(columns.counted('language')):,}"),
        ("licences", f"{len(manifest['licenses']):,}"),
    ]
    return tiles(facts)


# -- what was kept, and what not ------------------------------------------------------------


def _funnel(columns: Columns, rejections: Rejections) -> Markup:
    kept = columns.counted("source")
    rejected: dict[str, Counter[str]] = {}
    whole: Counter[str] = Counter(kept)
    for (stage, name, reason, source), count in rejections.by.items():
        rejected.setdefault(f"{stage} · {name}: {reason}", Counter())[source] += count
        whole[source] += count
    reasons = sorted(rejected, key=lambda r: (-rejected[r].total(), r))
    sources = [s for s, _ in sorted(whole.items(), key=lambda item: (-item[1], item[0]))]
    shown, others = sources[:_SOURCES], sources[_SOURCES:]
    counts = {"kept": Counter(kept), **{r: rejected[r] for r in reasons[:_REASONS]}}
    series = [Series(s, [c[s] for c in counts.values()]) for s in shown]
    if others:
        series.append(Series("others", [sum(c[s] for s in others) for c in counts.values()]))
    labels = [r.rsplit(" · ", 1)[-1] for r in counts]
    counts |= {r: rejected[r] for r in reasons[_REASONS:]}
    numbers = [
        (label, *(f"{c[s]:,}" for s in sources[:30]), f"{c.total():,}")
        for label, c in counts.items()
    ]
    return figure(
        "Funnel by filter and source",
        bars(labels, series),
        ("stage · filter: reason", *sources[:30], "all"),
        numbers,
        "The first filter that objects decides.",
        wide=True,
    )


def _over_the_run(columns: Columns, rejections: Rejections) -> Markup | None:
    kept, others = columns.batches, rejections.batches
    numbers = sorted(b for b in kept.keys() | others.keys() if b >= 0)
    if len(numbers) < 3:
        return None
    edges = np.linspace(0, numbers[-1] + 1, min(_BINS, numbers[-1] + 1) + 1).round().astype(int)
    places = np.searchsorted(edges, numbers, side="right") - 1
    accepted = np.bincount(places, [kept[b] for b in numbers], len(edges) - 1)
    refused = np.bincount(places, [others[b] for b in numbers], len(edges) - 1)
    both = accepted + refused
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = np.where(both > 0, accepted / both, np.nan)
    rows = np.cumsum(accepted)
    ends = [int(e) for e in edges[1:]]
    return figure(
        "Over the run",
        element(
            "div",
            lines(ends, [Series("accepted rows", [float(v) for v in rows])], "batches"),
            lines(ends, [Series("acceptance", [float(v) for v in rate])], "batches", share=True),
        ),
        ("batches", "accepted rows", "accepted here", "rejected here", "acceptance"),
        [
            (f"{e:,}", f"{r:,.0f}", f"{a:,.0f}", f"{n:,.0f}", f"{p:.0%}" if p == p else "none")
            for e, r, a, n, p in zip(ends, rows, accepted, refused, rate, strict=True)
        ],
        "Above, rows accepted so far; below, the share of the candidates that became rows.",
    )


# -- what it is like ------------------------------------------------------------------------


def _lengths(columns: Columns, beside: Beside, seeds: Sequence[Sample]) -> list[Markup]:
    import pyarrow as pa

    made = []
    for name in FIELDS:
        counted = {"rows": columns.words[name]}
        if name == "output" and REJECTED in columns.words:
            counted = {"chosen": columns.words[name], REJECTED: columns.words[REJECTED]}
        if seeds:
            counted["seeds"] = word_classes(pa.array([getattr(s, name) for s in seeds]))
        if beside.reference:
            counted[f"reference {beside.reference_name}"] = beside.reference[name]
        if not any(c[1:].sum() for c in counted.values()):
            continue
        edges = [*WORD_EDGES, 2 * WORD_EDGES[-1]]
        last = max(int(np.flatnonzero(c).max(initial=0)) for c in counted.values()) + 1
        series = [Series(label, [int(n) for n in c[:last]]) for label, c in counted.items()]
        numbers = [
            (
                _from_to(edges[i], None if i == len(WORD_EDGES) - 1 else edges[i + 1] - 1),
                *(f"{s.values[i]:,}" for s in series),
            )
            for i in range(last)
        ]
        made.append(
            figure(
                f"Words of the {name}",
                histogram(edges[: last + 1], series, "words"),
                ("words", *(s.name for s in series)),
                numbers,
            )
        )
    return made


def _from_to(first: int, last: int | None) -> str:
    if last is None:
        return f"{first:,} or more"
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def _share(columns: Columns, key: str) -> Markup | None:
    counts = columns.counted(key)
    if len(counts) < 2 and key != "source":
        return None
    shown = list(counts.items())[:_REASONS]
    title = {"language": "Languages", "category": "Categories", "source": "Sources"}[key]
    return figure(
        title,
        bars([name for name, _ in shown], [Series("", [n for _, n in shown])]),
        (key, "rows", "share"),
        [(name, f"{n:,}", f"{n / columns.rows:.1%}") for name, n in list(counts.items())[:200]],
    )


def _terms(manifest: Mapping[str, Any]) -> Markup:
    terms = manifest["terms"]
    licenses = sorted(terms["licenses"].items(), key=lambda item: (-item[1], item[0]))
    asked = obligations(terms["licenses"], terms["generators"], terms["attributions"])
    shown = licenses[:_REASONS]
    return figure(
        "Licences, and what they oblige",
        element(
            "div",
            bars([name or "none" for name, _ in shown], [Series("", [n for _, n in shown])]),
            listed(asked),
        ),
        ("licence", "rows"),
        [(name or "none", f"{n:,}") for name, n in licenses],
        "A summary; the texts rule.",
    )


def _spent(
    folder: Path, manifest: Mapping[str, Any], price: tuple[float, float] | None
) -> Markup | None:
    if not is_run(folder) or "tokens" not in manifest:
        return None
    tokens = manifest["tokens"]
    sessions = read_sessions(folder)
    seconds = sum(s["engine_s"] for s in sessions)
    written = sum(s["output_tokens"] for s in sessions)
    rows = max(1, manifest["rows"])
    facts = [
        ("prompt tokens", f"{tokens['prompt']:,}", f"{tokens['prompt'] / rows:,.0f}"),
        ("output tokens", f"{tokens['output']:,}", f"{tokens['output'] / rows:,.0f}"),
    ]
    if seconds:
        facts.append(("seconds of the engine", f"{seconds:,.0f}", f"{seconds / rows:,.2f}"))
        facts.append(("output tokens per second", f"{written / seconds:,.0f}", ""))
    if price is not None:
        cost = (tokens["prompt"] * price[0] + tokens["output"] * price[1]) / 1e6
        facts.append(("cost", f"{cost:,.2f}", f"{cost / rows:,.4f}"))
    notes = []
    if price is None:
        notes.append("What it cost is told with --price PROMPT,OUTPUT of a million tokens.")
    if written < tokens["output"]:
        notes.append("Sessions that were killed left no time.")
    return card(
        "Tokens, time and cost",
        table(("", "all", "per row"), facts),
        note=" ".join(notes),
        wide=False,
    )
