"""Expands the 60 questions and answers of a support team with the included model.

    python benchmarks/support.py [--target 60] [--out benchmarks/support.json]

The measure is whether the rows keep the shares of languages and products that the seeds have. The
rows are printed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import instructgen

ROOT = Path(__file__).resolve().parent.parent
BRIEF = "Questions of customers to the support of Larkfield, a maker of devices for the home."


def shares(values: Iterable[str]) -> dict[str, float]:
    """Return the fraction of each value, the most frequent first."""
    counts = Counter(values)
    return {value: round(n / counts.total(), 3) for value, n in counts.most_common()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=int, default=60)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "support.json")
    args = parser.parse_args()
    table = ROOT / "examples" / "support.jsonl"
    seeds = [json.loads(line) for line in table.read_text().splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        done = instructgen.generate(
            table,
            args.target,
            Path(folder) / "run",
            brief=BRIEF,
            balance=["product"],
            mapping={
                "instruction": "question",
                "output": "answer",
                "language": "language",
                "license": "license",
                "label.product": "product",
            },
            settings={"method.diversity": "within"},
        )
        rows = list(instructgen.open(done.out).rows())
    for row in rows:
        print("---", row["language"], [label["value"] for label in row["labels"]])
        for message in row["messages"]:
            print(f"[{message['role']}] {message['content'][:400]}")
    products = [[v["value"] for v in row["labels"] if v["name"] == "product"] for row in rows]
    found: dict[str, Any] = {
        "what": "60 support questions and answers, expanded by the included model",
        "versions": {"instructgen": instructgen.__version__},
        "rows": done.rows,
        "requests_per_row": round(done.facts.requests / max(1, done.rows), 2),
        "seconds": round(done.seconds, 1),
        "warnings": list(done.warnings),
        "language": {
            "seeds": shares(seed["language"] for seed in seeds),
            "rows": shares(row["language"] for row in rows),
        },
        "product": {
            "seeds": shares(seed["product"] for seed in seeds),
            "rows": shares(value for values in products for value in values),
        },
    }
    print(json.dumps(found, indent=1, ensure_ascii=False))
    args.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
