"""The chapter about a dataset, and about the run that made it where one did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from instructgen.errors import ConfigError
from instructgen.licences import obligations
from instructgen.plugins import classes
from instructgen.reports.charts import Series, bars, histogram, lines, number_text, points
from instructgen.reports.columns import (
    FIELDS,
    WORD_EDGES,
    Columns,
    Rejections,
    read_columns,
    read_rejections,
    word_classes,
)
from instructgen.reports.html import Markup, element
from instructgen.reports.page import (
    Chapter,
    card,
    figure,
    figures,
    listed,
    table,
    texts,
    tiles,
)
from instructgen.reports.plane import in_plane
from instructgen.reports.verbs import ACCURACY, pairs_of
from instructgen.sample import Sample
from instructgen.similarity import RougeLIndex
from instructgen.store import is_run, read_info, read_made, read_manifest, read_sessions

# Rows that the costly figures are drawn from, evenly over the whole dataset.
_COMPARED, _COMPARED_WITH, _PARSED, _MAPPED, _SHOWN = 20_000, 20_000, 3_000, 1_200, 12
_BORDERLINE, _TEXT, _SHORT = 5, 2_000, 160
_SOURCES, _REASONS, _VERBS, _OBJECTS, _BINS = 7, 16, 20, 4, 40
_ANY_SIMILARITY = 1e-9
_ROUGE_EDGES = [round(0.05 * i, 2) for i in range(21)]


@dataclass(frozen=True, slots=True)
class Beside:
    """What a dataset is shown beside: seeds, and rows written by people; and a price.

    ``price`` is of a million tokens of prompts and of completions.
    """

    seeds: Sequence[Sample] = ()
    reference: Sequence[Sample] = ()
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
    columns = read_columns(folder, _COMPARED)
    thresholds = _thresholds(folder)
    rejections = read_rejections(folder, thresholds, _BORDERLINE)
    seeds = beside.seeds or seeds
    nodes = [
        _tiles(manifest, columns, rejections),
        figures(
            _funnel(columns, rejections),
            _over_the_run(columns, rejections) if is_run(folder) else None,
            _nearest_seed(columns, seeds),
            _variety(columns),
            *_lengths(columns, beside, seeds),
            *(_share(columns, key) for key in ("language", "category", "source")),
            _terms(manifest),
            _map(columns),
            _borderline(folder, manifest, thresholds, rejections, columns, seeds),
            _spent(folder, manifest, beside.price),
            _some_rows(columns),
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


def _nearest_seed(columns: Columns, seeds: Sequence[Sample]) -> Markup | None:
    if not seeds:
        return None
    known = {s.id for s in seeds}
    texts_ = [row["instruction"] for row in columns.drawn if row["id"] not in known]
    if not texts_:
        return None
    most = max(1_000, min(len(texts_), _COMPARED * 2_000 // len(seeds)))
    index = RougeLIndex(_ANY_SIMILARITY)
    index.add([s.instruction for s in seeds])
    found = index.nearest(texts_[:most])
    scores = [0.0 if m is None else m.score for m in found]
    counts, _ = np.histogram(np.minimum(scores, 0.9999), _ROUGE_EDGES)
    numbers = [
        (f"{a:.2f} to {b:.2f}", f"{n:,}", f"{n / len(scores):.1%}")
        for (a, b), n in zip(pairwise(_ROUGE_EDGES), counts, strict=True)
    ]
    return figure(
        "Likeness to the nearest seed",
        histogram(_ROUGE_EDGES, [Series("rows", [int(n) for n in counts])], "ROUGE-L F-measure"),
        ("ROUGE-L", "rows", "share"),
        numbers,
        f"Of {len(scores):,} instructions that are no seeds, against {len(seeds):,} seeds; mean "
        f"{np.mean(scores):.2f}. As figure 4 of the paper on Self-Instruct.",
    )


def _variety(columns: Columns) -> Markup | None:
    english = [r["instruction"] for r in columns.drawn if r["language"] in ("en", "und")]
    if not english:
        return None
    try:
        found = pairs_of(english[:_PARSED])
    except ConfigError as error:
        return card("Root verbs and their objects", note=str(error), wide=False)
    if not found:
        return None
    verbs = Counter(verb for verb, _ in found)
    objects = {verb: Counter(o for v, o in found if v == verb and o) for verb in verbs}
    top = [verb for verb, _ in sorted(verbs.items(), key=lambda v: (-v[1], v[0]))[:_VERBS]]
    first = {verb: _most(objects[verb], _OBJECTS) for verb in top}
    series = [
        Series(f"object {n + 1}", [first[v][n][1] if n < len(first[v]) else 0 for v in top])
        for n in range(_OBJECTS)
    ]
    rest = [verbs[v] - sum(n for _, n in first[v]) for v in top]
    labels = [f"{v} {', '.join(o for o, _ in first[v][:2])}".strip() for v in top]
    parsed = len(english[:_PARSED])
    return figure(
        "Root verbs and their objects",
        bars(labels, [*series, Series("other or none", rest)]),
        ("verb", "instructions", "most frequent objects"),
        [(v, f"{verbs[v]:,}", ", ".join(f"{o} {n:,}" for o, n in first[v])) for v in top],
        f"{len(found):,} of {parsed:,} instructions in English, or in no known language, give an "
        f"order: {len(verbs):,} verbs, {len(set(found)):,} pairs of verb and object. {ACCURACY}",
    )


def _most(counts: Counter[str], most: int) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]


def _lengths(columns: Columns, beside: Beside, seeds: Sequence[Sample]) -> list[Markup]:
    import pyarrow as pa

    made = []
    for name in FIELDS:
        counted = {"rows": columns.words[name]}
        for label, samples in (
            ("seeds", seeds),
            (f"reference {beside.reference_name}", beside.reference),
        ):
            if samples:
                counted[label] = word_classes(pa.array([getattr(s, name) for s in samples]))
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


def _map(columns: Columns) -> Markup | None:
    drawn = columns.drawn[:_MAPPED]
    if len(drawn) < 10:
        return None
    try:
        places = in_plane([row["instruction"] for row in drawn])
    except ConfigError as error:
        return card("Map of meanings", note=str(error), wide=False)
    if places is None:
        return None
    counts = Counter(row["source"] or "none" for row in drawn)
    top = [name for name, _ in _most(counts, _SOURCES)]
    groups: dict[str, list[tuple[float, float, str]]] = {name: [] for name in top}
    numbers = []
    for row, place in zip(drawn, places, strict=True):
        if place is None:
            continue
        name = row["source"] or "none"
        x, y = place
        groups.setdefault(name if name in top else "others", []).append(
            (x, y, _short(row["instruction"]))
        )
        numbers.append((name, f"{x:.1f}", f"{y:.1f}", _short(row["instruction"])))
    return figure(
        "Map of meanings",
        points({name: group for name, group in groups.items() if group}),
        ("source", "x", "y", "instruction"),
        numbers,
        f"{len(numbers):,} instructions drawn evenly, by MiniLM's embeddings and t-SNE: what is "
        "near is alike; distances between far groups mean nothing.",
        wide=True,
    )


# -- rows to look at ------------------------------------------------------------------------


def _thresholds(folder: Path) -> dict[str, Sequence[float]]:
    """Of a run's filters; a curated dataset has its own examples."""
    if not is_run(folder):
        return {}
    known, found = classes("filters"), {}
    for values in read_info(folder)["config"]["filters"]:
        options = {k: v for k, v in values.items() if k != "name"}
        if values["name"] in known and (
            bounds := known[values["name"]].model_validate(options).thresholds()
        ):
            found[values["name"]] = bounds
    return found


def _borderline(
    folder: Path,
    manifest: Mapping[str, Any],
    thresholds: Mapping[str, Sequence[float]],
    rejections: Rejections,
    columns: Columns,
    seeds: Sequence[Sample],
) -> Markup | None:
    rows = [
        (e["filter"], e["side"], float(e["value"]), _short(e["text"]))
        for e in manifest.get("borderline", ())
    ]
    for name, bounds in thresholds.items():
        rows += [
            (name, "rejected", r["score"], _short(r["instruction"] or r["output"] or ""))
            for r in rejections.near.get(name, ())
        ]
        if name == "novelty":
            rows += _nearly_alike(columns, seeds, bounds[0])
    if not rows:
        return None
    rows.sort(key=lambda r: (r[0], r[1], r[2]))
    said = [(name, side, number_text(value), text) for name, side, value, text in rows]
    return card(
        "On both sides of each threshold",
        table(("filter", "side", "value", "row"), said),
        note="Rows kept and rejected that lie nearest to where a verdict changes; of a run, those "
        "kept are of 2,000 drawn evenly.",
    )


def _nearly_alike(
    columns: Columns, seeds: Sequence[Sample], threshold: float
) -> list[tuple[str, str, float, str]]:
    """The kept rows that are most like a seed or another kept row."""
    texts_ = [row["instruction"] for row in columns.drawn[:_COMPARED_WITH]]
    index = RougeLIndex(max(threshold - 0.3, _ANY_SIMILARITY))
    index.add([s.instruction for s in seeds[:_COMPARED_WITH]])
    found = []
    # In their order, so that no text meets itself.
    for row, text in enumerate(texts_[:2_000]):
        (match,) = index.nearest([text])
        index.add([text])
        if match is not None and match.score <= threshold:
            found.append(("novelty", "kept", match.score, _short(texts_[row])))
    return sorted(found, key=lambda r: -r[2])[:_BORDERLINE]


def _some_rows(columns: Columns) -> Markup | None:
    if not columns.drawn:
        return None
    shown = []
    for row in columns.drawn[:_SHOWN]:
        said = ", ".join(
            str(row[k]) for k in ("source", "license", "language", "category") if row[k]
        )
        fields = [(name, _cut(row[name] or "", _TEXT)) for name in FIELDS]
        shown.append(
            element(
                "div",
                element("p", f"{row['id']} · {said}", class_="dim"),
                texts(fields),
                class_="sample",
            )
        )
    return card("Rows drawn at random", *shown)


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


def _short(text: str) -> str:
    return _cut(" ".join(text.split()), _SHORT)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
