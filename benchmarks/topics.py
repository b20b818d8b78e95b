"""Compares demonstrations drawn uniformly with demonstrations that cover the topics of the seeds.

    python benchmarks/topics.py [--target 60] [--seeds 0 1 2] [--out benchmarks/topics.json]

Both generate the same number of rows from the included seeds. The instructions of all runs are then
clustered together (k-means of sentence embeddings), and the measure is the number of clusters that
a run has, per 1,000 output tokens.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import instructgen
from instructgen.similarity.encoders import MINILM, encoder

ROOT = Path(__file__).resolve().parent.parent
GENERAL = ROOT / "seeds" / "general.jsonl"
CLUSTERS = 60
# Quantile of Student's t for three runs, 95%.
T = 4.303


def run(mode: str, seed: int, target: int) -> dict[str, Any]:
    """Generate rows; return the instructions and the tokens."""
    with tempfile.TemporaryDirectory() as folder:
        result = instructgen.generate(
            GENERAL,
            target,
            Path(folder) / "run",
            seed=seed,
            settings={"generate.demonstrations": mode, "method.max_instances": 1},
        )
        texts = sorted({row["instruction"] for row in instructgen.open(result.out).rows()})
    return {
        "mode": mode,
        "seed": seed,
        "rows": result.rows,
        "output_tokens": result.facts.output_tokens,
        "requests": result.facts.requests,
        "texts": texts,
    }


def main() -> None:
    from sklearn.cluster import KMeans

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "topics.json")
    args = parser.parse_args()
    runs = [run(m, s, args.target) for s in args.seeds for m in ("uniform", "coverage")]
    texts = [text for each in runs for text in each["texts"]]
    labels = KMeans(CLUSTERS, n_init=8, random_state=0).fit_predict(encoder(MINILM).encode(texts))
    at = 0
    for each in runs:
        own = labels[at : at + len(each["texts"])]
        at += len(own)
        each["instructions"] = len(each.pop("texts"))
        each["clusters"] = len(set(own.tolist()))
        each["clusters_per_1000_tokens"] = round(1e3 * each["clusters"] / each["output_tokens"], 3)
    result: dict[str, Any] = {
        "what": "clusters of 60 that the accepted instructions are in, per 1,000 output tokens",
        "model": "smollm2",
        "versions": {"instructgen": instructgen.__version__},
        "runs": runs,
    }
    for measure in ("clusters", "clusters_per_1000_tokens"):
        for mode in ("uniform", "coverage"):
            values = [each[measure] for each in runs if each["mode"] == mode]
            half = T * stdev(values) / len(values) ** 0.5 if len(values) == 3 else None
            result[f"{measure}, {mode}"] = {"mean": round(mean(values), 3), "half_interval": half}
    print(json.dumps(result, indent=1))
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
