"""Measures the embedding index: exact search, graph search, and a first pass by static vectors.

    python benchmarks/embedding.py [--texts 60000] [--out benchmarks/embedding.json]

The texts are distinct paragraphs of 4 to 60 words from INSTRUCTGEN_DATA. The reference is
every pair whose cosine similarity by all-MiniLM-L6-v2 is above the threshold, found by
comparing all rows.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from minhash import paragraphs, timed

from instructgen.similarity import Pairs
from instructgen.similarity.embedding import _FIRST_PASS_BELOW, _Rows
from instructgen.similarity.encoders import MINILM, encoder

THRESHOLDS = (0.8, 0.9)
FIRST_PASS_TEXTS = 15_000


def texts_of(count: int) -> list[str]:
    def fitting() -> Iterator[str]:
        for text in paragraphs():
            if 4 <= len(text.split()) <= 60:
                yield text.strip()

    # Every n-th text, so that texts come from all files.
    texts = list(dict.fromkeys(fitting()))
    return texts[:: max(1, len(texts) // count)][:count]


def keys(pairs: Pairs, threshold: float) -> set[tuple[int, int]]:
    good = (pairs.score > threshold) & (pairs.row < pairs.text)
    return set(zip(pairs.row[good].tolist(), pairs.text[good].tolist(), strict=True))


def filled(vectors: Any, exact: int) -> tuple[float, float, Pairs]:
    rows = _Rows(vectors.shape[1], exact)
    adding = sum(
        timed(lambda at=at: rows.add(vectors[at : at + 1024]))[0]
        for at in range(0, len(vectors), 1024)
    )
    seconds, batches = 0.0, []
    for at in range(0, len(vectors), 1024):
        spent, pairs = timed(lambda at=at: rows.near(vectors[at : at + 1024], min(THRESHOLDS)))
        seconds += spent
        batches.append(pairs._replace(text=pairs.text + at))
    return adding, seconds, Pairs(*(np.concatenate(a) for a in zip(*batches, strict=True)))


def graph(vectors: Any) -> dict[str, Any]:
    adding, exact_s, exact = filled(vectors, len(vectors))
    graph_adding, graph_s, near = filled(vectors, 0)
    right = {t: keys(exact, t) for t in THRESHOLDS}
    returned = {t: keys(near, t) for t in THRESHOLDS}
    return {
        "rows": len(vectors),
        "all_rows": {
            "rows_added_per_s": round(len(vectors) / adding),
            "queries_per_s": round(len(vectors) / exact_s),
        },
        "graph": {
            "rows_added_per_s": round(len(vectors) / graph_adding),
            "queries_per_s": round(len(vectors) / graph_s),
            "recall_of_pairs": {
                str(t): [round(len(returned[t] & right[t]) / len(right[t]), 5), len(right[t])]
                for t in THRESHOLDS
            },
            "not_pairs": sum(len(returned[t] - right[t]) for t in THRESHOLDS),
        },
    }


def first_pass(static: Any, vectors: Any) -> list[dict[str, Any]]:
    """Return the recall of static vectors and the share of texts that the model then encodes."""
    _, _, exact = filled(vectors, len(vectors))
    result = []
    for threshold in THRESHOLDS:
        right = keys(exact, threshold)
        rows = _Rows(static.shape[1], len(static))
        rows.add(static)
        guessed = keys(rows.near(static, threshold - _FIRST_PASS_BELOW), -1)
        result.append(
            {
                "threshold": threshold,
                "texts": len(static),
                "pairs": len(right),
                "recall": round(len(guessed & right) / len(right), 4),
                "share_of_texts_the_model_has_to_read": round(
                    len({t for pair in guessed for t in pair}) / len(static), 3
                ),
            }
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=60_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    texts = texts_of(options.texts)
    model = encoder(MINILM)
    static = model.static
    seconds, vectors = timed(lambda: model.encode(texts))
    quick, guesses = timed(lambda: static.encode(texts))
    result: dict[str, Any] = {
        "texts": len(texts),
        "machine": platform.machine(),
        "model_texts_per_s": round(len(texts) / seconds),
        "static_texts_per_s": round(len(texts) / quick),
        **graph(vectors),
        "first_pass": first_pass(guesses[:FIRST_PASS_TEXTS], vectors[:FIRST_PASS_TEXTS]),
        "versions": {
            "python": platform.python_version(),
            **{
                name: version(name)
                for name in ("instructgen", "sentence-transformers", "torch", "usearch", "numpy")
            },
        },
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
