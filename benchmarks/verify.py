"""Measures how many answers per second the verifiers check, and compares with another version.

    python benchmarks/verify.py [--before FOLDER] [--out benchmarks/verify.json]

The verifier `code` checks the 164 solutions of HumanEval and 164 changed ones, in two threads; the
verifier `math` the 5,276 solutions of GSM8K's models. ``--before`` is a checkout of an earlier
version, which is measured in the same run. The data is in the folder INSTRUCTGEN_DATA.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("INSTRUCTGEN_DATA", ROOT.parent / "shared" / "data"))
THREADS = 2


def measured() -> dict[str, Any]:
    """Check all answers with the version of instructgen that is imported."""
    import instructgen
    from instructgen.schema.sample import Label, Sample
    from instructgen.verifiers.code import Code
    from instructgen.verifiers.math import Math

    with gzip.open(DATA / "humaneval" / "HumanEval.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    result: dict[str, Any] = {"instructgen": instructgen.__version__}
    for name, body in (("solutions", None), ("changed solutions", "    return None\n")):

        def check(row: dict[str, str], body: str | None = body) -> float:
            test = f"{row['test']}\ncheck({row['entry_point']})"
            task = Sample(row["prompt"], labels=(Label("test", test),))
            program = row["prompt"] + (body or row["canonical_solution"])
            return Code(seconds=10).check(task, program)

        began = time.monotonic()
        with ThreadPoolExecutor(THREADS) as pool:
            scores = list(pool.map(check, rows))
        result[name] = {
            "answers": len(rows),
            "score 1": sum(score == 1.0 for score in scores),
            "per_second": round(len(rows) / (time.monotonic() - began), 2),
        }
    path = DATA / "gsm8k" / "example_model_solutions.jsonl"
    began, agreed, checked = time.monotonic(), 0, 0
    for row in map(json.loads, path.read_text().splitlines()):
        task = Sample(row["question"], output=row["ground_truth"])
        for solution in row.values():
            if isinstance(solution, dict):
                checked += 1
                right = Math().check(task, solution["solution"]) == 1.0
                agreed += right == solution["is_correct"]
    seconds = time.monotonic() - began
    result["gsm8k"] = {
        "answers": checked, "agreed": agreed, "per_second": round(checked / seconds),
    }  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "verify.json")
    parser.add_argument("--only-measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only_measure:
        print(json.dumps(measured()))
        return
    found: dict[str, Any] = {
        "what": "answers that the verifiers check per second",
        "machine": f"{os.cpu_count()} cores, {THREADS} threads",
    }
    for name, folder in (("before", args.before), ("now", ROOT)):
        if folder is not None:
            command = [sys.executable, __file__, "--only-measure"]
            environment = {**os.environ, "PYTHONPATH": str(folder)}
            done = subprocess.run(command, env=environment, capture_output=True, check=True)
            found[name] = json.loads(done.stdout)
    print(json.dumps(found, indent=1))
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
