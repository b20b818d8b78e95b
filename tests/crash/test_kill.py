"""Tests that a killed run, resumed with the same command, loses nothing that was recorded.

In the order of requests, the same bytes result. In the order of arrival, the journal decides the
rows. A run is killed in three ways: SIGKILL at random times, SIGKILL at each durable step in turn,
and a journal truncated within its last two records.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import tomllib
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import orjson
import pytest

from instructgen.commands.generate import GenerateResult, generate, rebuild
from instructgen.commands.import_data import import_data
from instructgen.errors import RunError
from instructgen.generation.sequencer import ISSUED_WINDOWS
from instructgen.plugins import classes, find
from instructgen.store import CompletionLine, IssueLine, Run, SessionLine, read_rows
from instructgen.store.journal import Line
from tests import forks
from tests.conftest import ROOT
from tests.crash import children
from tests.test_loop import tree_digest

SEEDS = ROOT / "seeds" / "general.jsonl"
TARGET, WINDOW = 40, 16


def start(
    out: Path,
    calls: Path,
    pace_s: float = 0.0,
    at: int = 0,
    moment: str = "before",
    order: str = "issued",
    shuffled: bool = True,
    target: int = TARGET,
) -> BaseProcess:
    arguments = (str(SEEDS), target, str(out), WINDOW, str(calls), pace_s, at, moment)
    return forks.start(children.generate, *arguments, order, shuffled)


def finish(out: Path, calls: Path, **options: object) -> None:
    process = start(out, calls, **options)  # type: ignore[arg-type]
    process.join(120)
    assert process.exitcode == 0


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    """The digest and the number of requests of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("plain")
    finish(folder / "run", folder / "calls", shuffled=False)
    return tree_digest(folder / "run"), (folder / "calls").stat().st_size


def check_open(out: Path) -> None:
    """Check that each file with its final name is complete."""
    import orjson
    import pyarrow.parquet as pq

    for path in out.rglob("part-*.parquet"):
        pq.read_table(path)
    for path in out.rglob("*.json"):
        orjson.loads(path.read_bytes())


def kill_at_random(folder: Path, plain: tuple[str, int], kills: int, order: str, seed: int) -> None:
    """Kill runs at random times until ``kills`` of them died; compare each finished run."""
    digest, requests = plain
    rng = random.Random(seed)
    out, calls = folder / "run", folder / "calls"
    killed = rounds = of_run = 0
    while killed < kills or of_run:
        before, numbered = completed(out), len(numbers(calls))
        process = start(out, calls, pace_s=0.002, order=order)
        # The range is from before the folder exists until well into the run.
        process.join(rng.uniform(0.01, 0.6) if killed < kills else 120)
        if process.exitcode is None:
            process.kill()
            process.join()
            killed, of_run = killed + 1, of_run + 1
        if out.exists():
            check_open(out)
        assert not before & set(numbers(calls)[numbered:])
        rounds += 1
        if process.exitcode != 0:
            continue
        # A kill repeats at most the unfinished requests in flight.
        asked = calls.stat().st_size
        recorded = check_journal(out)
        assert asked <= recorded + (of_run + 1) * WINDOW
        if order == "issued":
            assert tree_digest(out) == digest
            assert asked <= requests + of_run * WINDOW
        else:
            assert forks.run(children.rebuild, str(out)) == 0
        assert len(list(read_rows(out))) == TARGET
        out, calls, of_run = folder / str(rounds) / "run", folder / f"calls{rounds}", 0


def completed(out: Path) -> set[int]:
    """Return the numbers of the completions that a run has recorded, also one that was killed."""
    if not (out / "journal.jsonl").exists():
        return set()
    with Run.view(out) as run:
        return {line.n for _, line in run.lines() if isinstance(line, CompletionLine)}


def numbers(calls: Path) -> list[int]:
    """Return the numbers of the requests that the engine got."""
    file = calls.with_name(f"{calls.name}.numbers")
    return [int(n) for n in file.read_text().split()] if file.exists() else []


def check_journal(out: Path) -> int:
    """Check that no number is issued or completed twice; return the number of completions."""
    with Run.view(out) as run:
        lines = [line for _, line in run.lines()]
    issued = [line.n for line in lines if isinstance(line, IssueLine)]
    completed = [line.n for line in lines if isinstance(line, CompletionLine)]
    assert issued == list(range(len(issued)))
    assert len(set(completed)) == len(completed)
    assert set(completed) <= set(issued)
    return len(completed)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["issued", "arrival"])
def test_a_run_killed_at_random_times_loses_nothing(
    tmp_path: Path, plain: tuple[str, int], order: str
) -> None:
    kill_at_random(tmp_path, plain, 24, order, 20261122)


@pytest.mark.long
@pytest.mark.parametrize("order", ["issued", "arrival"])
def test_two_hundred_kills(tmp_path: Path, plain: tuple[str, int], order: str) -> None:
    kill_at_random(tmp_path, plain, 200, order, 20261126)


def kill_echo(folder: Path, kills: int, seed: int) -> None:
    """Kill the command with the engine echo at random times; compare each finished run."""
    recipe = folder / "slow.toml"
    text = (ROOT / "filters" / "default.toml").read_text()
    recipe.write_text(f'[engine]\nname = "echo"\ndelay_s = 0.01\n{text}')

    def begin(out: Path) -> BaseProcess:
        options = ["--seeds", SEEDS, "--target", TARGET, "--out", out, "--recipe", recipe]
        words = ["generate", *map(str, options)]
        return forks.start(children.command, words, str(folder), str(folder / "stderr"))

    def ended(process: BaseProcess, after_s: float) -> bool:
        process.join(after_s)
        if process.exitcode is not None:
            assert process.exitcode == 0, (folder / "stderr").read_text()
            return True
        process.kill()
        process.join()
        return False

    assert ended(begin(folder / "plain" / "run"), 120)
    digest = tree_digest(folder / "plain" / "run")
    rng = random.Random(seed)
    killed = rounds = 0
    while killed < kills:
        out, rounds = folder / str(rounds) / "run", rounds + 1
        while not ended(begin(out), rng.uniform(0.05, 0.8) if killed < kills else 120):
            killed += 1
            if out.exists():
                check_open(out)
        check_journal(out)
        assert tree_digest(out) == digest


@pytest.mark.slow
def test_a_run_with_echo_killed_at_random_times_has_the_same_bytes(tmp_path: Path) -> None:
    kill_echo(tmp_path, 24, 20261128)


@pytest.mark.long
def test_two_hundred_kills_with_echo(tmp_path: Path) -> None:
    kill_echo(tmp_path, 200, 20261129)


PASSAGES = ROOT / "seeds" / "passages.jsonl"
SEEDS_OF = {
    "personas": "personas",
    "documents": "passages",
    "tasks": "general",
    "rows": "general",
    "snippets": "snippets",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(classes("methods")))
def test_a_run_of_each_method_killed_at_random_times_has_the_same_bytes(
    tmp_path: Path, name: str
) -> None:
    seeds, start = "", find("methods", name).starts_from
    if name in ("rationale", "solve"):
        seeds = str(tmp_path / "sums.jsonl")
        rows = (f'{{"instruction": "What is {n} - {n} + {n % 3}?", "output": "#### {n % 3}", '
                f'"license": "MIT"}}\n' for n in range(40))  # fmt: skip
        Path(seeds).write_text("".join(rows))
    elif name == "document":
        # Of some method, documents are imported; of others, they are rows with a text.
        folder = tmp_path / "documents"
        texts = [r["text"] for r in map(orjson.loads, PASSAGES.open("rb"))]
        folder.mkdir()
        for number, text in enumerate(texts):
            (folder / f"{number:02}.md").write_text(text)
        terms = {"license": "CC0-1.0", "language": "en", "format": "documents"}
        seeds = f"documents={import_data(folder, tmp_path / 'segments', **terms).out}"
    elif name == "tool_dialogue":
        seeds = f"desk={ROOT / 'examples' / 'desk'}"
    elif start in SEEDS_OF:
        seeds = str(ROOT / "seeds" / f"{SEEDS_OF[start]}.jsonl")
    # The name of the folder is in the card.
    plain, out, calls = tmp_path / "plain" / "run", tmp_path / "run", tmp_path / "calls"
    # Programs run in a sandbox, which takes time.
    target = 4 if name == "code" else 12
    words = (seeds, target, str(plain), 6, str(tmp_path / "first"), 0.0, 0, "before", "issued")
    assert forks.run(children.generate, *words, False, name) == 0
    rng = random.Random(name)
    killed = 0
    while True:
        words = (seeds, target, str(out), 6, str(calls), 0.03, 0, "before", "issued")
        process = forks.start(children.generate, *words, True, name)
        process.join(rng.uniform(0.2, 0.6) if killed < 3 else 120)
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        killed += 1
    assert process.exitcode == 0
    assert killed == 3
    assert tree_digest(out) == tree_digest(plain)
    requests = (tmp_path / "first").stat().st_size
    assert calls.stat().st_size <= requests + killed * 6 * ISSUED_WINDOWS
    assert forks.run(children.rebuild, str(out)) == 0


@pytest.mark.slow
def test_a_journal_of_arrivals_resumed_twice(tmp_path: Path) -> None:
    """Two continuations share the rows of the common lines, and ask for none of them again."""
    first, second = tmp_path / "a", tmp_path / "b"
    process = start(first, tmp_path / "calls", 0.004, order="arrival")
    journal = first / "journal.jsonl"
    while not journal.exists() or journal.read_bytes().count(b'"kind":"completion"') < 90:
        time.sleep(0.01)
        assert process.exitcode is None
    process.kill()
    process.join()
    shutil.copytree(first, second)
    before, recorded = check_journal(first), completed(first)
    for out in (first, second):
        calls = tmp_path / f"calls-{out.name}"
        finish(out, calls, order="arrival")
        # What is asked now are the requests without a completion, and new ones.
        assert calls.stat().st_size <= check_journal(out) - before + WINDOW
        assert not recorded & set(numbers(calls))
    rows = [list(read_rows(out)) for out in (first, second)]
    common = common_lines(first, second)
    shared = [
        [r["id"] for r in each if r["origin"]["request"] in common and r["origin"]["draft"] < 6]
        for each in rows
    ]
    assert shared[0] == shared[1] != []
    assert [r["id"] for r in rows[0]] != [r["id"] for r in rows[1]]
    for out in (first, second):
        assert forks.run(children.rebuild, str(out)) == 0


def common_lines(first: Path, second: Path) -> set[int]:
    """Return the numbers of the completions that both journals begin with."""
    common = set()
    with Run.view(first) as a, Run.view(second) as b:
        for (_, one), (_, other) in zip(a.lines(), b.lines(), strict=False):
            if one != other:
                break
            if isinstance(one, CompletionLine):
                common.add(one.n)
    return common


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_at_each_durable_step(tmp_path: Path, plain: tuple[str, int], moment: str) -> None:
    """Kill at each write, fsync, open, replace and unlink; after 10 steps, at every 13th."""
    digest, _ = plain
    out, calls = tmp_path / "run", tmp_path / "calls"
    # Each killed start has made progress, so the next start takes other steps. The loop
    # ends when a start completes the run.
    at, deaths = 1, 0
    while True:
        process = start(out, calls, 0.0, at, moment)
        process.join(120)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        check_open(out)
        deaths += 1
        at += 1 if deaths < 10 else 13
    assert deaths >= 12
    assert tree_digest(out) == digest


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A finished run with the engine echo."""
    out = tmp_path / "run"
    assert echo(out).rows == TARGET
    return out


def echo(out: Path, target: int = TARGET, **options: Any) -> GenerateResult:
    return generate(SEEDS, target, out, engine="echo", in_flight=WINDOW, **options)


def test_a_truncated_journal_resumes_to_the_same_bytes(finished: Path) -> None:
    out, digest = finished, tree_digest(finished)
    journal = out / "journal.jsonl"
    complete = journal.read_bytes()
    lines = complete.split(b"\n")[:-1]
    start_at = len(complete) - len(lines[-1]) - len(lines[-2]) - 2
    for cut in [*range(start_at, len(complete), 97), start_at - 1, 0, 1, len(complete) // 2]:
        journal.write_bytes(complete[:cut])
        result = echo(out)
        assert tree_digest(out) == digest
        torn = cut and not complete[:cut].endswith(b"\n")
        assert bool(result.healed) == bool(torn)


def test_rebuild_makes_the_same_bytes_without_an_engine(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, digest = finished, tree_digest(finished)
    for name in ("data", "rejected"):
        shutil.rmtree(out / name)
    (out / "manifest.json").unlink()
    (out / "README.md").unlink()
    monkeypatch.setattr(
        "instructgen.engines.echo.EchoEngine.complete",
        lambda *_: pytest.fail("the engine was called"),
    )
    result = rebuild(out)
    assert result.asked == 0
    assert tree_digest(out) == digest


def test_rebuild_needs_no_model(tiny: Path, tmp_path: Path) -> None:
    """A run stays usable when the folder of the model that wrote it has been deleted."""
    import orjson

    out, model = tmp_path / "run", tmp_path / "model"
    shutil.copytree(tiny, model)
    echo(out, 5, model=str(model))
    info = orjson.loads((out / "run.json").read_bytes())
    info["config"]["engine"] = {"name": "transformers", "model": str(model), "max_model_len": 256}
    (out / "run.json").write_bytes(orjson.dumps(info))
    shutil.rmtree(model)
    (out / "manifest.json").unlink()
    assert rebuild(out).rows == 5


def test_a_finished_run_makes_no_further_requests(finished: Path) -> None:
    journal = (finished / "journal.jsonl").read_bytes()
    result = echo(finished)
    assert (result.asked, result.rows, result.unchanged) == (0, TARGET, True)
    assert (finished / "journal.jsonl").read_bytes() == journal


@pytest.mark.slow
def test_a_run_interrupted_with_ctrl_c_resumes_to_the_same_rows(tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe, stderr = tmp_path / "slow.toml", tmp_path / "stderr"
    text = (ROOT / "filters" / "default.toml").read_text()

    def begin(delay_s: float) -> BaseProcess:
        recipe.write_text(f'[engine]\nname = "echo"\ndelay_s = {delay_s}\n{text}')
        options = ["--seeds", SEEDS, "--target", TARGET, "--out", out, "--recipe", recipe]
        words = ["generate", *map(str, options), "--in-flight", str(WINDOW)]
        return forks.start(children.command, words, str(tmp_path), str(stderr))

    def recorded() -> int:
        journal = out / "journal.jsonl"
        return journal.stat().st_size if journal.exists() else 0

    stopped = 0
    for point in range(6):
        before = recorded()
        process = begin(0.4)
        while process.exitcode is None and recorded() <= before:
            time.sleep(0.01)
        time.sleep(0.06 * point)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGINT)
        # The documented limit is ten seconds; a busy machine may need longer.
        process.join(20)
        if process.exitcode == 130:
            stopped += 1
            assert "interrupted" in stderr.read_text()
            assert "Traceback" not in stderr.read_text()
        else:
            assert process.exitcode == 0, stderr.read_text()
    assert stopped >= 3
    process = begin(0.0)
    process.join(120)
    assert process.exitcode == 0
    echo(tmp_path / "plain" / "run")
    # Only the rows are compared: the recorded configurations differ in the delay.
    assert rows_bytes(out) == rows_bytes(tmp_path / "plain" / "run")


def rows_bytes(out: Path) -> list[bytes]:
    return [p.read_bytes() for p in sorted(out.glob("*/part-*.parquet"))]


# -- resuming with other settings -----------------------------------------------------------

# The key that the message names, and the options that change it.
CHANGES = {
    "generate.seed": {"seed": 7},
    "method.name": {"method": "alpaca"},
    "filters.": {"recipe": "self_instruct"},
    "engine.name": {"engine": "openai", "model": "m"},
    "engine.model": {"model": "other"},
}


@pytest.mark.parametrize("key", CHANGES)
def test_resuming_with_a_changed_setting_is_an_error(tmp_path: Path, key: str) -> None:
    out = tmp_path / "run"
    options = {"engine": "echo", "in_flight": WINDOW}
    generate(SEEDS, 5, out, **options)
    before = tree_digest(out)
    with pytest.raises(RunError) as caught:
        generate(SEEDS, 5, out, **{**options, **CHANGES[key]})
    assert key in str(caught.value)
    assert tree_digest(out) == before


def test_resuming_with_changed_seeds_is_an_error(tmp_path: Path, seeds_file: Path) -> None:
    generate(seeds_file, 5, tmp_path / "run", engine="echo")
    seeds_file.write_bytes(seeds_file.read_bytes().replace(b"jam jar", b"tin can"))
    with pytest.raises(RunError) as caught:
        generate(seeds_file, 5, tmp_path / "run", engine="echo")
    # The path of the folder contains the name of this test.
    message = str(caught.value).replace(str(tmp_path), "")
    assert "seeds" in message
    assert "12" in message


@pytest.mark.parametrize("order", ["issued", "arrival"])
def test_a_raised_target_continues_with_the_same_rows(tmp_path: Path, order: str) -> None:
    """No request is repeated, and rows that were accepted after the target are used.

    How many there are depends on the time; test_loop.py has a test in which there are some.
    """
    out, calls = tmp_path / "run", tmp_path / "calls"
    finish(out, calls, order=order, target=10)
    before = [r["id"] for r in read_rows(out)]
    assert len(before) == 10
    late = {
        (r["instruction"], r["output"])
        for r in read_rows(out, "rejected")
        if r["reason"] == "target_reached"
    }
    completions, asked = check_journal(out), calls.stat().st_size
    calls.unlink()
    finish(out, calls, order=order)
    rows = list(read_rows(out))
    assert len(rows) == TARGET
    assert [r["id"] for r in rows[:10]] == before
    assert {(r["instruction"], r["output"]) for r in rows} >= late
    # Those that were canceled when the target was reached are asked again.
    assert asked - completions <= WINDOW
    assert calls.stat().st_size <= check_journal(out) - completions + WINDOW
    assert forks.run(children.rebuild, str(out)) == 0


@pytest.mark.parametrize(
    "changed",
    [{"in_flight": 3}, {"in_flight": 100}, {"order": "arrival"}, {"delay_s": 0.001}],
    ids=["smaller window", "larger window", "order", "option of the engine"],
)
def test_window_order_and_engine_options_may_change(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    """A run that was interrupted continues; the rows follow from its journal."""
    out = tmp_path / "run"
    echo(out)
    journal = out / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[: len(lines) // 2]))
    for part in ("data", "rejected"):
        shutil.rmtree(out / part)
    (out / "manifest.json").unlink()
    with Run.view(out) as run:
        sessions = [line for _, line in run.lines() if isinstance(line, SessionLine)]
    recipe = tomllib.loads((ROOT / "filters" / "default.toml").read_text())
    recipe["engine"] = {"name": "echo", "delay_s": changed.get("delay_s", 0.0)}
    recipe["generate"] = {"commit_order": changed.get("order", "issued")}
    window = changed.get("in_flight", WINDOW)
    result = generate(SEEDS, TARGET, out, recipe=recipe, in_flight=window)
    assert (result.rows, result.facts.stopped) == (TARGET, "target")
    check_journal(out)
    with Run.view(out) as run:
        later = [line for _, line in run.lines() if isinstance(line, SessionLine)]
    assert later[: len(sessions)] == sessions
    assert (later[-1].window, later[-1].order) == (window, changed.get("order", "issued"))
    assert rebuild(out).unchanged


def test_a_line_that_does_not_fit_is_named(finished: Path) -> None:
    """A journal with a valid digest chain, but with a line that the run cannot have written."""
    with Run.view(finished) as run:
        lines = [line for _, line in run.lines()]
    place = next(i for i, line in enumerate(lines) if isinstance(line, CompletionLine))
    completion = lines[place]
    assert isinstance(completion, CompletionLine)
    issue = next(line for line in lines if isinstance(line, IssueLine))
    for wrong in (
        replace(completion, n=10_000),
        replace(completion, n=-1),
        replace(completion, digest="0" * 16),
        replace(issue, n=5_000),
        replace(issue, n=len([x for x in lines[:place] if isinstance(x, IssueLine)]), draft=77),
        replace(issue, n=len([x for x in lines[:place] if isinstance(x, IssueLine)]), stage="no"),
    ):
        (finished / "journal.jsonl").unlink()
        with Run.open(finished) as run:
            run.append(*lines[:place], wrong)
        for action in (lambda: rebuild(finished), lambda: echo(finished)):
            with pytest.raises(RunError, match=rf"journal\.jsonl, line {place + 1}: "):
                action()


def test_the_first_completion_of_a_request_counts(finished: Path) -> None:
    with Run.view(finished) as run:
        lines = [line for _, line in run.lines()]
    digest = tree_digest(finished)
    (finished / "journal.jsonl").unlink()
    repeated: list[Line] = []
    for line in lines:
        repeated.append(line)
        if isinstance(line, CompletionLine):
            other = replace(line.completion, text="another text")
            repeated.append(replace(line, completion=other))
    with Run.open(finished) as run:
        run.append(*repeated)
    rebuild(finished)
    assert tree_digest(finished) == digest
