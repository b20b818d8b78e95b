"""Compares the MinHash index with datasketch, rensa and text-dedup on 100,000 real texts.

    python benchmarks/minhash.py [--texts 100000] [--text-dedup PYTHON] [--out FILE]

The texts are distinct paragraphs of INSTRUCTGEN_DATA. The reference is every pair whose
word sets have a Jaccard similarity above 0.7. An exact join finds these pairs; the join
itself is checked on all pairs of 2,000 texts. rensa and datasketch get texts that are
already split into words; the times of instructgen include the splitting. text-dedup runs in
its own interpreter (pip install text-dedup==0.4.1, Python 3.12).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from datasketch import MinHash, MinHashLSH
from numba import njit
from rensa import RMinHash, RMinHashLSH

from instructgen.similarity import MinHashIndex
from instructgen.similarity.tokens import tokenize_all

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("INSTRUCTGEN_DATA", ROOT.parent / "shared" / "data"))
THRESHOLD = 0.7
PERMUTATIONS = 128
FILES = {
    "dolly/databricks-dolly-15k.rejoined.jsonl": ("instruction", "context", "response"),
    "oasst1/oasst1-en-train.texts.jsonl": ("text",),
    "alpaca-libre/alpaca_libre_tasks_v1.jsonl": ("instruction", "input", "output"),
    "gsm8k/test.jsonl": ("question", "answer"),
    "self-instruct/user_oriented_instructions.jsonl": ("instruction",),
}

Pairs = set[tuple[int, int]]


def paragraphs() -> Iterator[str]:
    for name, fields in FILES.items():
        with (DATA / name).open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                for field in fields:
                    yield from (row[field] or "").split("\n")


def real_texts(count: int) -> list[str]:
    texts = sorted({p.strip() for p in paragraphs() if any(c.isalnum() for c in p)})
    random.Random(0).shuffle(texts)
    if len(texts) < count:
        raise SystemExit(f"INSTRUCTGEN_DATA has only {len(texts):,} distinct paragraphs.")
    return texts[:count]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


@njit
def _join(words, offsets, order, p, q, heads, out):
    """Write all pairs of sets with a Jaccard similarity above p/q to ``out``; return their number.

    The words of a set are sorted from rare to frequent. Two such sets share at least one of
    the first |x| - ceil(|x| p/q) + 1 words of each (Bayardo et al. 2007).
    """
    pairs, count = 0, len(order)
    seen = np.full(count, -1)
    link_set, link_next = np.empty(len(words), np.int64), np.empty(len(words), np.int64)
    links = 0
    for place in range(count):
        x = order[place]
        ours = words[offsets[x] : offsets[x + 1]]
        size = len(ours)
        prefix = size - (size * p + q - 1) // q + 1
        for k in range(min(prefix, size)):
            link = heads[ours[k]]
            while link >= 0:
                y = link_set[link]
                link = link_next[link]
                theirs = words[offsets[y] : offsets[y + 1]]
                if seen[y] == x or len(theirs) * q < size * p:
                    continue
                seen[y] = x
                i, j, both = 0, 0, 0
                while i < size and j < len(theirs):
                    if ours[i] == theirs[j]:
                        both, i, j = both + 1, i + 1, j + 1
                    elif ours[i] < theirs[j]:
                        i += 1
                    else:
                        j += 1
                if both * q > p * (size + len(theirs) - both):
                    if pairs < len(out):
                        out[pairs, 0], out[pairs, 1] = min(x, y), max(x, y)
                    pairs += 1
        for k in range(min(prefix, size)):
            link_set[links], link_next[links] = x, heads[ours[k]]
            heads[ours[k]] = links
            links += 1
    return pairs


def exact_pairs(sets: list[set[str]]) -> Pairs:
    frequency = Counter(word for words in sets for word in words)
    rank = {w: i for i, w in enumerate(sorted(frequency, key=lambda w: (frequency[w], w)))}
    numbers = [sorted(rank[w] for w in words) for words in sets]
    offsets = np.cumsum([0, *map(len, numbers)])
    words = np.fromiter((n for x in numbers for n in x), np.int64, int(offsets[-1]))
    order = np.argsort(np.diff(offsets), kind="stable")
    out = np.empty((20_000_000, 2), np.int64)
    count = _join(words, offsets, order, 7, 10, np.full(len(rank), -1), out)
    assert count <= len(out)
    return set(map(tuple, out[:count].tolist()))


def check_join(sets: list[set[str]]) -> None:
    everything = {
        (i, j)
        for j, b in enumerate(sets)
        for i, a in enumerate(sets[:j])
        if 10 * len(a & b) > 7 * len(a | b)
    }
    assert exact_pairs(sets) == everything


def judged(returned: Pairs, right: Pairs) -> dict[str, Any]:
    correct = len(returned & right)
    return {
        "pairs": len(returned),
        "precision": round(correct / max(len(returned), 1), 5),
        "recall": round(correct / len(right), 5),
    }


def ours(texts: list[str], sets: list[set[str]], right: Pairs) -> dict[str, Any]:
    MinHashIndex(THRESHOLD).gate(texts[:10])
    signing = MinHashIndex(THRESHOLD, permutations=PERMUTATIONS)
    seconds, _ = timed(lambda: signing.signatures(texts))
    known, _ = timed(lambda: signing.signatures(texts))
    encoded = signing._encode(texts)
    hashing, _ = timed(lambda: signing._signatures(encoded))
    index = MinHashIndex(THRESHOLD, permutations=PERMUTATIONS)
    adding, _ = timed(lambda: index.add(texts))
    querying, pairs = timed(lambda: index.pairs(texts))
    returned = {
        (r, t) for t, r in zip(pairs.text.tolist(), pairs.row.tolist(), strict=True) if r < t
    }
    return {
        "signatures_per_s": round(len(texts) / seconds),
        "signatures_per_s_words_known": round(len(texts) / known),
        "signatures_per_s_of_sets_of_numbers": round(len(texts) / hashing),
        "texts_per_s_added": round(len(texts) / adding),
        "texts_per_s_looked_up": round(len(texts) / querying),
        "seconds_in_all": round(adding + querying, 2),
        "bands": [index.bands, index.rows_per_band],
        **judged(returned, right),
    }


def datasketch(texts: list[str], sets: list[set[str]], right: Pairs) -> dict[str, Any]:
    encoded = [[w.encode() for w in words] for words in sets]
    # One call for all texts is the fastest method of datasketch.
    seconds, signatures = timed(
        lambda: MinHash.bulk(encoded, num_perm=PERMUTATIONS, scheme="affine32")
    )

    def insert() -> MinHashLSH:
        lsh = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
        with lsh.insertion_session() as session:
            for row, signature in enumerate(signatures):
                session.insert(row, signature)
        return lsh

    adding, lsh = timed(insert)
    querying, matches = timed(lambda: [lsh.query(s) for s in signatures])
    pairs = {(r, t) for t, rows in enumerate(matches) for r in rows if r < t}
    return {
        "signatures_per_s": round(len(texts) / seconds),
        "texts_per_s_added": round(len(texts) / adding),
        "texts_per_s_looked_up": round(len(texts) / querying),
        "seconds_in_all": round(seconds + adding + querying, 2),
        "bands": [lsh.b, lsh.r],
        **judged(pairs, right),
    }


def rensa(texts: list[str], sets: list[set[str]], right: Pairs) -> dict[str, Any]:
    lists = [list(words) for words in sets]
    seconds, signatures = timed(lambda: RMinHash.from_token_sets(lists, PERMUTATIONS, 1))

    def insert() -> RMinHashLSH:
        lsh = RMinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS, num_bands=16)
        lsh.insert_many(signatures)
        return lsh

    adding, lsh = timed(insert)
    querying, matches = timed(lambda: lsh.query_all(signatures))
    pairs = {(r, t) for t, rows in enumerate(matches) for r in rows if r < t}
    return {
        "signatures_per_s": round(len(texts) / seconds),
        "texts_per_s_added": round(len(texts) / adding),
        "texts_per_s_looked_up": round(len(texts) / querying),
        "seconds_in_all": round(seconds + adding + querying, 2),
        "bands": [16, 8],
        **judged(pairs, right),
    }


TEXT_DEDUP = """
import pickle, time
from pathlib import Path
from text_dedup.config.algorithms import MinHashAlgorithmConfig
from text_dedup.config.base import load_config_from_toml
from text_dedup.minhash import main
began = time.perf_counter()
main(load_config_from_toml(Path("config.toml")))
print(time.perf_counter() - began)
"""
TEXT_DEDUP_CONFIG = """
[input]
input_type = "local_files"
file_type = "json"
[input.read_arguments]
path = "json"
data_files = "rows.jsonl"
split = "train"
[algorithm]
algorithm_name = "minhash"
text_column = "text"
num_perm = 128
threshold = 0.7
min_length = 1
num_proc = 1
check_false_positive = true
[output]
output_dir = "out"
save_clusters = true
[debug]
"""


def text_dedup(texts: list[str], right: Pairs, python: str) -> dict[str, Any]:
    """Measure text-dedup: its pairs are those within clusters; its minimum length is set to 1."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (here / "rows.jsonl").write_text("".join(lines))
        (here / "config.toml").write_text(TEXT_DEDUP_CONFIG)
        process = subprocess.run(
            [python, "-c", TEXT_DEDUP], cwd=here, capture_output=True, text=True, check=True
        )
        seconds = float(process.stdout.split()[-1])
        dump = "import json,pickle;print(json.dumps(pickle.load(open('out/clusters.pickle','rb'))))"
        clusters = subprocess.run(
            [python, "-c", dump], cwd=here, capture_output=True, text=True, check=True
        )
        name = "from importlib.metadata import version; print(version('text-dedup'))"
        its_version = subprocess.run(
            [python, "-c", name], capture_output=True, text=True, check=True
        ).stdout.strip()
    members: dict[int, list[int]] = {}
    for row, cluster in json.loads(clusters.stdout).items():
        members.setdefault(cluster, []).append(int(row))
    pairs = {(a, b) for m in members.values() for b in m for a in m if a < b}
    return {
        "version": its_version,
        "texts_per_s": round(len(texts) / seconds),
        "seconds_in_all": round(seconds, 2),
        "largest_cluster": max(map(len, members.values())),
        **judged(pairs, right),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--text-dedup", default="")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    texts = real_texts(options.texts)
    sets = [set(words) for words in tokenize_all(texts)]
    check_join(sets[:2000])
    right = exact_pairs(sets)
    words = np.array([len(s) for s in sets])
    result: dict[str, Any] = {
        "texts": len(texts),
        "different_words_median": int(np.median(words)),
        "pairs_above_0.7": len(right),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {
            name: version(name) for name in ("instructgen", "numba", "numpy", "datasketch", "rensa")
        },
    }
    for name, tool in (("instructgen", ours), ("datasketch", datasketch), ("rensa", rensa)):
        result[name] = tool(texts, sets, right)
        print(name, result[name], flush=True)
    if options.text_dedup:
        result["text-dedup"] = text_dedup(texts, right, options.text_dedup)
        print(result["text-dedup"])
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
