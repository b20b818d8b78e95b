"""Compares four deduplication tools on eight short instructions, of which five should be kept.

    python benchmarks/short_texts.py instructgen|text-dedup|data-juicer|datatrove

Each tool runs in an environment in which it is installed, with its own defaults and the
threshold 0.7 where it has one. The rows that it keeps are added to short_texts.json. Install
the other tools with: pip install text-dedup==0.4.1 (Python 3.12), py-data-juicer==1.6.1
aiohttp, datatrove[processing]==0.10.1 spacy orjson.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

OUT = Path(__file__).with_name("short_texts.json")
ROWS = [
    ("What is love?", True),
    ("Name three fruits.", True),
    ("Sort this list.", True),
    ("Translate to French.", True),
    ("Name three fruits.", False),
    ("name three fruits", False),
    ("Write a short story about a lighthouse keeper who finds a letter in a bottle.", True),
    ("Write a short story about a lighthouse keeper who finds an old letter in a bottle.", False),
]
TEXTS = [text for text, _ in ROWS]


def instructgen() -> list[int]:
    from instructgen.schema.sample import Sample
    from instructgen.similarity import deduplicate

    result = deduplicate([Sample(instruction=text) for text in TEXTS], ["exact", "minhash"])
    rejected = {r.row for r in result.rejected}
    return [i for i in range(len(TEXTS)) if i not in rejected]


def text_dedup() -> list[int]:
    import datasets
    from text_dedup.config.algorithms import MinHashAlgorithmConfig
    from text_dedup.config.base import load_config_from_toml
    from text_dedup.minhash import main

    assert MinHashAlgorithmConfig
    Path("rows.jsonl").write_text(rows_as_lines())
    Path("config.toml").write_text(
        '[input]\ninput_type = "local_files"\nfile_type = "json"\n'
        '[input.read_arguments]\npath = "json"\ndata_files = "rows.jsonl"\nsplit = "train"\n'
        '[algorithm]\nalgorithm_name = "minhash"\ntext_column = "text"\n'
        "num_perm = 256\nthreshold = 0.7\nnum_proc = 1\n"
        # Without this setting it removes both rows of each pair that it finds.
        "check_false_positive = true\n"
        '[output]\noutput_dir = "out"\n[debug]\n'
    )
    main(load_config_from_toml(Path("config.toml")))
    return sorted(datasets.load_from_disk("out")["row"])


def data_juicer() -> list[int]:
    from data_juicer.core.data import NestedDataset
    from data_juicer.ops.deduplicator import DocumentMinhashDeduplicator

    data = NestedDataset.from_list([{"text": t, "row": i} for i, t in enumerate(TEXTS)])
    op = DocumentMinhashDeduplicator()
    kept, _ = op.process(data.map(op.compute_hash))
    return sorted(kept["row"])


def datatrove() -> list[int]:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    Path("in").mkdir()
    Path("in/rows.jsonl").write_text(rows_as_lines())
    config = MinhashConfig()
    reader = JsonlReader("in")
    stages = [
        [reader, MinhashDedupSignature("signatures", config=config)],
        [MinhashDedupBuckets("signatures", "buckets", config=config)],
        [MinhashDedupCluster("buckets", "remove", config=config)],
        [reader, MinhashDedupFilter("remove"), JsonlWriter("out", compression=None)],
    ]
    for number, stage in enumerate(stages):
        tasks = config.num_buckets if number == 1 else 1
        LocalPipelineExecutor(stage, tasks=tasks, logging_dir=f"logs/{number}").run()
    lines = [line for p in Path("out").glob("*.jsonl") for line in p.read_text().splitlines()]
    return sorted(json.loads(line)["metadata"]["row"] for line in lines)


def rows_as_lines() -> str:
    return "".join(json.dumps({"text": t, "row": i}) + "\n" for i, t in enumerate(TEXTS))


TOOLS = {
    "instructgen": (instructgen, "instructgen"),
    "text-dedup": (text_dedup, "text-dedup"),
    "data-juicer": (data_juicer, "py-data-juicer"),
    "datatrove": (datatrove, "datatrove"),
}


def main() -> None:
    name = sys.argv[1]
    run, package = TOOLS[name]
    out = json.loads(OUT.read_text()) if OUT.exists() else {"kept_by": {}}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        kept = run()
    out["rows"] = [{"text": text, "kept": kept} for text, kept in ROWS]
    out.setdefault("kept_by", {})[name] = {"version": version(package), "rows": kept}
    OUT.write_text(json.dumps(out, indent=1) + "\n")
    print(name, [i in kept for i in range(len(ROWS))])


if __name__ == "__main__":
    main()
