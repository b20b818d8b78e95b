"""Measures `curate`: rows/s, peak memory, recall of planted benchmark prompts, and Data-Juicer.

    python benchmarks/curate.py sizes [--rows 10000 100000 1000000]
    python benchmarks/curate.py contamination
    python benchmarks/curate.py rivals --python PYTHON_WITH_DATA_JUICER [--rows 100000]

The rows are real rows (Dolly, Alpaca Libre, OASST) and recombinations of two of them: the
first halves of the instruction and output of one row with the second halves of another, and
the input of the first row. Each curation runs in its own process and reads and writes a
dataset folder. `rivals` runs the command of Data-Juicer on the same rows with the filters
that both tools have. Install it with: pip install py-data-juicer==1.6.1 aiohttp. The results
are written to curate.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from instructgen.filters.contamination import Contamination
from instructgen.formats import read
from instructgen.schema.sample import Origin, Sample
from instructgen.store import read_samples, write_dataset

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("INSTRUCTGEN_DATA", ROOT.parent / "shared" / "data"))
OUT = Path(__file__).with_suffix(".json")
SOURCES = (
    "dolly/databricks-dolly-15k.rejoined.jsonl",
    "alpaca-libre/alpaca_libre_tasks_v1.jsonl",
    "oasst1/oasst1-en-validation.messages.jsonl",
)
BENCHMARKS = (
    "mt-bench/question.jsonl",
    "mt-bench/vicuna_question.jsonl",
    "gsm8k/test.jsonl",
    "humaneval/HumanEval.jsonl.gz",
    "ifeval/en_input_data.jsonl",
)
# Filters that both tools have: bounds on words, repeated n-grams, MinHash duplicates.
SAME_FILTERS = """
[[filters]]
name = "size"
of = "row"
min = 5
max = 1000
[[filters]]
name = "repetition"
ngram = 4
max_share = 0.3
[[filters]]
name = "duplicate"
how = ["exact", "minhash"]
threshold = { minhash = 0.7 }
"""
DATA_JUICER = """
project_name: same
dataset_path: {rows}
export_path: {out}/kept.jsonl
work_dir: {out}
np: 2
open_tracer: false
use_cache: false
process:
  - words_num_filter: {{lang: en, min_num: 5, max_num: 1000}}
  - word_repetition_filter: {{lang: en, rep_len: 4, min_ratio: 0.0, max_ratio: 0.3}}
  - document_minhash_deduplicator:
      {{tokenization: space, window_size: 1, lowercase: true, jaccard_threshold: 0.7}}
"""


def real() -> list[Sample]:
    rows = [row for name in SOURCES for row in read(DATA / name, on_bad_row="reject")]
    return [row for row in rows if isinstance(row, Sample) and row.output and not row.history]


def recombined(count: int) -> Iterator[Sample]:
    rows, rng = real(), random.Random(0)
    yield from rows[:count]
    for number in range(len(rows), count):
        a, b = rng.choice(rows), rng.choice(rows)
        yield replace(
            a,
            instruction=halves(a.instruction, b.instruction),
            output=halves(a.output, b.output),
            origin=Origin(record=str(number)),
        )


def halves(a: str, b: str) -> str:
    first, second = a.split(" "), b.split(" ")
    return " ".join([*first[: (len(first) + 1) // 2], *second[len(second) // 2 :]])


def in_a_process(data: Path, out: Path, recipe: str) -> dict[str, float]:
    """Run one curation and return its rows, seconds and peak resident memory."""
    code = (
        "import resource, sys, time; from instructgen.commands.curate import curate;"
        "begun = time.perf_counter(); r = curate(sys.argv[1], sys.argv[2], recipe=sys.argv[3]);"
        "print(r.rows, r.rejected, time.perf_counter() - begun,"
        " resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    command = [sys.executable, "-c", code, str(data), str(out), recipe]
    process = subprocess.run(command, check=True, capture_output=True, text=True)
    kept, rejected, seconds, kib = (float(part) for part in process.stdout.split())
    return {
        "rows": int(kept + rejected),
        "kept": int(kept),
        "seconds": round(seconds, 2),
        "rows_per_s": round((kept + rejected) / seconds),
        "peak_mib": round(kib / 1024),
    }


def sizes(counts: list[int]) -> dict[str, Any]:
    runs = []
    with tempfile.TemporaryDirectory() as work:
        for count in counts:
            data = Path(work) / f"rows-{count}"
            write_dataset(data, recombined(count), [], lambda _: "")
            runs.append(in_a_process(data, Path(work) / f"kept-{count}", "default"))
            print(runs[-1], flush=True)
            shutil.rmtree(data)
    return {"recipe": "default", "runs": runs}


def contamination() -> dict[str, Any]:
    rng = random.Random(1)
    rows = [s for s in read(DATA / SOURCES[0]) if isinstance(s, Sample)]
    words = [word for row in rows[:3000] for word in row.instruction.split()]
    paragraphs = [row.output for row in rows if 60 < len(row.output.split()) < 200]
    both = Contamination(against=tuple(str(DATA / BENCHMARKS[i]) for i in (0, 2)))
    prompts = [prompt.text for prompt in both._prompts.prompts]

    def planted(text: str, kind: str) -> str:
        if kind == "verbatim":
            return text
        if kind == "case changed":
            return text.upper() if rng.random() < 0.5 else text.swapcase()
        if kind == "a fifth of the words changed":
            cut = text.split()
            for place in rng.sample(range(len(cut)), max(1, round(0.2 * len(cut)))):
                cut[place] = rng.choice(words)
            return " ".join(cut)
        return f"{rng.choice(paragraphs)}\n\n{text}\n\n{rng.choice(paragraphs)}"

    def judged(samples: list[Sample]) -> list[bool]:
        return [v.rejection is not None for v in both.evaluate(samples)]

    flagged = [row for row, hit in zip(rows, judged(rows), strict=True) if hit]
    kinds = []
    for kind in ("verbatim", "case changed", "a fifth of the words changed", "in a longer text"):
        hits = judged([Sample(planted(text, kind), output="An answer.") for text in prompts])
        kinds.append(
            {
                "kind": kind,
                "planted": len(prompts),
                "found": sum(hits),
                "recall": round(sum(hits) / len(prompts), 4),
                # Rows of Dolly itself that were flagged count as false positives.
                "precision": round(sum(hits) / (sum(hits) + len(flagged)), 4),
            }
        )
        print(kinds[-1], flush=True)
    five = Contamination(against=tuple(str(DATA / name) for name in BENCHMARKS))
    many = list(recombined(100_000))
    begun = time.perf_counter()
    reasons: Counter[str] = Counter()
    for at in range(0, len(many), 1024):
        verdicts = five.evaluate(many[at : at + 1024])
        reasons.update(v.rejection.reason for v in verdicts if v.rejection)
    seconds = time.perf_counter() - begun
    own = [v.rejection for v in five.evaluate(rows) if v.rejection]
    print(f"{len(many)} rows, {len(five._prompts.prompts)} prompts: {seconds:.1f} s", reasons)
    return {
        "into": SOURCES[0],
        "rows": len(rows),
        "flagged_of_its_own": len(flagged),
        "kinds": kinds,
        "speed": {
            "rows": len(many),
            "benchmarks": len(BENCHMARKS),
            "prompts": len(five._prompts.prompts),
            "seconds": round(seconds, 1),
            "of_dollys_own_rows": sorted(f"{r.reason}: {r.detail}" for r in own),
        },
    }


def rivals(python: str, count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        data, lines = folder / "data", folder / "rows.jsonl"
        write_dataset(data, recombined(count), [], lambda _: "")
        with lines.open("w") as file:
            for s in read_samples(data):
                text = "\n".join(p for p in (s.instruction, s.input, s.output) if p)
                file.write(json.dumps({"text": text}) + "\n")
        (folder / "same.toml").write_text(SAME_FILTERS)
        ours = in_a_process(data, folder / "ours", str(folder / "same.toml"))
        print("instructgen", ours, flush=True)
        (folder / "dj").mkdir()
        config = folder / "same.yaml"
        config.write_text(DATA_JUICER.format(rows=lines, out=folder / "dj"))
        begun = time.perf_counter()
        executable = Path(python).parent / "dj-process"
        with (folder / "log").open("w") as log:
            subprocess.run(
                [executable, "--config", config], check=True, stdout=log, stderr=log, cwd=folder
            )
        seconds = time.perf_counter() - begun
        kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        kept = sum(1 for _ in (folder / "dj" / "kept.jsonl").open())
        theirs = {
            "rows": count,
            "kept": kept,
            "seconds": round(seconds, 2),
            "rows_per_s": round(count / seconds),
            "peak_mib_of_one_process": round(kib / 1024),
        }
        print("data-juicer", theirs, flush=True)
        command = [python, "-c", "from importlib.metadata import version as v;"
                   "print(v('py-data-juicer'))"]  # fmt: skip
        process = subprocess.run(command, check=True, capture_output=True, text=True)
    return {
        "filters": "bounds on words, repeated 4-grams, exact and MinHash duplicates at 0.7",
        "processes": {"instructgen": 1, "data-juicer": 2},
        "instructgen": ours,
        "data-juicer": {"version": process.stdout.strip(), **theirs},
        "ratio": round(ours["rows_per_s"] / theirs["rows_per_s"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["sizes", "contamination", "rivals"])
    parser.add_argument("--rows", type=int, nargs="+")
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    if options.part == "sizes":
        result = sizes(options.rows or [10_000, 100_000, 1_000_000])
    elif options.part == "contamination":
        result = contamination()
    else:
        result = rivals(options.python, (options.rows or [100_000])[0])
    known = json.loads(OUT.read_text()) if OUT.exists() else {}
    known[options.part] = {
        **result,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {n: version(n) for n in ("instructgen", "numpy", "pyarrow", "scipy", "numba")},
    }
    OUT.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
