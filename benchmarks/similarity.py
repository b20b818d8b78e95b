"""Compares the ROUGE-L index with rouge-score, the reference, and with rapidfuzz.

    python benchmarks/similarity.py [--limit ROWS] [--growth] [--out FILE]

The texts are the real instructions of INSTRUCTGEN_DATA. If more are needed, the start of one
text is joined to the end of another. The times of instructgen are from text to decision.
rouge-score gets texts that are already split into words, which is an advantage for it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import resource
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from rapidfuzz import process
from rapidfuzz.distance import Indel
from rouge_score.rouge_scorer import _score_lcs

from instructgen.similarity import RougeLIndex, rouge_compiled, rouge_fallback, tokenize
from instructgen.similarity import blocks as blocks_module
from instructgen.similarity import rouge as rouge_module

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("INSTRUCTGEN_DATA", ROOT.parent / "shared" / "data"))
THRESHOLD = 0.7
MAX_WORDS = 80


def real_texts() -> list[str]:
    """Return the first lines of the real texts, without those over 80 words, in random order."""
    files = {
        "dolly/databricks-dolly-15k.rejoined.jsonl": "instruction",
        "alpaca-libre/alpaca_libre_tasks_v1.jsonl": "instruction",
        "oasst1/oasst1-en-train.texts.jsonl": "text",
        "self-instruct/user_oriented_instructions.jsonl": "instruction",
        "gsm8k/test.jsonl": "question",
    }
    texts = []
    for name, field in files.items():
        with (DATA / name).open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                lines = [x for x in row[field].split("\n") if x.strip()]
                if lines and len(lines[0].split()) <= MAX_WORDS:
                    texts.append(lines[0])
    random.Random(0).shuffle(texts)
    return texts


def endless(texts: list[str]) -> Iterator[str]:
    """Yield the texts, then endlessly the start of a random text with the end of another."""
    yield from texts
    rng, words = random.Random(1), [t.split() for t in texts]
    while True:
        a, b = rng.choice(words), rng.choice(words)
        yield " ".join(a[: rng.randint(0, len(a))] + b[rng.randint(0, len(b)) :])


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def with_kernel(kernel: Any) -> None:
    rouge_module.kernels = blocks_module.kernels = lambda: kernel


def decisions_equal_rouge_score(texts: list[str], pairs: int) -> dict[str, Any]:
    """Decide pairs with both tools; count the pairs with the same decision and the same score."""
    pool = texts[:2000]
    queries = texts[2000 : 2000 + pairs // len(pool)]
    words = [tokenize(t, "ascii") for t in pool]
    index = RougeLIndex(THRESHOLD, "ascii", compatible="rouge-score", threads=1)
    index.add(pool)
    matching = index.pairs(queries)
    ours: list[dict[int, float]] = [{} for _ in queries]
    for query, row, score in zip(*(a.tolist() for a in matching), strict=True):
        ours[query][row] = score
    equal, matches, seconds = 0, 0, 0.0
    for query, above in zip(queries, ours, strict=True):
        tokens = tokenize(query, "ascii")
        spent, scores = timed(lambda t=tokens: [_score_lcs(w, t).fmeasure for w in words])
        seconds += spent
        for row, score in enumerate(scores):
            # The index does not return a score at or below the threshold.
            equal += above.get(row) == (score if score > THRESHOLD else None)
            matches += score > THRESHOLD
    return {
        "pairs": len(pool) * len(queries),
        "equal": equal,
        "matches": matches,
        "rouge_score_pairs_per_s": round(len(pool) * len(queries) / seconds),
    }


def dolly() -> list[str]:
    """Return the distinct instructions of Dolly in random order; many have common phrases."""
    path = DATA / "dolly/databricks-dolly-15k.rejoined.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    texts = list(dict.fromkeys(json.loads(line)["instruction"] for line in lines))
    random.Random(0).shuffle(texts)
    return texts


def against_others(texts: list[str], pool_size: int, pairs_per_s: float) -> dict[str, Any]:
    pool, queries = texts[:pool_size], texts[-10_000:]
    result: dict[str, Any] = {"pool": pool_size}
    result["rouge_score"] = pairs_per_s / pool_size
    vocabulary: dict[str, str] = {}

    def code(text: str) -> str:
        # Each word becomes one character, because rapidfuzz is fastest on strings.
        return "".join(vocabulary.setdefault(w, character(len(vocabulary))) for w in tokenize(text))

    coded = [code(t) for t in pool]
    coded_queries = [code(t) for t in queries[:1000]]
    cutoff = THRESHOLD
    few = max(1, 2_000_000 // pool_size)
    loop = timed(
        lambda: [
            max(Indel.normalized_similarity(q, row, score_cutoff=cutoff) for row in coded)
            for q in coded_queries[:few]
        ]
    )[0]
    result["rapidfuzz_loop"] = few / loop
    many = max(few, min(1000, 100_000_000 // pool_size))
    seconds, similar = timed(
        lambda: process.cdist(
            coded_queries[:many], coded, scorer=Indel.normalized_similarity, workers=1
        )
    )
    result["rapidfuzz_cdist"] = many / seconds
    index = RougeLIndex(THRESHOLD, threads=1)
    index.add(pool)
    seconds, ours = timed(lambda: index.nearest(queries))
    result["ours"] = len(queries) / seconds
    result["equal_to_cdist"] = sum(
        # Two texts without words are identical for rapidfuzz, but not a match for ROUGE-L.
        (m is None)
        if not text
        else bool(s.max() > THRESHOLD + 1e-6) == (m is not None)
        and (m is None or bool(abs(m.score - s.max()) < 1e-6))
        for text, m, s in zip(coded_queries, ours, similar, strict=False)
    )
    result["compared_with_cdist"] = many
    index.threads = 2
    seconds, two = timed(lambda: index.nearest(queries))
    result["ours_two_threads"] = len(queries) / seconds
    index.threads = 1
    with_kernel(rouge_fallback)
    part = queries[: max(100, 20_000_000 // pool_size)]
    seconds, slow = timed(lambda: index.nearest(part))
    result["ours_without_numba"] = len(part) / seconds
    with_kernel(rouge_compiled)
    result["identical"] = two == ours and slow == ours[: len(slow)]
    result["times_rouge_score"] = round(result["ours"] / result["rouge_score"])
    return result


def character(number: int) -> str:
    """Return a distinct character for each number, without surrogates."""
    return chr(number + 1 if number < 0xD7FF else number + 0x801)


def memory_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def growth(texts: list[str], limit: int) -> list[dict[str, Any]]:
    """Return the time and memory of the sequential gate as the number of candidates grows."""
    index = RougeLIndex(THRESHOLD, threads=1)
    stream = endless(texts)
    curve: list[dict[str, Any]] = []
    done, spent = 0, 0.0
    goals = [n for n in (10_000, 100_000, 1_000_000, 10_000_000) if n <= limit]
    for goal in goals:
        while done < goal:
            part = [next(stream) for _ in range(10_000)]
            spent += timed(lambda part=part: index.gate(part))[0]
            done += len(part)
        curve.append(
            {
                "candidates": done,
                "accepted": len(index),
                "seconds": round(spent, 2),
                "peak_memory_gib": round(memory_gib(), 2),
            }
        )
    return curve


def ten_million(texts: list[str]) -> dict[str, Any]:
    """Return the speed of an index of 10 million rows, which are added without the gate."""
    index = RougeLIndex(THRESHOLD, threads=1)
    stream, spent = endless(texts), 0.0
    while len(index) < 10_000_000:
        part = [next(stream) for _ in range(100_000)]
        spent += timed(lambda part=part: index.add(part))[0]
    queries = [next(stream) for _ in range(2048)]
    seconds, _ = timed(lambda: index.nearest(queries))
    return {
        "rows": len(index),
        "rows_added_per_s": round(len(index) / spent),
        "candidates_per_s": round(len(queries) / seconds, 1),
        "peak_memory_gib": round(memory_gib(), 2),
    }


def in_the_loop(texts: list[str], pool_size: int) -> dict[str, Any]:
    """Time what the filter ``novelty`` does: check candidates one by one, add accepted ones."""
    index = RougeLIndex(THRESHOLD)
    index.add(texts[:pool_size])
    candidates = texts[pool_size : pool_size + 2000]

    def work() -> None:
        for text in candidates:
            if index.nearest([text]) == [None]:
                index.add([text])

    seconds = timed(work)[0] / len(candidates)
    loop = json.loads((ROOT / "benchmarks" / "loop.json").read_text())
    # Each request gives at most seven candidates.
    return {
        "pool": pool_size,
        "ms_per_candidate": round(seconds * 1e3, 3),
        "share_of_generation_time": significant(
            7 * seconds / (loop["loop"]["seconds"] / loop["requests"])
        ),
    }


def whole_gate(texts: list[str], accepted: int) -> dict[str, Any]:
    """Time the gate of a whole Self-Instruct run, until ``accepted`` texts are accepted."""
    index = RougeLIndex(THRESHOLD, threads=1)
    stream, seen, spent = endless(texts), 0, 0.0
    while len(index) < accepted:
        part = [next(stream) for _ in range(2048)]
        spent += timed(lambda part=part: index.gate(part))[0]
        seen += len(part)
    return {"accepted": len(index), "candidates": seen, "seconds": round(spent, 3)}


@njit(nogil=True)
def compare(low: Any, high: Any, times: int) -> int:
    near = 0
    for i in range(times):
        near += rouge_compiled._any_near(low, high, np.uint64(i), low[0], np.uint64(0))
    return near


def limits() -> dict[str, float]:
    """Measure the limits of the machine: rows compared in cache, bytes read from memory."""
    rng = np.random.default_rng(0)
    block = rng.integers(0, 2**63, 1024, dtype=np.uint64)
    low, high, times = block[:512], block[512:], 200_000
    compare(low, high, 1)
    seconds = min(timed(lambda: compare(low, high, times))[0] for _ in range(3))
    large = rng.integers(0, 2**63, 2**27, dtype=np.uint64)
    read = min(timed(large.max)[0] for _ in range(3))
    return {
        "rows_per_s_in_cache": round(len(low) * times / seconds),
        "bytes_read_per_s": round(large.nbytes / read),
    }


def rows_tested_per_s(texts: list[str], pool_size: int) -> float:
    """Return how many rows the search compares by bitmap per second, without tokenization."""
    index = RougeLIndex(THRESHOLD, threads=1)
    index.add(texts[:pool_size])
    encoded = index._encode(texts[-2048:])
    _, queries = index._queries(encoded)
    below = np.concatenate([[0], np.cumsum(np.bincount(np.diff(index._offsets.view), minlength=1))])
    most = len(below) - 1
    tested = (
        below[np.minimum(queries.longest + 1, most)] - below[np.minimum(queries.shortest, most)]
    )
    index._search(queries)
    seconds = min(timed(lambda: index._search(queries))[0] for _ in range(3))
    return float(tested.sum() / seconds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--limit", type=int, default=10_000_000)
    parser.add_argument(
        "--growth", action="store_true", help="Run only the growing stream (half an hour)."
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    texts = real_texts()
    if args.growth:
        curve = {"machine": machine(), "growth": growth(texts, args.limit), "versions": versions()}
        write(args.out or ROOT / "benchmarks" / "similarity_growth.json", curve)
        return
    pools = [n for n in (10_000, 100_000, 1_000_000) if n <= args.limit]
    many = list(itertools.islice(endless(texts), pools[-1] + 20_000))
    lengths = [len(tokenize(t)) for t in many[:100_000]]
    result: dict[str, Any] = {
        "what": "candidates/s against a pool, ROUGE-L above 0.7, text to decision, one thread",
        "machine": machine(),
        "real_texts": len(texts),
        "words_5_25_50_75_95": np.percentile(lengths, [5, 25, 50, 75, 95]).tolist(),
        "limits": limits(),
    }
    print(json.dumps(result), flush=True)
    result["decisions"] = decisions_equal_rouge_score(texts, 2_000_000)
    rate = result["decisions"]["rouge_score_pairs_per_s"]
    result["decisions_dolly"] = decisions_equal_rouge_score(dolly(), 2_000_000)
    print(json.dumps(result["decisions"]), json.dumps(result["decisions_dolly"]), flush=True)
    result["pools"] = []
    for pool in pools:
        row = against_others(many, pool, rate)
        row["rows_tested_per_s"] = rows_tested_per_s(many, pool)
        result["pools"].append({k: significant(v) for k, v in row.items()})
        print(json.dumps(result["pools"][-1]), flush=True)
    result["whole_gate"] = whole_gate(texts, 52_000)
    pairs = 52_000 * 51_999 / 2
    result["whole_gate"]["rouge_score_hours_for_its_pairs"] = round(pairs / rate / 3600, 1)
    result["in_the_loop"] = in_the_loop(many, pools[-1])
    if args.limit >= 10_000_000:
        result["ten_million"] = ten_million(texts)
    result["versions"] = versions()
    write(args.out or ROOT / "benchmarks" / "similarity.json", result)


def versions() -> dict[str, str]:
    names = ("instructgen", "numba", "numpy", "rapidfuzz", "rouge-score")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def write(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def significant(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "?")
    return f"{os.cpu_count()} cores, {platform.machine()}, {cpu}"


if __name__ == "__main__":
    main()
