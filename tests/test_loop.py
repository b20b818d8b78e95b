"""The generation loop: the same rows every time, the exact target, and every candidate counted."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import instructgen
from instructgen.engines import Completion, Request
from instructgen.engines.echo import EchoEngine
from instructgen.generation.loop import LAG, Loop, request_digest
from instructgen.generation.methods import PromptSetup
from instructgen.generation.options import load_config
from instructgen.generation.seed_pool import load_seeds
from instructgen.similarity import RougeLIndex
from instructgen.store import read_rows
from tests.conftest import ROOT, real

GENERAL = ROOT / "seeds" / "general.jsonl"


def make(target: int = 20, recipe: str = "default", **generate) -> Loop:
    config = load_config(
        recipe, {"generate": {"target": target, **generate}, "engine": {"name": "echo"}}
    )
    seeds, _ = load_seeds([GENERAL])
    return Loop(config, PromptSetup("completion", False), seeds, "run")


def answer(requests: list[Request]) -> list[Completion]:
    return [c for _, c in EchoEngine().complete(requests)]


def turn(loop: Loop, most: int = 500) -> None:
    """Run a loop to its stop, with LAG batches in flight and at most ``most`` committed."""
    waiting: list[list[Request]] = []
    while loop.stopped is None and loop.batches_committed < most:
        while len(waiting) < LAG:
            waiting.append(loop.build())
        requests = waiting.pop(0)
        loop.commit(requests, answer(requests))


def test_a_run_ends_with_exactly_the_target() -> None:
    loop = make(33)
    turn(loop)
    assert loop.stopped is not None
    assert loop.stopped.reason == "target"
    assert len(loop.rows) == 33


def test_every_candidate_is_counted_once() -> None:
    loop = make(40)
    turn(loop)
    rejected = loop.finish()
    t = loop.tally
    assert t.candidates == t.kept_rows + t.kept_instructions + sum(t.rejected.values())
    reasons = Counter(r.rejection.reason for r in rejected)
    waiting = sum(not task.resolved for task in loop.pool.tasks)
    assert reasons["not_expanded"] == waiting > 0
    assert len(rejected) == sum(t.rejected.values()) + waiting
    assert len({r.id for r in rejected}) == len(rejected)


def test_a_wrong_count_raises_an_error() -> None:
    loop = make(5)
    turn(loop)
    loop.rows.pop()
    with pytest.raises(RuntimeError, match="funnel"):
        loop.finish()


def test_batches_mix_all_stages() -> None:
    loop = make(60, batch_size=16)
    stages: list[Counter[str]] = []
    waiting = []
    while loop.stopped is None:
        while len(waiting) < LAG:
            waiting.append(loop.build())
        requests = waiting.pop(0)
        stages.append(Counter(r.stage for r in requests))
        loop.commit(requests, answer(requests))
    assert sum(len(s) == 3 for s in stages) >= 3
    assert all(s.keys() == {"instructions"} for s in stages[:LAG])
    assert all(s["instructions"] for s in stages)


def test_accepted_instructions_return_as_demonstrations() -> None:
    loop = make(60, batch_size=8)
    turn(loop)
    machine = {t.sample.id for t in loop.pool.tasks}
    assert any(machine & set(t.sample.origin.parents) for t in loop.pool.tasks)


def test_the_same_completions_give_the_same_rows() -> None:
    first, second = make(40), make(40)
    turn(first)
    turn(second)
    assert first.rows == second.rows
    assert first.finish() == second.finish()


def test_a_higher_target_gives_the_same_first_rows() -> None:
    low, high = make(20), make(45)
    turn(low)
    turn(high)
    assert high.rows[:20] == low.rows


def test_another_random_seed_gives_other_requests() -> None:
    assert make(5).build() != make(5, seed=1).build()


def test_requests_of_a_run_have_different_seeds() -> None:
    loop = make(5)
    seeds = [r.sampling.seed for r in (*loop.build(), *loop.build())]
    assert len(set(seeds)) == len(seeds)


def test_the_request_digest_depends_on_prompt_schema_and_sampling() -> None:
    request = make(5).build()[0]
    assert request_digest(request) == request_digest(replace(request))
    changed = [
        request.with_seed(1),
        replace(request, prompt="another prompt"),
        replace(request, schema={}),
        *(
            replace(request, sampling=replace(request.sampling, **values))
            for values in (
                {"temperature": 0.1},
                {"top_p": 0.1},
                {"max_tokens": 1},
                {"presence_penalty": 0.1},
                {"frequency_penalty": 0.1},
                {"stop": ("x",)},
            )
        ),
    ]
    digests = {request_digest(r) for r in (request, *changed)}
    assert len(digests) == 1 + len(changed)


def test_the_token_limit_ends_the_run() -> None:
    loop = make(10_000, max_tokens_total=30_000)
    turn(loop)
    assert loop.stopped is not None
    assert loop.stopped.reason == "max_tokens_total"
    assert loop.tally.tokens >= 30_000


def test_low_acceptance_ends_the_run() -> None:
    loop = make(10_000, acceptance_floor=0.97)
    turn(loop)
    assert loop.stopped is not None
    assert loop.stopped.reason == "acceptance_floor"
    assert loop.tally.candidates >= 200


def test_empty_completions_end_the_run() -> None:
    loop = make(10)
    waiting = []
    while loop.stopped is None and loop.batches_committed < 100:
        while len(waiting) < LAG:
            waiting.append(loop.build())
        requests = waiting.pop(0)
        loop.commit(requests, [Completion("", "stop", 1, 0)] * len(requests))
    assert loop.stopped is not None
    assert loop.stopped.reason == "acceptance_floor"


def test_instructions_without_rows_end_the_run() -> None:
    """A model that only proposes instructions has high acceptance, but never gives a row."""
    loop = make(10, batch_size=8)
    waiting, written = [], 0
    while loop.stopped is None and loop.batches_committed < 400:
        while len(waiting) < LAG:
            waiting.append(loop.build())
        requests = waiting.pop(0)
        completions = []
        for r in requests:
            written += 1
            words = f"alpha{written} beta{written} gamma{written} delta{written}"
            text = words if r.stage == "instructions" else "not an instance"
            completions.append(Completion(text, "stop", 1, 1))
        loop.commit(requests, completions)
    assert loop.stopped is not None
    assert loop.stopped.reason == "acceptance_floor"
    # Acceptance is above the floor; what ended the run are 200 instructions without a row.
    assert loop.tally.kept / loop.tally.candidates > loop.config.generate.acceptance_floor
    assert loop.stopped.detail.startswith("200 ")
    assert loop.tally.kept_instructions > 50


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_small_batches_reach_the_target(batch_size: int) -> None:
    loop = make(3, batch_size=batch_size)
    turn(loop)
    assert loop.stopped is not None
    assert loop.stopped.reason == "target"


def test_truncated_completions_give_no_rows() -> None:
    loop = make(10)
    requests = loop.build()
    cut = [Completion(" One full task here\n10. Another", "length", 1, 9)] * len(requests)
    loop.commit(requests, cut)
    assert loop.tally.kept == 0


@pytest.mark.parametrize(
    # The filters of two_key embed each instruction, so that only a few batches are run.
    ("recipe", "batches"),
    [("self_instruct", 30), ("alpaca", 30), ("two_key", 5)],
)
def test_the_other_recipes_run(recipe: str, batches: int) -> None:
    loop = make(10, recipe)
    turn(loop, most=batches)
    loop.finish()
    assert loop.batches_committed


def test_no_kept_instruction_is_too_similar_to_any_seed_or_other() -> None:
    loop = make(50)
    turn(loop)
    texts = [s.instruction for s in loop.pool.seeds] + [
        t.sample.instruction for t in loop.pool.tasks
    ]
    _, rejected = RougeLIndex(0.7).gate(texts)
    assert rejected == []


def test_rows_have_the_license_of_their_seeds(tmp_path: Path) -> None:
    path = real("dolly/databricks-dolly-15k.rejoined.jsonl")
    result = instructgen.generate(path, 20, tmp_path / "run", engine="echo")
    rows = list(read_rows(result.out))
    assert {r["license"] for r in rows} == {"CC-BY-SA-3.0"}
    assert "license: cc-by-sa-3.0" in (result.out / "README.md").read_text()


CODE = """
import sys, instructgen
instructgen.generate(sys.argv[1], 30, sys.argv[2], engine="echo")
"""


def test_the_environment_does_not_change_the_data(tmp_path: Path) -> None:
    """Time zone, locale, hash seed and number of threads do not change the digest."""
    variants = [
        {"PYTHONHASHSEED": "0"},
        {"PYTHONHASHSEED": "12345", "TZ": "Asia/Tehran", "LC_ALL": "C"},
        {"PYTHONHASHSEED": "7", "LANG": "tr_TR.UTF-8", "OMP_NUM_THREADS": "1"},
    ]
    digests = set()
    for i, extra in enumerate(variants):
        out = tmp_path / str(i) / "run"
        subprocess.run(
            [sys.executable, "-c", CODE, str(GENERAL), str(out)],
            env={**os.environ, **extra},
            check=True,
        )
        digests.add(tree_digest(out))
    assert len(digests) == 1


def tree_digest(out: Path) -> str:
    """Return a digest of all files of a run's dataset, and of run.json and seeds.jsonl."""
    digest = hashlib.sha256()
    names = ["data", "rejected", "README.md", "manifest.json", "run.json", "seeds.jsonl"]
    for name in names:
        path = out / name
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
