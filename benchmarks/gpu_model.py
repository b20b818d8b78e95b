"""Trains the included model on a GPU with real data, and solves problems with the result.

    python benchmarks/gpu_model.py        writes benchmarks/gpu_model.json

SmolLM2-135M-Instruct, all weights, is trained on Dolly, OASST1 and Alpaca Libre, and on the
training set of GSM8K; held-out rows are human answers, and GSM8K's test set. The speed is that of
the steps after the first five, because the first ones load the kernels of the GPU. Then the method
solve asks the second model for eight solutions of each of 250 problems. Needs INSTRUCTGEN_DATA;
4 minutes.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from grounded import pass_rates, write_problems
from train import DATA, datasets

import instructgen
from instructgen.schema.progress import Progress

RESULT = Path(__file__).with_suffix(".json")
FIRST = 5
OPTIONS = {"max_length": 512, "batch_size": 32, "micro_batch_size": 16, "learning_rate": 1e-4}
PROBLEMS, SAMPLES = 250, 8


def prepare(work: Path) -> None:
    """Import the datasets."""
    datasets(work)
    names = {"instruction": "question", "output": "answer"}
    for part in ("train", "test"):
        instructgen.import_data(
            DATA / "gsm8k" / f"{part}.jsonl",
            work / f"gsm8k_{part}",
            mapping=names,
            license="MIT",
            language="en",
        )


def trained(rows: Path, out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Train the model; return speed, memory and the evaluation on held-out rows."""
    marks: list[tuple[float, Progress]] = []

    def watch(progress: Progress) -> None:
        if progress.stage == "train":
            marks.append((time.monotonic(), progress))

    torch.cuda.reset_peak_memory_stats()
    facts = instructgen.train(
        "sft", rows, out, model="smollm2", watch=watch, **OPTIONS, **options
    ).facts
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


def main() -> None:
    """Train two models, solve problems with the second one, and write the results."""
    work = Path(tempfile.mkdtemp())
    prepare(work)
    human = {"held_out": work / "dolly", "held_out_rows": 200, "tokens": 200_000}
    math = {"held_out": work / "gsm8k_test", "held_out_rows": 256, "epochs": 1.0}
    report = {
        "gpu": torch.cuda.get_device_name(0),
        "cores": os.cpu_count(),
        "versions": {
            "instructgen": instructgen.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "trl": trl.__version__,
        },
        "sft": trained(work / "clean", work / "sft", human),
        "sft_math": trained(work / "gsm8k_train", work / "sft-math", math),
        "solve": solved(work / "sft-math", work),
    }
    RESULT.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
