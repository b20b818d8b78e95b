"""Compares the training speed of `instructgen train sft` with that of a TRL script (tokens/s).

    python benchmarks/train_overhead.py [--rounds 5] [--rows 60]

Both train SmolLM2-135M-Instruct with LoRA for one epoch on the same rows of Dolly, packed
into sequences of 512 tokens, with the same options. They take turns, each time in a new
process. All rows fit into a sequence. With longer rows the training data would differ: TRL
truncates them, instructgen rejects them. Tokens are all tokens that the model reads; the time
is that of training without loading. Single runs differ by up to 8%, so medians are compared.
Writes benchmarks/train_overhead.json. Needs INSTRUCTGEN_DATA and an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

DATA = Path(os.environ.get("INSTRUCTGEN_DATA", "../shared/data"))
RESULT = Path(__file__).with_suffix(".json")
LENGTH, BATCH, RATE = 512, 4, 2e-4

OURS = """
import sys, json, instructgen
data, out = sys.argv[1:3]
facts = instructgen.train("sft", data, out, model="smollm2", peft="lora", epochs=1,
    max_length=%d, batch_size=%d, learning_rate=%r, held_out_rows=0, evaluate=False).facts
print(json.dumps({k: getattr(facts, k) for k in ("tokens_per_s", "steps", "supervised_tokens")}))
"""
BARE = """
import sys, json, os, time, tempfile
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
import torch
from instructgen.models.folders import model_folder
data = sys.argv[1]
folder = model_folder("smollm2")
tokenizer = AutoTokenizer.from_pretrained(folder)
rows = load_dataset("parquet", data_files=data + "/data/*.parquet", split="train")
rows = rows.map(lambda r: {"prompt": r["messages"][:-1], "completion": r["messages"][-1:]},
                remove_columns=rows.column_names)
args = SFTConfig(output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, num_train_epochs=1,
    per_device_train_batch_size=1, gradient_accumulation_steps=%d, learning_rate=%r,
    lr_scheduler_type="cosine", max_length=%d, packing=True, logging_steps=1, save_steps=50,
    gradient_checkpointing=False, report_to=["tensorboard"], disable_tqdm=True, weight_decay=0.0)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
trainer = SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer,
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
began = time.monotonic()
trainer.train()
seconds = time.monotonic() - began
print(json.dumps({"tokens_per_s": trainer._total_train_tokens / seconds,
    "steps": trainer.state.global_step}))
"""


def main() -> None:
    """Run both in turns, and write the speeds and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=60)
    options = parser.parse_args()
    import instructgen

    work = Path(tempfile.mkdtemp())
    dolly = (DATA / "dolly/databricks-dolly-15k.rejoined.jsonl").read_text().splitlines(True)
    (work / "dolly.jsonl").write_text("".join([x for x in dolly if len(x) < 1200][: options.rows]))
    data = instructgen.import_data(work / "dolly.jsonl", work / "dolly").out
    codes = {
        "instructgen": OURS % (LENGTH, BATCH, RATE),
        "trl": BARE % (BATCH, RATE, LENGTH),
    }
    speeds: dict[str, list[float]] = {name: [] for name in codes}
    facts: dict[str, dict[str, float]] = {}
    for number in range(options.rounds):
        # The order alternates, so that a machine that slows down affects both equally.
        for name in sorted(codes, reverse=number % 2 == 1):
            out = work / f"{name}-{number}"
            argv = [sys.executable, "-c", codes[name], str(data), str(out)]
            process = subprocess.run(argv, capture_output=True, text=True, check=True)
            facts[name] = json.loads(process.stdout.splitlines()[-1])
            speeds[name].append(round(facts[name].pop("tokens_per_s"), 1))
            print(name, speeds[name][-1], flush=True)
            shutil.rmtree(out, ignore_errors=True)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    result = {
        "tokens_per_s": speeds,
        "ratio": round(medians["instructgen"] / medians["trl"], 3),
        "rows": options.rows,
        "trained": facts,
        "sequence": LENGTH,
        "batch": BATCH,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            p: version(p) for p in ("instructgen", "trl", "peft", "transformers", "torch")
        },
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(result["ratio"])
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
