"""Every way to train, on a real model and real data: what each does to rows it never saw.

    python benchmarks/train.py            writes benchmarks/train.json

SmolLM2-135M-Instruct with LoRA on the CPU: SFT on Dolly, OASST1 and Alpaca Libre,
measured on answers that people wrote; a reward model, DPO and KTO on OASST1's ranks;
GRPO, RLOO and PPO on constraints that a program checks. Needs INSTRUCTGEN_DATA. Two
hours on two cores; --only takes some of it, and a stage that is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
from pathlib import Path
from typing import Any

import instructgen
from instructgen.store import read_rows
from instructgen.verifiers.constraints import KINDS, Constraint

DATA = Path(os.environ.get("INSTRUCTGEN_DATA", "../shared/data"))
RESULT = Path(__file__).with_suffix(".json")
ADAPTERS = {"peft": "lora", "max_length": 512, "seed": 0}


def datasets(work: Path) -> None:
    """Import what the stages read."""
    instructgen.import_data(DATA / "dolly/databricks-dolly-15k.rejoined.jsonl", work / "dolly")
    oasst = DATA / "oasst1/oasst1-en-validation.messages.jsonl"
    instructgen.import_data(oasst, work / "oasst", "oasst")
    instructgen.import_data(oasst, work / "pairs", "oasst", shape="preferences")
    instructgen.import_data(DATA / "alpaca-libre/alpaca_libre_tasks_v1.jsonl", work / "libre")
    instructgen.merge([work / "dolly", work / "oasst", work / "libre"], work / "mix")
    instructgen.curate(work / "mix", work / "clean")


def constrained(work: Path) -> None:
    """Dolly's short questions, each with one of three constraints on the answer's form."""
    rng, lines = random.Random(0), []
    for row in read_rows(work / "dolly"):
        if row["input"] or len(row["instruction"].split()) > 20:
            continue
        name = rng.choice(("words_at_most", "sentences", "no_comma"))
        constraint = Constraint(name, KINDS[name].draw(rng))
        lines.append(
            {
                "task": f"{row['instruction']}\n\n{constraint.words}",
                "answer": row["output"],
                "check": constraint.dumps(),
            }
        )
    file = work / "constrained.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines[:3000]))
    names = {"instruction": "task", "output": "answer", "label.constraint": "check"}
    instructgen.import_data(
        file, work / "constrained", mapping=names, license="CC-BY-SA-3.0", language="en"
    )


def stages(work: Path, model: str) -> dict[str, dict[str, Any]]:
    """What each stage trains, from what, on what."""
    sft = str(work / "sft")
    online = {
        "reward": ["verifiers:ifeval"],
        "held_out_rows": 128,
        "max_new_tokens": 48,
        "max_length": 160,
        "batch_size": 4,
        "learning_rate": 4e-4,
        "steps": 40,
        "dtype": "bfloat16",
    }
    pairs = {
        "held_out_rows": 150,
        "max_length": 384,
        "batch_size": 4,
        # One pair at a time pads least, and is fastest on a CPU.
        "micro_batch_size": 1,
        "dtype": "bfloat16",
    }
    return {
        "sft": {
            "method": "sft",
            "data": work / "clean",
            "model": model,
            # People wrote these; no row with one of their questions is trained on.
            "held_out": work / "dolly",
            "held_out_rows": 200,
            "tokens": 40_000,
            "batch_size": 4,
        },
        "reward": {
            "method": "reward",
            "data": work / "pairs",
            "model": sft,
            "steps": 160,
            **pairs,
        },
        "dpo": {
            "method": "dpo",
            "data": work / "pairs",
            "model": sft,
            "steps": 100,
            "learning_rate": 5e-5,
            **pairs,
        },
        "kto": {
            "method": "kto",
            "data": work / "pairs",
            "model": sft,
            "steps": 100,
            "learning_rate": 5e-5,
            **pairs,
            # It compares the rows of a batch with each other.
            "micro_batch_size": 4,
        },
        "grpo": {
            "method": "grpo",
            "data": work / "constrained",
            "model": sft,
            **online,
            "generations": 6,
        },
        "rloo": {"method": "rloo", "data": work / "constrained", "model": sft, **online},
        "ppo": {
            "method": "ppo",
            "data": work / "constrained",
            "model": sft,
            **online,
            "batch_size": 16,
        },
    }


def main() -> None:
    """Run the stages and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/bench-train"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--only", nargs="*")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    datasets(given.work)
    constrained(given.work)
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {"stages": {}}
    for name, stage in stages(given.work, given.model).items():
        if given.only and name not in given.only:
            continue
        method, data = stage.pop("method"), stage.pop("data")
        done = instructgen.train(method, data, given.work / name, **{**ADAPTERS, **stage})
        facts = done.facts
        results["stages"][name] = {
            "base": Path(facts["base"]).name,
            "data": Path(data).name,
            "options": {k: v for k, v in stage.items() if k not in ("model", "held_out")},
            "rows": facts["rows"],
            "steps": facts["steps"],
            "supervised_tokens": facts["supervised_tokens"],
            "seconds": facts["seconds"],
            "reload": facts["reload"],
            "evaluation": facts["evaluation"],
        }
        results |= {
            "model": given.model,
            "adapters": ADAPTERS,
            "versions": facts["versions"],
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        }
        RESULT.write_text(json.dumps(results, indent=1) + "\n")
        print(name, json.dumps(facts["evaluation"]), flush=True)


if __name__ == "__main__":
    main()
