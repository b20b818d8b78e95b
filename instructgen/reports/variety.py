"""How various a dataset is: likeness to the seeds, verbs and objects, a map of meanings."""

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

# Rows that each figure is drawn from, evenly over the whole dataset.
_COMPARED, _PARSED, _MAPPED = 20_000, 3_000, 1_200
_SOURCES, _VERBS, _OBJECTS = 7, 20, 4
_ROUGE_EDGES = [round(0.05 * i, 2) for i in range(21)]


def nearest_seed(columns: Columns, seeds: Sequence[Sample]) -> Markup | None:
    """Rows by ROUGE-L to the nearest seed: figure 4 of the paper on Self-Instruct."""
    if not seeds:
        return None
    known = {s.id for s in seeds}
    texts_ = [row["instruction"] for row in columns.drawn if row["id"] not in known]
    if not texts_:
        return None
    most = max(1_000, min(len(texts_), _COMPARED * 2_000 // len(seeds)))
    index = RougeLIndex(ANY_SIMILARITY)
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


def variety(columns: Columns) -> Markup | None:
    """Root verbs and direct objects: figure 3 of the paper on Self-Instruct."""
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


def embedding_map(columns: Columns) -> Markup | None:
    """Instructions in the plane, what means alike being near, by source."""
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
            (x, y, short(row["instruction"]))
        )
        numbers.append((name, f"{x:.1f}", f"{y:.1f}", short(row["instruction"])))
    return figure(
        "Map of meanings",
        points({name: group for name, group in groups.items() if group}),
        ("source", "x", "y", "instruction"),
        numbers,
        f"{len(numbers):,} instructions drawn evenly, by MiniLM's embeddings and t-SNE: what is "
        "near is alike; distances between far groups mean nothing.",
        wide=True,
    )


def _most(counts: Counter[str], most: int) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
