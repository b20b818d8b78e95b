"""Measures the time and memory of a report over a million rows, in its own process.

    python benchmarks/report.py [--rows 1000000]

The rows are random words and have 20 sources. Instructions have 12 words on average, outputs
60; there is one rejected row for every ten rows. Writes benchmarks/report.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from instructgen.schema.sample import Origin, Rejected, Rejection, Sample
from instructgen.store import Provenance, RejectionCount, write_dataset

RESULT = Path(__file__).with_suffix(".json")
VERBS = ("Write", "Explain", "List", "Describe", "Compare", "Name", "Summarize", "Suggest")


def sample(rng: random.Random, words: list[str], number: int) -> Sample:
    def phrase(mean: int) -> str:
        return " ".join(rng.choices(words, k=max(1, round(rng.expovariate(1 / mean)))))

    return Sample(
        f"{rng.choice(VERBS)} the {phrase(10)} {number}.",
        phrase(20) if number % 3 == 0 else "",
        phrase(60),
        category=f"category {number % 12}",
        source=f"source-{number % 20}",
        license=("MIT", "CC-BY-4.0", "CC-BY-SA-3.0")[number % 3],
        language=("en", "de", "fa")[number % 7 % 3],
        origin=Origin(method="self_instruct", model="m", batch=number // 50, request=0),
    )


def dataset(folder: Path, rows: int) -> None:
    rng = random.Random(0)
    words = [f"{a}{b}{c}" for a in "klmnprst" for b in "aeiou" for c in "dgmnrstx"]
    kept = (sample(rng, words, i) for i in range(rows))
    rejected = (
        Rejected(
            sample(rng, words, i), Rejection("novelty", "too_similar", "", 0.71), "instances", i
        )
        for i in range(rows // 10)
    )
    counts = [RejectionCount("instances", "novelty", "too_similar", rows // 10)]
    write_dataset(folder, kept, rejected, lambda _: "", counts)
    (folder / "provenance.json").write_bytes(Provenance("benchmark", (), {}).to_json())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    seeds = Path(__file__).parent.parent / "seeds" / "general.jsonl"
    with tempfile.TemporaryDirectory() as work:
        dataset(Path(work) / "d", rows)
        out = Path(work) / "report.html"
        argv = [sys.executable, "-m", "instructgen", "report", f"{work}/d", "--seeds", str(seeds)]
        started = time.monotonic()
        subprocess.run([*argv, "--out", str(out)], check=True)
        seconds = time.monotonic() - started
        peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        result = {
            "rows": rows,
            "seconds": round(seconds, 1),
            "mib": peak_kib // 1024,
            "page_bytes": out.stat().st_size,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": {
                p: version(p)
                for p in (
                    "instructgen",
                    "pyarrow",
                    "hanta",
                    "sentence-transformers",
                    "scikit-learn",
                )
            },
        }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
