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
import json
import math
import random
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from model_server import PREFILL_S
from simulated_engine import MEDIAN, MOST, SIGMA, tokens

HERE = Path(__file__).parent
# Llama-3.1-8B (FP8) with vLLM 0.10.0 on one H100: 5,777 output tokens/s, offline scenario of MLPerf
# Inference 5.1 ("Efficient and reproducible LLM inference: Red Hat MLPerf Inference v5.1 results").
H100_TOKENS_PER_S, H100_SLOTS = 5_777.0, 256
# The line of a completion takes about this many bytes in the journal, and its request 100.
JOURNAL_BYTES, DISK_BYTES_PER_S = 1_300, 500e6
# The default recipe limits a request for instructions to so many tokens; longer ones give no rows.
DRAFT_TOKENS = 320
# The fraction of answers that are not cut.
COMPLETE = 0.99
# Runs of at most so many rows are simulated as a whole. Of others, the rate is simulated at several
# sizes of the pool with at most so many slots, and the end of the run is left out.
MOST_ROWS, MOST_SLOTS = 100_000, 4_096


@dataclass(frozen=True)
class Machine:
    """GPUs with slots that make tokens at a rate, and what the coordinator needs per request."""

    gpus: int
    slots: int
    tokens_per_s_per_slot: float
    coordinator_s: float
    # Seconds until the first token of an answer.
    prefill_s: float = 0.0
    # A server's window is found by measurement; a replica's is known.
    measured_window: bool = False


def simulated(machine: Machine, rows: int, per_draft: float, seed: int = 0) -> tuple[float, float]:
    """Return the seconds of a run, and its requests per second until all slots are busy no more.

    A draft is one request for instructions, which gives ``per_draft`` rows on average, and one
    request for each of these rows. Events are the completion of a request by its slot, and its
    processing by the coordinator, which then makes requests: first for rows of drafts, and for
    drafts only while the rows that are expected are fewer than the target. If few are missing,
    drafts come first, up to an eighth of the requests in flight. The run ends when drafts that have
    ended, without an unfinished one before them, have the rows.
    """
    rng = random.Random(seed)
    slots = machine.gpus * machine.slots
    most = slots + slots // 8
    window = 32 if machine.measured_window else most
    whole = per_draft / (1 - math.erfc(math.log(DRAFT_TOKENS / MEDIAN) / SIGMA / 2**0.5) / 2)
    # The end of each request that has a slot, its rows (-1 for one that is itself a row, -2 for a
    # row that was cut), its draft and the window when it was sent; and requests without a slot.
    running: list[tuple[float, int, int, int]] = []
    waiting: deque[tuple[int, bool, int]] = deque()
    unasked: deque[int] = deque()
    left, won = list[int](), list[int]()
    accepted = asked = drafts = done = of_window = of_busy = delivered = first = 0
    coordinator = busy_until = 0.0

    def start(at: float, draft: int, is_draft: bool, sent_in: int) -> None:
        count = tokens(rng)
        made = -1 if count < MOST else -2
        if is_draft:
            made = int(whole + rng.random()) if count < DRAFT_TOKENS else 0
            count = min(count, DRAFT_TOKENS)
        end = at + machine.prefill_s + count / machine.tokens_per_s_per_slot
        heapq.heappush(running, (end, made, draft, sent_in))

    while delivered < rows:
        while drafts + asked < window:
            expected = accepted + COMPLETE * (asked + len(unasked) + drafts * per_draft)
            missing = rows - expected
            if not unasked and drafts + asked and missing <= 0:
                break
            few = ((drafts + asked) / 8 - drafts) * per_draft
            is_draft = not unasked or 0 < missing < few
            draft = len(left) if is_draft else unasked.popleft()
            if is_draft:
                left.append(1)
                won.append(0)
            drafts, asked = drafts + is_draft, asked + (not is_draft)
            if len(running) < slots:
                start(coordinator, draft, is_draft, window)
            else:
                waiting.append((draft, is_draft, window))
        if len(running) == slots:
            busy_until, of_busy = coordinator, done
        at, made, draft, sent_in = heapq.heappop(running)
        if waiting:
            start(at, *waiting.popleft())
        coordinator = max(coordinator, at) + machine.coordinator_s
        done += 1
        left[draft] += max(made, 0) - 1
        if made < 0:
            asked, accepted = asked - 1, accepted + (made == -1)
            won[draft] += made == -1
        else:
            unasked.extend([draft] * made)
            drafts -= 1
        while first < len(left) and not left[first]:
            delivered, first = delivered + won[first], first + 1
        of_window += sent_in == window
        if window < most and of_window >= (1 if window == 32 else 4):
            window, of_window = min(max(128, 2 * window), most), 0
    return coordinator, of_busy / busy_until if busy_until else done / coordinator


def run_seconds(
    machine: Machine, rows: float, per_row: float, novelty: np.poly1d
) -> tuple[float, str]:
    """Return the seconds of a run with many rows, and what limits it at its end."""
    rng = random.Random(0)
    slots, per_draft = machine.gpus * machine.slots, 1 / (per_row - 1)
    engines = slots * machine.tokens_per_s_per_slot / mean(tokens(rng) for _ in range(20_000))
    disk = DISK_BYTES_PER_S / JOURNAL_BYTES
    # Of many slots, fewer are simulated, with a coordinator that is slower by the same factor.
    factor = max(1.0, slots / MOST_SLOTS)
    few = replace(machine, gpus=max(1, round(machine.gpus / factor)))
    some = max(2_000, 6 * few.gpus * few.slots)
    seconds = begin = rate = 0.0
    for size in (rows * 10 ** (-k / 2) for k in range(8, -1, -1)):
        cost = math.exp(novelty(math.log(size)))
        slower = replace(few, coordinator_s=factor * (machine.coordinator_s + cost))
        rate = min(factor * simulated(slower, some, per_draft)[1], disk)
        seconds += (size - begin) * per_row / rate
        begin = size
    if rows <= MOST_ROWS:
        whole = replace(machine, coordinator_s=machine.coordinator_s + cost)
        seconds = simulated(whole, int(rows), per_draft)[0]
    slowest = "novelty" if cost > machine.coordinator_s else "coordinator"
    limits = {"GPUs": engines, "disk": disk}.items()
    return seconds, next((name for name, most in limits if rate > 0.9 * most), slowest)


def main() -> None:
    """Compare predictions with measured runs, and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    out: Path = parser.parse_args().out
    serve = json.loads((HERE / "serve.json").read_text())
    scale = json.loads((HERE / "scale.json").read_text())
    pools = [(r["pool"], r["novelty_ms_per_request"] / 1e3) for r in scale["novelty"]]
    # A line through the logarithms; it is continued to larger pools.
    novelty = np.poly1d(np.polyfit(*np.log(np.array(pools)).T, 1))
    ours = [r for r in serve["runs"] if r["tool"] == "instructgen" and r["target"] == 2_000]
    per_row = max(run["requests_per_row"] for run in ours)
    checks = []
    for run in ours:
        if rate := run["tokens_per_s_of_an_answer"]:
            cpu = run["cpu_ms_per_request"] / 1e3
            server = Machine(1, run["slots"], rate, cpu, PREFILL_S, measured_window=True)
            # The end of a run depends on chance.
            runs = [simulated(server, run["accepted"], 1 / (per_row - 1), i)[0] for i in range(20)]
            predicted, measured = run["accepted"] / mean(runs), run["rows_per_s"]
            name = f"generate, one server with {run['slots']} slots, 2,000 rows"
            rates = {"measured_rows_per_s": measured, "predicted_rows_per_s": round(predicted, 2)}
            checks.append({"run": name, **rates, "ratio": round(predicted / measured, 3)})
    parts = (scale["replicas"]["8"], serve["loop_cpu_with_echo"])
    cpu = sum(part["cpu_ms_per_request"] for part in parts) / 1e3
    table: list[dict[str, Any]] = []
    for gpus in (1, 8, 64, 1_024):
        machine = Machine(gpus, H100_SLOTS, H100_TOKENS_PER_S / H100_SLOTS, cpu)
        for rows in (52_000, 10**5, 10**6, 10**7, 10**8, 10**9):
            seconds, limit = run_seconds(machine, rows, per_row, novelty)
            row = {"hours": float(f"{seconds / 3600:.3g}"), "rows_per_s": round(rows / seconds, 1)}
            table.append({"gpus": gpus, "rows": rows, **row, "limited_by": limit})
    result = {
        "computed": "a simulation; no row of the table was measured",
        "gpu": f"{H100_TOKENS_PER_S:,.0f} output tokens/s and {H100_SLOTS} slots (cited)",
        "coordinator_ms_per_request": round(1e3 * cpu, 3),
        "requests_per_row": per_row,
        "checks": checks,
        "table": table,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
