"""Measures how often a judge and a reward model prefer the answer that people ranked higher.

    python benchmarks/judge.py [--pairs 80] [--steps 60] [--out benchmarks/judge.json]

The pairs are answers to the same prompt of OASST1 (English), with different human ranks. The row
judge (the filter `judge`) grades each answer alone; the higher mean grade wins. The reward model is
the included model, trained with `train reward` on other pairs of OASST1. The data is in the folder
INSTRUCTGEN_DATA. Intervals are Wilson's, 95%.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import instructgen
from instructgen.engines.vllm import VllmEngine
from instructgen.filters.judge import Judge
from instructgen.generation.sequencer import answer_all
from instructgen.schema.sample import Sample
from instructgen.store import read_samples, write_dataset

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("INSTRUCTGEN_DATA", ROOT.parent / "shared" / "data"))
LONGEST = 1_500


def wilson(right: int, count: int) -> list[float]:
    """Return the 95% interval of a proportion (Wilson 1927)."""
    if not count:
        return [0.0, 1.0]
    z, p = 1.96, right / count
    center = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * ((p * (1 - p) / count + z * z / (4 * count * count)) ** 0.5) / (1 + z * z / count)
    return [round(center - half, 3), round(center + half, 3)]


def accuracy(scores: Sequence[tuple[float | None, float | None]]) -> dict[str, Any]:
    """Return how often the first score of a pair is higher, among pairs that are decided."""
    known = [(a, b) for a, b in scores if a is not None and b is not None]
    decided = [(a, b) for a, b in known if a != b]
    right = sum(a > b for a, b in decided)
    return {
        "pairs": len(scores),
        "unscored": len(scores) - len(known),
        "ties": len(known) - len(decided),
        "decided": len(decided),
        "accuracy": round(right / len(decided), 3) if decided else None,
        "interval": wilson(right, len(decided)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=80)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "judge.json")
    args = parser.parse_args()
    oasst = DATA / "oasst1" / "oasst1-en-validation.messages.jsonl"
    with tempfile.TemporaryDirectory() as folder:
        everything = instructgen.import_data(
            oasst, Path(folder) / "pairs", shape="preferences", on_bad_row="reject"
        )
        rows = [
            row
            for row in read_samples(everything.out)
            if row.language == "en"
            and len(row.question) + len(row.output) + len(row.rejected_output or "") < LONGEST
        ]
        random.Random(0).shuffle(rows)
        tested = rows[: args.pairs]
        groups = {row.origin.group for row in tested}
        rest = [row for row in rows[args.pairs :] if row.origin.group not in groups]
        # The reward model and the included model do not share the memory with vLLM.
        rewards = reward_scores(Path(folder), rest, tested, args.steps)
    judge = Judge(model="smollm2", tags=())
    engine = VllmEngine(model="smollm2")
    answers = [
        sample
        for row in tested
        for sample in (
            replace(row, rejected_output=None),
            replace(row, output=row.rejected_output or "", rejected_output=None),
        )
    ]
    replies = answer_all(engine, [judge.request(sample, structured=True) for sample in answers])
    grades = [
        judge.read(s, c).score(judge.score_name) for s, c in zip(answers, replies, strict=True)
    ]
    values = [grade.value if grade else None for grade in grades]
    result = {
        "what": "pairs of OASST1 whose answer with the higher human rank gets the higher score",
        "data": "OASST1, English, pairs of at most 1,500 characters",
        "judge smollm2": accuracy(list(zip(values[::2], values[1::2], strict=True))),
        f"reward model, {args.steps} steps of 4 pairs": accuracy(rewards),
        "versions": {"instructgen": instructgen.__version__},
    }
    print(json.dumps(result, indent=1))
    args.out.write_text(json.dumps(result, indent=1) + "\n")


def reward_scores(
    folder: Path, rest: list[Sample], tested: list[Sample], steps: int
) -> list[tuple[float | None, float | None]]:
    """Train a reward model on some pairs, and score the answers of others."""
    from instructgen.training.rewards import RewardModel

    write_dataset(folder / "rest", rest, [], lambda counts: "---\n---\n", shape="preferences")
    trained = instructgen.train(
        "reward",
        folder / "rest",
        folder / "rm",
        steps=steps,
        max_length=512,
        batch_size=4,
        held_out_rows=8,
        micro_batch_size=2,
    )
    model = RewardModel(str(trained.out))
    plain = [replace(row, rejected_output=None) for row in tested]
    chosen = model.score(plain, [row.output for row in tested])
    rejected = model.score(plain, [row.rejected_output or "" for row in tested])
    return list(zip(chosen, rejected, strict=True))


if __name__ == "__main__":
    main()
