"""Draws figures about the diversity of instructions: seed similarity, verbs, embedding map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from instructgen.errors import ConfigError
from instructgen.reports.charts import Series, bars, histogram, points
from instructgen.reports.columns import Columns
from instructgen.reports.examples import ANY_SIMILARITY, short
from instructgen.reports.html import Markup
from instructgen.reports.page import card, figure
from instructgen.reports.plane import in_plane
from instructgen.reports.verbs import ACCURACY, pairs_of
from instructgen.schema.sample import Sample
from instructgen.similarity import RougeLIndex

# Maximum number of randomly sampled rows per figure.
_COMPARED, _PARSED, _MAPPED = 20_000, 3_000, 1_200
_SOURCES, _VERBS, _OBJECTS = 7, 20, 4
_ROUGE_EDGES = [round(0.05 * i, 2) for i in range(21)]


def nearest_seed(columns: Columns, seeds: Sequence[Sample]) -> Markup | None:
    """Return a histogram of rows by ROUGE-L to their nearest seed (Self-Instruct, figure 4)."""
    if not seeds:
        return None
    known = {s.id for s in seeds}
    texts_ = [row["instruction"] for row in columns.drawn if row["id"] not in known]
    if not texts_:
        return None
    limit = max(1_000, min(len(texts_), _COMPARED * 2_000 // len(seeds)))
    index = RougeLIndex(ANY_SIMILARITY)
    index.add([s.instruction for s in seeds])
    scores = [0.0 if m is None else m.score for m in index.nearest(texts_[:limit])]
    counts, _ = np.histogram(np.minimum(scores, 0.9999), _ROUGE_EDGES)
    numbers = [
        (f"{a:.2f} to {b:.2f}", f"{n:,}", f"{n / len(scores):.1%}")
        for (a, b), n in zip(pairwise(_ROUGE_EDGES), counts, strict=True)
    ]
    return figure(
        "Similarity to the nearest seed",
        histogram(_ROUGE_EDGES, [Series("rows", [int(n) for n in counts])], "ROUGE-L F-measure"),
        ("ROUGE-L", "rows", "fraction"),
        numbers,
        f"{len(scores):,} instructions that are not seeds, compared with {len(seeds):,} seeds. "
        f"Mean: {np.mean(scores):.2f}. For comparison, see figure 4 of the Self-Instruct paper.",
    )


def variety(columns: Columns) -> Markup | None:
    """Return a chart of frequent root verbs and their direct objects (Self-Instruct, figure 3)."""
    english = [r["instruction"] for r in columns.drawn if r["language"] in ("en", "und")]
    if not english:
        return None
    try:
        pairs = pairs_of(english[:_PARSED])
    except ConfigError as error:
        return card("Root verbs and their objects", note=str(error), wide=False)
    if not pairs:
        return None
    verbs = Counter(verb for verb, _ in pairs)
    objects = {verb: Counter(o for v, o in pairs if v == verb and o) for verb in verbs}
    top = [verb for verb, _ in sorted(verbs.items(), key=lambda v: (-v[1], v[0]))[:_VERBS]]
    frequent = {verb: _most_common(objects[verb], _OBJECTS) for verb in top}
    series = [
        Series(f"object {n + 1}", [frequent[v][n][1] if n < len(frequent[v]) else 0 for v in top])
        for n in range(_OBJECTS)
    ]
    rest = [verbs[v] - sum(n for _, n in frequent[v]) for v in top]
    labels = [f"{v} {', '.join(o for o, _ in frequent[v][:2])}".strip() for v in top]
    parsed = len(english[:_PARSED])
    return figure(
        "Root verbs and their objects",
        bars(labels, [*series, Series("other or no object", rest)]),
        ("verb", "instructions", "most frequent objects"),
        [(v, f"{verbs[v]:,}", ", ".join(f"{o} {n:,}" for o, n in frequent[v])) for v in top],
        f"{len(pairs):,} of {parsed:,} instructions in English or an unknown language are "
        f"imperatives, with {len(verbs):,} unique verbs and {len(set(pairs)):,} verb-object pairs. "
        f"Object 1 is a verb's most frequent object. {ACCURACY}",
    )


def embedding_map(columns: Columns) -> Markup | None:
    """Return a scatter plot with similar instructions close together, in a color per source."""
    drawn = columns.drawn[:_MAPPED]
    if len(drawn) < 10:
        return None
    try:
        places = in_plane([row["instruction"] for row in drawn])
    except ConfigError as error:
        return card("Embedding map", note=str(error), wide=False)
    if places is None:
        return None
    counts = Counter(row["source"] or "none" for row in drawn)
    top = [name for name, _ in _most_common(counts, _SOURCES)]
    groups: dict[str, list[tuple[float, float, str]]] = {name: [] for name in top}
    numbers = []
    for row, place in zip(drawn, places, strict=True):
        if place is None:
            continue
        name = row["source"] or "none"
        x, y = place
        groups.setdefault(name if name in top else "others", []).append(
            (x, y, short(row["instruction"]))
        )
        numbers.append((name, f"{x:.1f}", f"{y:.1f}", short(row["instruction"])))
    return figure(
        "Embedding map",
        points({name: group for name, group in groups.items() if group}),
        ("source", "x", "y", "instruction"),
        numbers,
        f"A random sample of {len(numbers):,} instructions, placed by MiniLM embeddings and t-SNE. "
        "Nearby points have similar meanings; distances between separate groups have no meaning.",
        wide=True,
    )


def _most_common(counts: Counter[str], limit: int) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]
