"""Measures whether curation of real, noisy data improves the model that is trained on it.

    python benchmarks/ablate.py           writes benchmarks/ablate.json

Three datasets are compared. Raw: Alpaca Libre 1 and 2 as published, with the rows that its
own log calls bad, and all replies of OASST1's validation trees, of any rank. Curated: the
rows that the recipe `strict` keeps. Control: as many random raw rows as the curated dataset
has. SmolLM2-135M-Instruct is trained on each with LoRA, the same number of supervised
tokens and three seeds. The measure is bits per byte of human-written answers of Dolly, which
is not in the training data. Needs INSTRUCTGEN_DATA; about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

import instructgen

DATA = Path(os.environ.get("INSTRUCTGEN_DATA", "../shared/data"))
RESULT = Path(__file__).with_suffix(".json")


def main() -> None:
    """Import, merge and curate the data, train nine models, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/bench-ablate"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=12_000)
    options = parser.parse_args()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    libre = DATA / "alpaca-libre"
    replies = DATA / "oasst1/oasst1-en-validation.messages.jsonl"
    instructgen.import_data(libre / "alpaca_libre_tasks_v1.jsonl", work / "libre1")
    instructgen.import_data(
        libre / "alpaca_libre_tasks_v2.jsonl", work / "libre2", on_bad_row="reject"
    )
    instructgen.import_data(replies, work / "replies", "oasst", take="all")
    instructgen.import_data(DATA / "dolly/databricks-dolly-15k.rejoined.jsonl", work / "people")
    instructgen.merge([work / "libre1", work / "libre2", work / "replies"], work / "raw")
    instructgen.curate(work / "raw", work / "curated", recipe="strict")
    result = instructgen.ablate(
        [work / "raw", work / "curated"],
        work / "out",
        tokens=options.tokens,
        seeds=3,
        model=options.model,
        data=work / "people",
        rows=150,
        peft="lora",
        max_length=512,
        dtype="bfloat16",
    )
    record = json.loads((result.out / "ablation.json").read_bytes())
    record["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print("\n".join(result.verdict))


if __name__ == "__main__":
    main()
