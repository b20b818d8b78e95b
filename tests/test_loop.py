"""The generation loop: the same rows every time, the exact target, and every candidate counted."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import os
import random
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

import instructgen
from instructgen.engines import Completion, Request, Sampling
from instructgen.engines.echo import EchoEngine
from instructgen.errors import ConfigError
from instructgen.filters import Filter
from instructgen.generation.loop import Loop
from instructgen.generation.methods import (
    Accept,
    Draft,
    Method,
    Outcome,
    PromptSetup,
    Stage,
    child_sample,
)
from instructgen.generation.options import Config, load_config
from instructgen.generation.seed_pool import Pool, load_seeds
from instructgen.generation.sequencer import request_digest
from instructgen.similarity import RougeLIndex
from instructgen.store import read_rows
from tests.conftest import ROOT, real

GENERAL = ROOT / "seeds" / "general.jsonl"
Answer = Callable[[Request], Completion]


def configured(target: int | str = 20, recipe: str = "default", **generate: object) -> Config:
    return load_config(
        recipe, {"generate": {"target": target, **generate}, "engine": {"name": "echo"}}
    )


def make(target: int | str = 20, recipe: str = "default", **generate: object) -> Loop:
    seeds, _ = load_seeds([GENERAL])
    config = configured(target, recipe, **generate)
    return Loop(config, PromptSetup("completion", False), seeds, "run")


def echo(request: Request) -> Completion:
    (completion,) = EchoEngine().complete([request])
    return completion


def turn(
    loop: Loop,
    answer: Answer = echo,
    *,
    window: int = 32,
    seconds: Callable[[Completion], float] | None = None,
    most: int = 4_000,
) -> list[Request]:
    """Run a loop to its stop; return its requests.

    Args:
        loop: the loop.
        answer: returns the completion of a request.
        window: the number of requests in flight.
        seconds: the time that a completion takes; None to commit them in the order of requests.
        most: the maximum number of commits.
    """
    requests: list[Request] = []
    open_: list[tuple[float, int, Completion]] = []
    now = 0.0
    for _ in range(most):
        while loop.stopped is None and len(open_) < window:
            choice = loop.choose(lambda role: True)
            if choice is None:
                break
            number = len(requests)
            requests.append(loop.issue(number, choice))
            completion = answer(requests[-1])
            due = float(number) if seconds is None else now + seconds(completion)
            heapq.heappush(open_, (due, number, completion))
        if loop.stopped is not None:
            break
        now, number, completion = heapq.heappop(open_)
        loop.commit(number, completion)
    return requests


def first_requests(loop: Loop, count: int) -> list[Request]:
    requests = []
    for number in range(count):
        choice = loop.choose(lambda role: True)
        assert choice is not None
        requests.append(loop.issue(number, choice))
    return requests


def stopped(loop: Loop) -> str:
    assert loop.stopped is not None
    return loop.stopped.reason


# -- the rows -------------------------------------------------------------------------------------


def test_a_run_ends_with_exactly_the_target() -> None:
    loop = make(33)
    turn(loop)
    assert stopped(loop) == "target"
    ended = loop.finish()
    assert len(ended.rows) == ended.tally.kept_rows == 33


def test_every_candidate_is_counted_once() -> None:
    loop = make(40)
    turn(loop)
    _, rejected, t = loop.finish()
    assert t.candidates == t.kept_rows + t.kept_instructions + sum(t.rejected.values())
    reasons = Counter(r.rejection.reason for r in rejected)
    waiting = sum(not task.resolved for task in loop.pool.tasks)
    assert reasons["not_expanded"] == waiting
    assert len(rejected) == sum(t.rejected.values()) + waiting
    assert len({r.id for r in rejected}) == len(rejected)


def test_a_wrong_count_raises_an_error() -> None:
    loop = make(5)
    turn(loop)
    loop.tally.kept_rows -= 1
    with pytest.raises(RuntimeError, match="funnel"):
        loop.finish()


def test_later_stages_come_first() -> None:
    stages = [r.stage for r in turn(make(30), window=1)]
    after = [b for a, b in itertools.pairwise(stages) if a == "classification"]
    assert len(after) > 10
    assert set(after) == {"instances"}
    # New instructions are asked for when all earlier ones have been answered.
    assert stages[:2] == ["instructions", "classification"]


def test_drafts_for_few_missing_rows_come_before_later_stages() -> None:
    """The end of the run waits for them: they have more stages before them than what waits."""
    loop, waiting, answers = make(300), list[bool](), deque[tuple[int, Completion]]()
    number = 0
    while loop.stopped is None:
        while len(answers) < 64 and (choice := loop.choose(lambda role: True)) is not None:
            if choice.stage == "instructions":
                waiting.append(any(loop._queues[s.name] for s in loop.path[1:]))
            answers.append((number, echo(loop.issue(number, choice))))
            number += 1
        loop.commit(*answers.popleft())
    # At first, many rows are missing.
    assert True not in waiting[:50]
    assert 5 < waiting.count(True) < len(waiting) / 4


def test_later_stages_come_first_while_many_rows_are_missing() -> None:
    """At the beginning, rows come before the drafts of the whole run."""
    loop = make(1_000)
    requests = first_requests(loop, 32)
    for number, request in enumerate(requests[:8]):
        loop.commit(number, echo(request))
        choice = loop.choose(lambda role: True)
        assert choice is not None
        assert choice.stage == "classification"


def test_a_draft_starts_only_while_too_few_rows_are_expected() -> None:
    """Without a limit of the window, a run asks for few more drafts than its target needs."""
    loop = make(20)
    requests = turn(loop, window=10_000)
    assert stopped(loop) == "target"
    # Each draft is expected to give four rows.
    assert Counter(r.stage for r in requests)["instructions"] <= 20
    assert len(first_requests(make(1), 1)) == 1
    few = make(4)
    first_requests(few, 1)
    assert few.choose(lambda role: True) is None


def test_one_draft_starts_when_nothing_is_in_flight() -> None:
    """Drafts that were expected to give more rows than they gave must not end the run."""
    loop = make(3)
    turn(loop, lambda r: Completion("", "stop", 1, 0), window=4, most=50)
    assert loop.tally.requests == 50
    assert 50 <= loop.drafts <= 54


def test_no_request_is_chosen_for_a_role_without_room() -> None:
    assert make(5).choose(lambda role: False) is None


def test_accepted_instructions_return_as_demonstrations() -> None:
    loop = make(60)
    turn(loop, window=8)
    machine = {t.sample.id for t in loop.pool.tasks}
    assert any(machine & set(t.sample.origin.parents) for t in loop.pool.tasks)


def test_the_same_completions_give_the_same_rows() -> None:
    first, second = make(40), make(40)
    turn(first)
    turn(second)
    assert first.rows == second.rows
    assert first.finish() == second.finish()


def test_another_random_seed_gives_other_requests() -> None:
    assert first_requests(make(5), 1) != first_requests(make(5, seed=1), 1)


def test_requests_of_a_run_have_different_seeds() -> None:
    seeds = [r.sampling.seed for r in first_requests(make(500), 50)]
    assert len(set(seeds)) == len(seeds)


def test_the_request_digest_depends_on_all_that_decides_a_completion() -> None:
    (request,) = first_requests(make(5), 1)
    assert request_digest(request) == request_digest(replace(request))
    changed = [
        request.with_seed(1),
        replace(request, prompt="another prompt"),
        replace(request, schema={}),
        replace(request, role="judge"),
        replace(request, model="another"),
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


# -- the order of delivery --------------------------------------------------------------------------


class Lengths(Method):
    """A method with one row per draft; the completion is the row."""

    name = "lengths"
    stages: ClassVar[tuple[Stage, ...]] = (Stage("rows", 1.0),)

    def start(self, pool: Pool, rng: random.Random, number: int, form: PromptSetup) -> Draft:
        return Draft(number, "rows", child_sample(pool, (0,), "en"), (0,))

    def request(self, pool: Pool, draft: Draft, form: PromptSetup) -> Request:
        return Request(f"row {draft.number}", Sampling(), stage="rows")

    def read(self, draft: Draft, completion: Completion, form: PromptSetup) -> list[Outcome]:
        text = f"task {draft.number}"
        return [Accept(replace(draft.sample, instruction=text, output=completion.text))]


class Unexpected(Lengths):
    """The same method, which gives twice as many rows as it is expected to give."""

    name = "unexpected"
    stages: ClassVar[tuple[Stage, ...]] = (Stage("rows", 0.5),)


class Finite(Lengths):
    """The same method, with one draft per seed."""

    name = "finite"
    finite: ClassVar[bool] = True


def simple(
    target: int | str, method: type[Lengths] = Lengths, filters: tuple[Filter, ...] = (), **generate
) -> Loop:
    config = configured(1, **generate)
    settings = config.generate.model_copy(update={"target": target})
    config = replace(config, generate=settings, method=method(), filters=filters)
    seeds, _ = load_seeds([GENERAL])
    return Loop(config, PromptSetup("completion", False), seeds, "run")


def written(request: Request) -> Completion:
    """Answer with a text of a random length, as log-normal as those of a language model."""
    rng = random.Random(request.sampling.seed)
    length = 1024 if rng.random() < 0.01 else min(1024, int(rng.lognormvariate(4.7, 0.9)) + 1)
    return Completion(" ".join(["word"] * length), "stop", 1, length)


def test_rows_are_delivered_in_draft_order() -> None:
    loop = simple(100)
    turn(loop, written, window=64, seconds=lambda c: c.output_tokens)
    rows = loop.finish().rows
    assert [r.origin.draft for r in rows] == list(range(100))


def test_short_answers_do_not_crowd_out_long_ones() -> None:
    """The mean length is that of issued order, although short answers arrive first."""
    arrival, issued = simple(400), simple(400)
    turn(arrival, written, window=64, seconds=lambda c: c.output_tokens)
    turn(issued, written, window=64)
    means = [
        sum(len(r.output.split()) for r in loop.finish().rows) / 400 for loop in (arrival, issued)
    ]
    assert means[0] == pytest.approx(means[1], rel=0.03)
    first = sorted(arrival.rows, key=lambda r: len(r.output))[:400]
    assert sum(len(r.output.split()) for r in first) / 400 <= means[0]


def test_rows_after_the_target_are_kept_and_come_first_when_it_is_raised() -> None:
    low, high = simple(50, Unexpected), simple(80, Unexpected)
    for loop in (low, high):
        turn(loop, written, window=64, seconds=lambda c: c.output_tokens)
    ended = low.finish()
    extra = [r for r in ended.rejected if r.rejection.reason == "target_reached"]
    assert extra, "the simulation has accepted rows of later drafts"
    rows = high.finish().rows
    assert rows[:50] == ended.rows
    instructions = {r.instruction for r in rows}
    assert all(r.sample.instruction in instructions for r in extra if r.sample.origin.draft < 80)


# -- the end ------------------------------------------------------------------------------------


def test_finite_seeds_end_the_run() -> None:
    loop = simple("all", Finite)
    turn(loop, written)
    assert stopped(loop) == "inputs_exhausted"
    assert len(loop.finish().rows) == len(loop.pool.seeds)


def test_seeds_are_used_as_often_as_the_passes_say() -> None:
    loop = simple("all", Finite, passes=3)
    turn(loop, written)
    assert len(loop.finish().rows) == 3 * len(loop.pool.seeds)


def test_too_few_seeds_for_the_target_end_the_run() -> None:
    loop = simple(10_000, Finite)
    turn(loop, written)
    assert stopped(loop) == "inputs_exhausted"


def test_all_rows_of_seeds_drawn_without_end_need_a_limit() -> None:
    with pytest.raises(ConfigError, match="max-tokens-total"):
        configured("all")
    loop = make("all", max_tokens_total=30_000)
    turn(loop)
    assert stopped(loop) == "max_tokens_total"
    assert loop.tally.tokens >= 30_000


def test_the_cost_limit_ends_the_run() -> None:
    loop = make(10_000, max_cost=0.05, price=(1.0, 2.0))
    turn(loop)
    t = loop.tally
    assert stopped(loop) == "max_cost"
    assert loop.cost() == (t.prompt_tokens + 2 * t.output_tokens) / 1e6 >= 0.05
    with pytest.raises(ConfigError, match="price"):
        make(10, max_cost=1.0)


def test_low_acceptance_ends_the_run() -> None:
    loop = make(10_000, acceptance_floor=0.97)
    turn(loop)
    assert stopped(loop) == "acceptance_floor"
    assert loop.tally.candidates >= 200


def test_empty_completions_end_the_run() -> None:
    loop = make(10)
    turn(loop, lambda r: Completion("", "stop", 1, 0))
    assert stopped(loop) == "acceptance_floor"


def test_instructions_without_rows_end_the_run() -> None:
    """A model that only proposes instructions has high acceptance, but never gives a row."""
    loop, count = make(10), iter(range(100_000))

    def answer(request: Request) -> Completion:
        n = next(count)
        words = f"alpha{n} beta{n} gamma{n} delta{n}"
        text = words if request.stage == "instructions" else "not an instance"
        return Completion(text, "stop", 1, 1)

    turn(loop, answer, window=8)
    assert stopped(loop) == "acceptance_floor"
    # Acceptance is above the floor; what ended the run are 200 instructions without a row.
    assert loop.tally.kept / loop.tally.candidates > loop.config.generate.acceptance_floor
    assert loop.stopped is not None
    assert loop.stopped.detail.startswith("200 ")
    assert loop.tally.kept_instructions > 50


@pytest.mark.parametrize("window", [1, 2, 3])
def test_small_windows_reach_the_target(window: int) -> None:
    loop = make(3)
    turn(loop, window=window)
    assert stopped(loop) == "target"


def test_truncated_completions_give_no_rows() -> None:
    loop = make(10)
    (_,) = first_requests(loop, 1)
    loop.commit(0, Completion(" One full task here\n10. Another", "length", 1, 9))
    assert loop.tally.kept == 0


@pytest.mark.parametrize(
    # The filters of two_key embed each instruction, so that only a few requests are made.
    ("recipe", "most"),
    [("self_instruct", 600), ("alpaca", 60), ("two_key", 60)],
)
def test_the_other_recipes_run(recipe: str, most: int) -> None:
    loop = make(10, recipe)
    turn(loop, most=most)
    loop.finish()
    assert loop.tally.requests


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


def test_ten_runs_do_not_repeat_each_other(tmp_path: Path) -> None:
    """With --novel-against, a row is as different from those of earlier runs as from its own."""
    first = instructgen.generate(GENERAL, 20, tmp_path / "a", engine="echo")
    second = instructgen.generate(
        GENERAL, 20, tmp_path / "b", engine="echo", novel_against=[tmp_path / "a"]
    )
    texts = [{r["instruction"] for r in read_rows(run.out)} for run in (first, second)]
    assert len(texts[0]) > 5
    assert not texts[0] & texts[1]
    # The rows are copied into the run, which can be resumed although the dataset is gone.
    rebuilt = instructgen.rebuild(tmp_path / "b")
    assert rebuilt.unchanged


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
