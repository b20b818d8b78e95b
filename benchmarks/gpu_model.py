"""Trains the included model on a GPU with real data, and solves problems with the result.

    python benchmarks/gpu_model.py [chat] [math]        adds to benchmarks/gpu_model.json

In the part chat, all weights of SmolLM2-135M-Instruct are trained on Dolly, OASST1 and Alpaca
Libre, and evaluated on human answers; 1 minute. In the part math they are trained on the training
set of GSM8K, the method solve asks the model for eight solutions of each of 250 problems, and GRPO
trains it further on the problems that it solved sometimes; the held-out rows are GSM8K's test set;
9 minutes. The speed is that of the steps after the first five, because the first ones load the
kernels of the GPU. Needs INSTRUCTGEN_DATA.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from grounded import pass_rates, write_problems
from train import DATA, datasets

import instructgen
from instructgen.schema.progress import Progress
from instructgen.training.options import Trainer

RESULT = Path(__file__).with_suffix(".json")
FIRST = 5
OPTIONS = {"max_length": 512, "batch_size": 32, "micro_batch_size": 16, "learning_rate": 1e-4}
PROBLEMS, SAMPLES, STEPS = 250, 8, 12


def import_problems(work: Path) -> None:
    """Import the two parts of GSM8K."""
    names = {"instruction": "question", "output": "answer"}
    for part in ("train", "test"):
        instructgen.import_data(
            DATA / "gsm8k" / f"{part}.jsonl",
            work / f"gsm8k_{part}",
            mapping=names,
            license="MIT",
            language="en",
        )


def trained(rows: Path, out: Path, trainer: Trainer = "sft", **options: Any) -> dict[str, Any]:
    """Train the model; return speed, memory and the evaluation on held-out rows."""
    marks: list[tuple[float, Progress]] = []

    def watch(progress: Progress) -> None:
        if progress.stage == "train":
            marks.append((time.monotonic(), progress))

    torch.cuda.reset_peak_memory_stats()
    given = {"model": "smollm2", **OPTIONS, **options}
    facts = instructgen.train(trainer, rows, out, watch=watch, **given).facts
    assert facts is not None
    (t0, first), (t1, last) = marks[FIRST - 1], marks[-1]
    tokens = last.figures["tokens"] - first.figures["tokens"]
    return {
        "steps": facts.steps,
        "seconds_per_step": round((t1 - t0) / (last.done - first.done), 4),
        "seconds_of_first_steps": round(facts.seconds - (t1 - t0), 1),
        "tokens_per_s": round(tokens / (t1 - t0)),
        "supervised_tokens": facts.supervised_tokens,
        "seconds_in_all": facts.total_seconds,
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "evaluation": [measure.to_dict() for measure in facts.evaluation],
    }


def solved(model: Path, work: Path) -> dict[str, Any]:
    """Solve problems; return the speed and how many problems have each fraction of solutions."""
    seeds, _ = write_problems(PROBLEMS, work)
    began = time.monotonic()
    result = instructgen.generate(
        out=work / "solved",
        model=str(model),
        engine="transformers",
        seeds=seeds,
        target="all",
        license="MIT",
        language="en",
        method="solve",
        samples=SAMPLES,
        settings={
            "engine.batch": 512,
            "generate.acceptance_floor": 0,
            "method.solutions.max_tokens": 200,
        },
    )
    seconds = time.monotonic() - began
    return {
        "problems": PROBLEMS,
        "samples": SAMPLES,
        "rows": result.rows,
        "seconds": round(seconds, 1),
        "output_tokens_per_s": round(result.facts.output_tokens / seconds),
        "pass_rates": pass_rates(work / "solved"),
    }


def chat(work: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Train on conversations and tasks."""
    datasets(work)
    options = {"held_out": work / "dolly", "held_out_rows": 200, "tokens": 200_000}
    yield "sft", trained(work / "clean", work / "sft", **options)


def math(work: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Train on problems, solve others, and train on those that were solved sometimes."""
    import_problems(work)
    model, held_out = work / "sft-math", work / "gsm8k_test"
    options = {"held_out": held_out, "held_out_rows": 256, "epochs": 1.0}
    yield "sft", trained(work / "gsm8k_train", model, **options)
    yield "solve", solved(model, work)
    rewarded = trained(
        work / "solved",
        work / "grpo",
        "grpo",
        model=str(model),
        reward=["verifiers:math"],
        pass_rate="0.1:0.9",
        held_out=held_out,
        held_out_rows=96,
        generations=8,
        max_new_tokens=160,
        batch_size=16,
        micro_batch_size=8,
        learning_rate=1e-5,
        steps=STEPS,
    )
    yield "grpo", rewarded


def main() -> None:
    """Run the parts, and write the result of each step when it has ended."""
    report = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in sys.argv[1:] or ("chat", "math"):
        report[name] = {
            "gpu": torch.cuda.get_device_name(0),
            "cores": os.cpu_count(),
            "versions": {
                "instructgen": instructgen.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "trl": trl.__version__,
            },
        }
        for key, found in {"chat": chat, "math": math}[name](Path(tempfile.mkdtemp())):
            report[name][key] = found
            RESULT.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
