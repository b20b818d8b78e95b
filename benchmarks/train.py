"""Runs all trainers on a real model and real data, and evaluates each on held-out rows.

    python benchmarks/train.py            writes benchmarks/train.json

The model is SmolLM2-135M-Instruct with LoRA on the CPU. SFT is trained on Dolly, OASST1 and
Alpaca Libre, and evaluated on human-written answers. The reward model, DPO and KTO use the
ranks of OASST1. GRPO, RLOO and PPO use constraints that a program checks. Needs
INSTRUCTGEN_DATA; two hours on two cores. --only selects stages. A completed stage is not
trained again.
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
    """Import the datasets of the stages and curate the SFT data."""
    instructgen.import_data(DATA / "dolly/databricks-dolly-15k.rejoined.jsonl", work / "dolly")
    oasst = DATA / "oasst1/oasst1-en-validation.messages.jsonl"
    instructgen.import_data(oasst, work / "oasst", "oasst")
    instructgen.import_data(oasst, work / "pairs", "oasst", shape="preferences")
    instructgen.import_data(DATA / "alpaca-libre/alpaca_libre_tasks_v1.jsonl", work / "libre")
    instructgen.merge([work / "dolly", work / "oasst", work / "libre"], work / "mix")
    instructgen.curate(work / "mix", work / "clean")


def constrained(work: Path) -> None:
    """Import short questions of Dolly, each with one of three constraints on the answer."""
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
    """Return the trainer, dataset, base model and options of each stage."""
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
        # One pair per micro-batch needs no padding between pairs and is fastest on a CPU.
        "micro_batch_size": 1,
        "dtype": "bfloat16",
    }
    return {
        "sft": {
            "trainer": "sft",
            "data": work / "clean",
            "model": model,
            # Human-written; rows with the same questions are not used for training.
            "held_out": work / "dolly",
            "held_out_rows": 200,
            "tokens": 40_000,
            "batch_size": 4,
        },
        "reward": {
            "trainer": "reward",
            "data": work / "pairs",
            "model": sft,
            "steps": 160,
            **pairs,
        },
        "dpo": {
            "trainer": "dpo",
            "data": work / "pairs",
            "model": sft,
            "steps": 100,
            "learning_rate": 5e-5,
            **pairs,
        },
        "kto": {
            "trainer": "kto",
            "data": work / "pairs",
            "model": sft,
            "steps": 100,
            "learning_rate": 5e-5,
            **pairs,
            # KTO compares the rows of a micro-batch with each other, so one row is not enough.
            "micro_batch_size": 4,
        },
        "grpo": {
            "trainer": "grpo",
            "data": work / "constrained",
            "model": sft,
            **online,
            "generations": 6,
        },
        "rloo": {"trainer": "rloo", "data": work / "constrained", "model": sft, **online},
        "ppo": {
            "trainer": "ppo",
            "data": work / "constrained",
            "model": sft,
            **online,
            "batch_size": 16,
        },
    }


def main() -> None:
    """Run the stages and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/bench-train"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    datasets(arguments.work)
    constrained(arguments.work)
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {"stages": {}}
    for name, stage in stages(arguments.work, arguments.model).items():
        if arguments.only and name not in arguments.only:
            continue
        trainer, data = stage.pop("trainer"), stage.pop("data")
        trained = instructgen.train(trainer, data, arguments.work / name, **{**ADAPTERS, **stage})
        # Plain data: the evaluation and the row counts are dataclasses.
        facts = trained.facts.to_dict()
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
            "model": arguments.model,
            "adapters": ADAPTERS,
            "versions": facts["versions"],
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        }
        RESULT.write_text(json.dumps(results, indent=1) + "\n")
        print(name, json.dumps(facts["evaluation"]), flush=True)


if __name__ == "__main__":
    main()
