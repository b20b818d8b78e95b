"""Predicts how long runs take on 1 to 1,024 GPUs, by a discrete-event simulation.

    python benchmarks/scale_model.py [--out benchmarks/scale_model.json]

The simulation has replicas with slots, and one coordinator that processes completions one after
the other. It is fed with measured figures: seconds of the coordinator per request (serve.json,
scale.json), of the filter `novelty` by the size of the pool (scale.json), and of the journal. The
speed of a GPU is cited. Two measured runs are predicted too, to compare the predictions with them.
Everything about GPUs is computed, not measured.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import random
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simulated_engine import tokens

HERE = Path(__file__).parent
# Llama-3.1-8B (FP8) with vLLM 0.10.0 on one H100: 5,777 output tokens/s, offline scenario of MLPerf
# Inference 5.1 ("Efficient and reproducible LLM inference: Red Hat MLPerf Inference v5.1 results").
H100_TOKENS_PER_S, H100_SLOTS = 5_777.0, 256
# The line of a completion takes about this many bytes in the journal, and its request 100.
JOURNAL_BYTES, DISK_BYTES_PER_S = 1_300, 500e6
# The most completions that are simulated. For many GPUs, fewer of them are simulated, with a
# coordinator that is slower by the same factor.
MOST = 60_000


@dataclass(frozen=True)
class Machine:
    """GPUs with slots that make tokens at a rate, and what the coordinator needs per request."""

    gpus: int
    slots: int
    tokens_per_s_per_slot: float
    coordinator_s: float
    # A server's window is found by doubling; a replica's is known.
    measured_window: bool = False


def simulated(machine: Machine, requests: int, novelty_s: float = 0.0) -> tuple[float, float]:
    """Return the seconds of a run, and its completions per second until the last request is sent.

    Events are the completion of a request by its slot, and its processing by the coordinator,
    which then issues another request.
    """
    rng = random.Random(0)
    slots = machine.gpus * machine.slots
    window = 32 if machine.measured_window else slots + slots // 8
    service = machine.coordinator_s + novelty_s
    # The times of completions, and requests that wait for a slot.
    running: list[float] = []
    waiting: deque[float] = deque()
    issued = done = 0
    coordinator = last_issue = 0.0
    before_end = 0

    def issue(at: float) -> None:
        nonlocal issued, last_issue
        issued, last_issue = issued + 1, at
        if len(running) < slots:
            heapq.heappush(running, at + tokens(rng) / machine.tokens_per_s_per_slot)
        else:
            waiting.append(at)

    in_flight = 0
    while in_flight < min(window, requests):
        # The coordinator makes the first requests too.
        coordinator += service / 2
        issue(coordinator)
        in_flight += 1
    end = coordinator
    while done < requests:
        at = heapq.heappop(running)
        done += 1
        if waiting:
            start = max(at, waiting.popleft())
            heapq.heappush(running, start + tokens(rng) / machine.tokens_per_s_per_slot)
        coordinator = max(coordinator, at) + service
        end = coordinator
        in_flight -= 1
        if machine.measured_window and done % max(4, window // 16) == 0 and window < slots * 9 // 8:
            window = min(2 * window, slots * 9 // 8)
        while issued < requests and in_flight < window:
            issue(coordinator)
            in_flight += 1
        if issued < requests:
            before_end = done
    rate = before_end / last_issue if last_issue else 0.0
    return end, rate


def interpolated(points: dict[int, float], size: float) -> float:
    """Return the novelty seconds at a pool size, on a line through the points in logarithms."""
    sizes = sorted(points)
    low, high = sizes[0], sizes[1]
    for a, b in itertools.pairwise(sizes):
        if size >= a:
            low, high = a, b
    slope = math.log(points[high] / points[low]) / math.log(high / low)
    return float(points[low] * (max(size, 1.0) / low) ** max(slope, 0.0))


def run_seconds(
    machine: Machine, rows: float, per_row: float, novelty: dict[int, float]
) -> tuple[float, str]:
    """Return the seconds of a run with many rows, and what limits it at its end."""
    seconds, begin, limit = 0.0, 0.0, ""
    steps = [rows * 10 ** (-k / 2) for k in range(8, -1, -1)]
    for size in steps:
        cost = interpolated(novelty, size)
        window = machine.gpus * machine.slots
        factor = max(1.0, 6 * window / MOST)
        smaller = replace(
            machine,
            gpus=max(1, round(machine.gpus / factor)),
            coordinator_s=factor * machine.coordinator_s,
        )
        count = max(2_000, 6 * smaller.gpus * smaller.slots)
        rate = factor * simulated(smaller, count, factor * cost)[1]
        engines = window * machine.tokens_per_s_per_slot / mean_tokens()
        disk = DISK_BYTES_PER_S / JOURNAL_BYTES
        rate = min(rate, disk, engines)
        seconds += (size - begin) * per_row / rate
        begin = size
        if rate > 0.9 * engines:
            limit = "GPUs"
        elif rate > 0.9 * disk:
            limit = "disk"
        else:
            limit = "novelty" if cost > machine.coordinator_s else "coordinator"
    return seconds, limit


def mean_tokens() -> float:
    """Return the mean length of an answer."""
    rng = random.Random(1)
    return sum(tokens(rng) for _ in range(20_000)) / 20_000


def main() -> None:
    """Compare predictions with measured runs, and write the table of predictions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    serve = json.loads((HERE / "serve.json").read_text())
    scale = json.loads((HERE / "scale.json").read_text())
    novelty = {r["pool"]: r["novelty_ms_per_request"] / 1e3 for r in scale["novelty"]}
    checks = []
    ours = [r for r in serve["runs"] if r["tool"] == "instructgen" and r["target"] == 2_000]
    for run in ours:
        if rate := run["tokens_per_s_of_an_answer"]:
            machine = Machine(1, run["slots"], rate, run["cpu_ms_per_request"] / 1e3, True)
            seconds, _ = simulated(machine, round(run["requests_per_row"] * run["accepted"]))
            predicted = run["accepted"] / seconds
            checks.append(
                {
                    "run": f"generate, one server with {run['slots']} slots, 2,000 rows",
                    "measured_rows_per_s": run["rows_per_s"],
                    "predicted_rows_per_s": round(predicted, 2),
                    "ratio": round(predicted / run["rows_per_s"], 3),
                }
            )
    per_row = max(run["requests_per_row"] for run in ours)
    table: list[dict[str, Any]] = []
    cpu = (
        scale["replicas"]["8"]["cpu_ms_per_request"] / 1e3
        + serve["loop_cpu_with_echo"]["cpu_ms_per_request"] / 1e3
    )
    for gpus in (1, 8, 64, 1_024):
        slot = H100_TOKENS_PER_S / H100_SLOTS
        machine = Machine(gpus, H100_SLOTS, slot, cpu)
        for rows in (52_000, 10**5, 10**6, 10**7, 10**8, 10**9):
            seconds, limit = run_seconds(machine, rows, per_row, novelty)
            table.append(
                {
                    "gpus": gpus,
                    "rows": rows,
                    "hours": float(f"{seconds / 3600:.3g}"),
                    "rows_per_s": float(f"{rows / seconds:.3g}"),
                    "limited_by": limit,
                }
            )
    result = {
        "computed": "a simulation; no row of the table was measured",
        "gpu": f"{H100_TOKENS_PER_S:,.0f} output tokens/s and {H100_SLOTS} slots (cited)",
        "coordinator_ms_per_request": round(1e3 * cpu, 3),
        "requests_per_row": per_row,
        "checks": checks,
        "table": table,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
