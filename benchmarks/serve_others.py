"""Runs another tool on the job of `serve.py`, against the same imitated model server.

    PYTHON serve_others.py NAME --rows 2000 --url http://127.0.0.1:8765 --folder EMPTY_FOLDER

PYTHON is that of an environment in which the tool NAME is installed: `data-designer` (written for
0.9.7), `curator` (bespokelabs-curator 0.1.31) or `distilabel` (1.5.3, with `requests` and
`openai<2`, because it logs each request of later versions). The first two need the tokenizer
cl100k_base, from the internet or from TIKTOKEN_CACHE_DIR. `instructgen` is an earlier version of
instructgen, such as a checkout of 0.3.0 in PYTHONPATH; PYTHON is then a script that sets this.

The job: from the instructions of the included seed tasks, make ROWS new instructions with one
answer each. The tools do it as their documentation shows, with default settings, but without
telemetry or results of earlier runs. By default, data-designer sends 4 requests at a time; curator
limits itself to 200 requests and 100,000 tokens per minute; each step of distilabel sends 50 and
waits for all of them, and it asks for at most 128 tokens, while the others set no limit.
`--parallel` and `--max-tokens` set these with the documented option of each tool.
The last line is JSON; `accepted` counts the instructions that instructgen's filter would keep.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import resource
import urllib.request
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

GENERAL = Path(__file__).resolve().parent.parent / "seeds" / "general.jsonl"


@dataclass
class Job:
    """What to make (`each` instructions per seed), and the CPU time at the start."""

    rows: int
    each: int
    seeds: list[str]
    url: str
    folder: Path
    parallel: int | None
    max_tokens: int | None
    cpu: float = 0.0

    def begin(self) -> None:
        """Begin to count the requests and the CPU time."""
        urllib.request.urlopen(f"{self.url}/reset", data=b"").close()
        self.cpu = cpu_seconds()


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in usages)


def data_designer(job: Job) -> list[str]:
    """Make a dataset with a column for the instruction and a column for its answer."""
    import data_designer.config as dd
    import pandas as pd
    from data_designer.interface import DataDesigner

    limits = {"max_parallel_requests": job.parallel, "max_tokens": job.max_tokens}
    params = dd.ChatCompletionInferenceParams(**{k: v for k, v in limits.items() if v})
    model = dd.ModelConfig(alias="m", model="m", provider="server", inference_parameters=params)
    provider = dd.ModelProvider(name="server", endpoint=f"{job.url}/v1", api_key="x")
    designer = DataDesigner(artifact_path=job.folder / "artifacts", model_providers=[provider])
    builder = dd.DataDesignerConfigBuilder(model_configs=[model])
    builder.with_seed_dataset(dd.DataFrameSeedSource(df=pd.DataFrame({"seed": job.seeds})))
    prompt = "Here is a task:\n\n{{ seed }}\n\nWrite one new task of another kind. Write only it."
    for name, text in (("instruction", prompt), ("answer", "{{ instruction }}")):
        builder.add_column(dd.LLMTextColumnConfig(name=name, model_alias="m", prompt=text))
    job.begin()
    made = designer.create(builder, num_records=job.rows).load_dataset()
    return list(made.dropna(subset=["instruction", "answer"])["instruction"])


def curator(job: Job) -> list[str]:
    """Ask for several instructions per seed, then for the answers."""
    from bespokelabs import curator as tool

    class Instructions(tool.LLM):
        def prompt(self, row: dict[str, str]) -> str:
            return f"Write {job.each} new instructions, numbered, like this one:\n\n{row['seed']}"

        def parse(self, row: dict[str, str], response: str) -> list[dict[str, str]]:
            lines = re.finditer(r"^\d+\.\s*(?P<instruction>.+)$", response, re.MULTILINE)
            return [line.groupdict() for line in lines]

    class Answers(tool.LLM):
        def prompt(self, row: dict[str, str]) -> str:
            return row["instruction"]

        def parse(self, row: dict[str, str], response: str) -> dict[str, str]:
            return {"instruction": row["instruction"], "answer": response}

    most = {"max_tokens": job.max_tokens} if job.max_tokens else {}
    backend = {"base_url": f"{job.url}/v1", "api_key": "x"}
    if job.parallel:
        # Its limits per minute are otherwise lower than what these slots answer.
        backend |= {"max_requests_per_minute": 10**6, "max_tokens_per_minute": 10**9}
        backend["max_concurrent_requests"] = job.parallel
    kwargs = {"backend": "openai", "generation_params": most}
    several = Instructions("m", backend_params={**backend}, **kwargs)
    answers = Answers("m", backend_params={**backend}, **kwargs)
    job.begin()
    made = answers(several([{"seed": seed} for seed in job.seeds])).dataset
    return list(made["instruction"])


def distilabel(job: Job) -> list[str]:
    """Run a pipeline with the steps SelfInstruct and TextGeneration."""
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import ExpandColumns, LoadDataFromDicts
    from distilabel.steps.tasks import SelfInstruct, TextGeneration

    def llm() -> OpenAILLM:
        most = {"max_new_tokens": job.max_tokens} if job.max_tokens else {}
        return OpenAILLM(model="m", base_url=f"{job.url}/v1", api_key="x", generation_kwargs=most)

    size = {"input_batch_size": job.parallel} if job.parallel else {}
    with Pipeline(name="serve", cache_dir=job.folder / "pipelines") as pipeline:
        seeds = LoadDataFromDicts(data=[{"input": seed} for seed in job.seeds])
        several = SelfInstruct(llm=llm(), num_instructions=job.each, **size)
        expand = ExpandColumns(columns={"instructions": "instruction"})
        answers = TextGeneration(llm=llm(), **size)
        seeds >> several >> expand >> answers
    job.begin()
    made = pipeline.run(use_cache=False)["default"]["train"]
    return [row["instruction"] for row in made if row["generation"] is not None]


def instructgen(job: Job) -> list[str]:
    """Run `generate` of another version with its default recipe and one instance per task."""
    import tomllib

    import pyarrow.dataset

    import instructgen as tool

    root = Path(tool.__file__).resolve().parent.parent
    recipe = tomllib.loads((root / "filters" / "default.toml").read_text())
    recipe["method"]["max_instances"] = 1
    job.begin()
    tool.generate(
        GENERAL,
        job.rows,
        job.folder / "run",
        engine="openai",
        endpoint=f"{job.url}/v1",
        model="m",
        recipe=recipe,
    )
    rows = pyarrow.dataset.dataset(job.folder / "run" / "data")
    return list(rows.to_table(["instruction"])["instruction"].to_pylist())


def installed(tool: str) -> str:
    """Return the version of a tool."""
    if tool != "instructgen":
        return version({"curator": "bespokelabs-curator"}.get(tool, tool))
    import tomllib

    import instructgen as package

    project = Path(package.__file__).resolve().parent.parent / "pyproject.toml"
    return str(tomllib.loads(project.read_text())["project"]["version"])


def common(first: list[str], second: list[str]) -> int:
    """Return the length of the longest common subsequence (Hyyrö's algorithm)."""
    places: dict[str, int] = {}
    for at, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << at
    state = every = (1 << len(first)) - 1
    for word in second:
        both = state & places.get(word, 0)
        state = (state + both | state - both) & every
    return len(first) - state.bit_count()


def accepted(seeds: list[str], texts: list[str]) -> int:
    """Count the texts whose ROUGE-L with every seed and every counted text is at most 0.7."""
    known: list[list[str]] = []
    having: dict[tuple[str, int], list[int]] = {}
    for at, text in enumerate((*seeds, *texts)):
        words = re.findall(r"[^\W_]+", text.lower())
        # The second occurrence of a word is another key than the first.
        keys = {(w, n) for w, count in Counter(words).items() for n in range(count)}
        shared = Counter(other for key in keys for other in having.get(key, ()))
        # The common words limit the length of the common subsequence. Integers compare exactly.
        near = (known[o] for o, n in shared.items() if 20 * n > 7 * (len(words) + len(known[o])))
        same = any(20 * common(words, o) > 7 * (len(words) + len(o)) for o in near)
        if at >= len(seeds) and (same or not words):
            continue
        for key in keys:
            having.setdefault(key, []).append(len(known))
        known.append(words)
    return len(known) - len(seeds)


def main() -> None:
    """Do the job with the tool that the command line names, and print the result."""
    tools = {
        "data-designer": data_designer,
        "curator": curator,
        "distilabel": distilabel,
        "instructgen": instructgen,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=tools)
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--url", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    for name in ("--parallel", "--max-tokens"):
        parser.add_argument(name, type=int, help="default: that of the tool")
    args = parser.parse_args()
    # The tools read these when they are imported, and keep their caches below HOME.
    folder = str(args.folder.absolute())
    os.environ |= dict.fromkeys(("HOME", "HF_HOME", "CURATOR_CACHE_DIR"), folder)
    os.environ |= dict.fromkeys(("HF_HUB_OFFLINE", "CURATOR_DISABLE_CACHE"), "1")
    os.environ |= dict.fromkeys(("NEMO_TELEMETRY_ENABLED", "TELEMETRY_ENABLED"), "false")
    seeds = [json.loads(line)["instruction"] for line in GENERAL.read_text().splitlines()]
    # The server answers with one word to a prompt that ends with these words.
    usable = [seed for seed in seeds if "yes or no" not in seed.lower()]
    each = math.ceil(args.rows / len(usable))
    usable = usable[: math.ceil(args.rows / each)]
    job = Job(args.rows, each, usable, args.url, args.folder, args.parallel, args.max_tokens)
    made = tools[args.tool](job)
    cpu = cpu_seconds() - job.cpu
    requests = json.load(urllib.request.urlopen(f"{args.url}/stats"))["requests"]
    result = {"accepted": accepted(seeds, made), "made": len(made), "version": installed(args.tool)}
    print(json.dumps({**result, "cpu_ms_per_request": round(1e3 * cpu / requests, 3)}))


if __name__ == "__main__":
    main()
