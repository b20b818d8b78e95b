"""Measures how well the loop uses a server, against an imitated model server.

    python benchmarks/serve.py [--slots 16 64 256] [--rows 2000] [--out benchmarks/serve.json]
    python benchmarks/serve.py --slots --other distilabel=PYTHON \\
        --other "data-designer=PYTHON --parallel 64" --other "curator=PYTHON --parallel 64"
    python benchmarks/serve.py --slots --rows 500 --other instructgen-0.3.0=PYTHON

The server (`model_server.py`) answers at most SLOTS requests at a time, and one answer in a hundred
is very long. `generate` runs with its default settings, one instance per instruction. Other tools
do the same job (as many new instructions with an answer as there are rows) on the same server, each
with the Python of an environment in which it is installed (`serve_others.py` has the options).
Their accepted rows are those that the same filter for similar instructions would keep. The results
are added to the file; a run of the same tool, slots and target is replaced. The rates depend on the
machine, the ratios less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GENERAL = ROOT / "seeds" / "general.jsonl"
# At the end of a run, the last drafts wait for their longest answer.
TAIL = 128


@contextmanager
def server(slots: int, rate: float = 50.0) -> Iterator[str]:
    """Run the imitated server in a process of its own, and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--port", port, "--slots", slots, "--rate", rate]
    script = ROOT / "benchmarks" / "model_server.py"
    process = subprocess.Popen([sys.executable, str(script), *map(str, words)])
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                get(f"{url}/stats")
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


def get(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=30) as answer:
        result: dict[str, Any] = json.load(answer)
    return result


def recipe() -> dict[str, Any]:
    """Return the default recipe, with one instance per instruction."""
    import tomllib

    default = tomllib.loads((ROOT / "filters" / "default.toml").read_text())
    method = {**default["method"], "max_instances": 1}
    return {**default, "method": method}


def ours(url: str, rows: int, folder: Path, in_flight: int | None) -> dict[str, Any]:
    """Run `generate` in this process; return times and CPU seconds, without imports and start."""
    import instructgen
    from instructgen.generation.loop import Loop

    marks: list[tuple[float, float, int]] = []
    commit = Loop.commit

    def marked(self: Loop, *args: Any) -> None:
        commit(self, *args)
        marks.append((time.process_time(), time.time(), self.tally.kept_rows))

    Loop.commit = marked  # type: ignore[method-assign]
    result = instructgen.generate(
        GENERAL,
        rows,
        folder / "run",
        engine="openai",
        endpoint=f"{url}/v1",
        model="m",
        recipe=recipe(),
        in_flight=in_flight,
    )
    accepted = [m for m in marks if m[2]]
    return {
        "accepted": result.rows,
        "requests_used": result.facts.requests,
        "mean_in_flight": round(result.mean_in_flight, 1),
        "cpu_ms_per_request": round(1e3 * (marks[-1][0] - marks[0][0]) / (len(marks) - 1), 3),
        "first_row_at": accepted[0][1],
        "before_tail_at": next((m[1] for m in marks if m[2] >= rows - TAIL > 0), None),
    }


def measured(url: str, python: str, words: list[str]) -> dict[str, Any]:
    """Run one of the jobs in a process of its own; return its result and the server's counts."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        done = subprocess.run(
            [python, *words, "--url", url, "--folder", folder],
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        wall = time.time() - began
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    stats = get(f"{url}/stats")
    busy = stats.pop("busy_per_s")
    started = stats.pop("started")
    slots = max(1.0, stats.pop("slots"))
    result |= stats
    result["requests_per_row"] = round(stats["requests"] / max(1, result["accepted"]), 3)
    result["rows_per_s"] = round(result["accepted"] / stats["wall_s"], 2)
    result["process_s"] = round(wall, 1)
    if (end := result.pop("before_tail_at", None)) is not None:
        seconds = busy[: max(1, int(end - started))]
        result["slots_busy_before_tail"] = round(sum(seconds) / len(seconds) / slots, 4)
    first = result.pop("first_row_at", None)
    if first is not None and stats["median_latency_s"]:
        result["first_row_in_latencies"] = round((first - started) / stats["median_latency_s"], 2)
    return result


def client_cpu(windows: list[int]) -> list[dict[str, Any]]:
    """Measure the CPU time of the HTTP client per request, by the number of requests in flight."""
    from instructgen.engines import Request, Sampling
    from instructgen.engines.openai import OpenAIEngine
    from instructgen.engines.supervisor import Supervisor

    results = []
    for window in windows:
        with server(max(windows)) as url:
            engine = OpenAIEngine(model="m", endpoint=f"{url}/v1")
            supervisor = Supervisor(engine)
            count, text = max(3_000, 8 * window), GENERAL.read_text()[:600]
            requests = [
                Request(f"{text} {i}", Sampling(max_tokens=12, seed=i)) for i in range(count)
            ]
            supervisor.submit(0, requests[0])
            supervisor.receive()
            began, sent, done = time.process_time(), 1, 1
            while done < count:
                while sent < count and sent - done < window:
                    supervisor.submit(sent, requests[sent])
                    sent += 1
                if supervisor.receive() is not None:
                    done += 1
            cpu = time.process_time() - began
            supervisor.close()
        results.append(
            {
                "in_flight": window,
                "requests": count,
                "cpu_ms_per_request": round(1e3 * cpu / count, 3),
            }
        )
    return results


def loop_cpu(rows: int) -> dict[str, Any]:
    """Measure the CPU time of the loop's thread per request, with the engine echo.

    The engine runs in another thread, whose time does not count.
    """
    import instructgen
    from instructgen.generation.loop import Loop

    marks: list[float] = []
    commit = Loop.commit

    def marked(self: Loop, *args: Any) -> None:
        commit(self, *args)
        marks.append(time.thread_time())

    Loop.commit = marked  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        result = instructgen.generate(GENERAL, rows, Path(folder) / "run", engine="echo")
    Loop.commit = commit  # type: ignore[method-assign]
    # The first requests compile regular expressions and load the compiled search.
    first = len(marks) // 10
    spent = marks[-1] - marks[first]
    return {
        "rows": result.rows,
        "requests": result.facts.requests,
        "candidates": result.facts.candidates,
        "cpu_ms_per_request": round(1e3 * spent / (len(marks) - 1 - first), 3),
    }


def slower_after_pauses() -> float:
    """Return the CPU time of a loop of additions after pauses of 20 ms, divided by that without.

    A busy server sends its answers one by one, so that the client pauses before each of them. Many
    processors, and above all virtual ones, are slow for some milliseconds after a pause.
    """

    def additions(pause_s: float) -> float:
        spent = []
        for _ in range(100):
            time.sleep(pause_s)
            began, total = time.thread_time(), 0
            for i in range(12_000):
                total += i
            spent.append(time.thread_time() - began)
        return statistics.median(spent)

    return round(additions(0.02) / additions(0.0), 2)


def versions() -> dict[str, str]:
    import instructgen

    names = {"python": platform.python_version(), "instructgen": instructgen.__version__}
    for name in ("aiohttp", "uvloop"):
        try:
            names[name] = version(name)
        except PackageNotFoundError:
            continue
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, nargs="*", default=[16, 64, 256])
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--other", action="append", default=[], metavar="NAME=PYTHON [OPTIONS]")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "serve.json")
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.url:
        print(json.dumps(ours(args.url, args.rows, args.folder, None)))
        return
    result: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    result |= {
        "what": "generate against an imitated model server, with default settings",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": versions(),
    }
    runs: list[dict[str, Any]] = result.pop("runs", [])

    def add(run: dict[str, Any]) -> None:
        key = ("tool", "options", "slots", "target", "tokens_per_s_of_an_answer")
        runs[:] = [r for r in runs if [r[k] for k in key] != [run[k] for k in key]]
        runs.append(run)
        print(json.dumps(run))

    if args.slots:
        result["slower_after_pauses"] = slower_after_pauses()
        result["loop_cpu_with_echo"] = loop_cpu(5_000)
        result["client_cpu"] = client_cpu([32, 64, 128, 256, 512])
    jobs = [(slots, rows, 50.0) for slots in args.slots for rows in (args.rows, 100)]
    # Without any latency, the CPU time of the client decides how many requests it can make.
    jobs += [(64, args.rows, 0.0)] * bool(args.slots)
    for slots, rows, rate in jobs:
        with server(slots, rate) as url:
            run = measured(url, sys.executable, [__file__, "--rows", str(rows)])
        facts = {"tool": "instructgen", "options": "", "slots": slots, "target": rows}
        add({**facts, "tokens_per_s_of_an_answer": rate, **run})
    for other in args.other:
        name, _, rest = other.partition("=")
        python, *options = shlex.split(rest)
        script = str(ROOT / "benchmarks" / "serve_others.py")
        # An earlier version is also compared without latency.
        for rate in (50.0, 0.0) if name.startswith("instructgen") else (50.0,):
            with server(64, rate) as url:
                # The version in instructgen-0.3.0 is only for the reader.
                words = [script, name.partition("-0")[0], "--rows", str(args.rows), *options]
                run = measured(url, python, words)
            facts = {"tool": name, "options": " ".join(options), "slots": 64, "target": args.rows}
            add({**facts, "tokens_per_s_of_an_answer": rate, **run})
    args.out.write_text(json.dumps({**result, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
