"""Tests that a killed run, resumed with the same command, gives the same bytes.

No completion is requested twice. A run is killed in three ways: SIGKILL at random times,
SIGKILL at each durable step in turn, and a journal truncated within its last two records.
"""

from __future__ import annotations

import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from instructgen.commands.generate import generate, rebuild
from instructgen.errors import RunError
from instructgen.generation.loop import LAG
from tests import forks
from tests.conftest import ROOT
from tests.crash import children
from tests.test_loop import tree_digest

SEEDS = ROOT / "seeds" / "general.jsonl"
TARGET, BATCH, KILLS = 40, 8, 25


def start(
    out: Path, calls: Path, pace_s: float = 0.0, at: int = 0, moment: str = "before"
) -> BaseProcess:
    arguments = (str(SEEDS), TARGET, str(out), BATCH, str(calls), pace_s, at, moment)
    return forks.start(children.generate, *arguments)


def finish(out: Path, calls: Path) -> None:
    process = start(out, calls)
    process.join(120)
    assert process.exitcode == 0


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    """The digest and the number of requests of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("plain")
    finish(folder / "run", folder / "calls")
    return tree_digest(folder / "run"), (folder / "calls").stat().st_size


def check_open(out: Path) -> None:
    """Check that each file with its final name is complete."""
    import orjson
    import pyarrow.parquet as pq

    for path in out.rglob("part-*.parquet"):
        pq.read_table(path)
    for path in out.rglob("*.json"):
        orjson.loads(path.read_bytes())


@pytest.mark.slow
def test_a_run_killed_at_random_times_gives_the_same_bytes(
    tmp_path: Path, plain: tuple[str, int]
) -> None:
    digest, requests = plain
    rng = random.Random(20261122)
    out, calls = tmp_path / "run", tmp_path / "calls"
    kills = rounds = 0
    while kills < KILLS:
        process = start(out, calls, pace_s=0.002)
        # The range is from before the folder exists until well into the run.
        process.join(rng.uniform(0.01, 0.6))
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
        if out.exists():
            check_open(out)
        rounds += 1
        if process.exitcode == 0:
            assert tree_digest(out) == digest
            out, calls = tmp_path / f"run{rounds}" / "run", tmp_path / f"calls{rounds}"
    finish(out, calls)
    assert tree_digest(out) == digest
    # A kill repeats at most the unfinished requests of the batches in flight.
    assert calls.stat().st_size <= requests + kills * LAG * BATCH


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_at_each_durable_step(tmp_path: Path, plain: tuple[str, int], moment: str) -> None:
    """Kill at each write, fsync, open, replace and unlink; after 12 steps, at every ninth."""
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
        at += 1 if deaths < 12 else 9
    assert deaths >= 15
    assert tree_digest(out) == digest


def test_a_truncated_journal_resumes_to_the_same_bytes(
    tmp_path: Path, plain: tuple[str, int]
) -> None:
    digest, _ = plain
    out = tmp_path / "run"
    finish(out, tmp_path / "calls")
    journal = out / "journal.jsonl"
    complete = journal.read_bytes()
    lines = complete.split(b"\n")[:-1]
    start_at = len(complete) - len(lines[-1]) - len(lines[-2]) - 2
    for cut in [*range(start_at, len(complete), 37), start_at - 1, 0, 1, len(complete) // 2]:
        journal.write_bytes(complete[:cut])
        result = generate(SEEDS, TARGET, out, engine="echo", batch_size=BATCH)
        assert tree_digest(out) == digest
        torn = cut and not complete[:cut].endswith(b"\n")
        assert bool(result.healed) == bool(torn)


def test_rebuild_makes_the_same_bytes_without_an_engine(
    tmp_path: Path, plain: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    digest, _ = plain
    out = tmp_path / "run"
    finish(out, tmp_path / "calls")
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
    import shutil

    import orjson

    out, model = tmp_path / "run", tmp_path / "model"
    shutil.copytree(tiny, model)
    generate(SEEDS, 5, out, engine="echo", batch_size=BATCH)
    info = orjson.loads((out / "run.json").read_bytes())
    info["config"]["engine"] = {"name": "transformers", "model": str(model), "max_model_len": 256}
    (out / "run.json").write_bytes(orjson.dumps(info))
    shutil.rmtree(model)
    (out / "manifest.json").unlink()
    assert rebuild(out).rows == 5


def test_a_finished_run_makes_no_further_requests(tmp_path: Path) -> None:
    out, calls = tmp_path / "run", tmp_path / "calls"
    finish(out, calls)
    before = calls.stat().st_size
    result = generate(SEEDS, TARGET, out, engine="echo", batch_size=BATCH)
    assert calls.stat().st_size == before
    assert result.asked == 0
    assert result.rows == TARGET


@pytest.mark.slow
def test_a_run_interrupted_with_ctrl_c_resumes_to_the_same_rows(tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe, stderr = tmp_path / "slow.toml", tmp_path / "stderr"
    text = (ROOT / "filters" / "default.toml").read_text()

    def begin(delay_s: float) -> BaseProcess:
        recipe.write_text(f'[engine]\nname = "echo"\ndelay_s = {delay_s}\n{text}')
        options = ["--seeds", SEEDS, "--target", TARGET, "--out", out, "--recipe", recipe]
        words = ["generate", *map(str, options), "--batch-size", str(BATCH)]
        return forks.start(children.command, words, str(tmp_path), str(stderr))

    def recorded() -> int:
        journal = out / "journal.jsonl"
        return journal.stat().st_size if journal.exists() else 0

    stopped = 0
    for point in range(10):
        before = recorded()
        process = begin(0.4)
        while process.exitcode is None and recorded() <= before:
            time.sleep(0.01)
        time.sleep(0.04 * point)
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
    assert stopped >= 5
    process = begin(0.0)
    process.join(120)
    assert process.exitcode == 0
    finish(tmp_path / "plain" / "run", tmp_path / "calls")
    # Only the rows are compared: the recorded configurations differ in the delay.
    assert rows_bytes(out) == rows_bytes(tmp_path / "plain" / "run")


def rows_bytes(out: Path) -> list[bytes]:
    return [p.read_bytes() for p in sorted(out.glob("*/part-*.parquet"))]


# -- resuming with other settings -----------------------------------------------------------

# The key that the message names, and the options that change it.
CHANGES = {
    "generate.seed": {"seed": 7},
    "generate.batch_size": {"batch_size": 9},
    "method.name": {"method": "alpaca"},
    "filters.": {"recipe": "self_instruct"},
    "engine.name": {"engine": "openai", "model": "m"},
    "engine.model": {"model": "other"},
}


@pytest.mark.parametrize("key", CHANGES)
def test_resuming_with_a_changed_setting_is_an_error(tmp_path: Path, key: str) -> None:
    out = tmp_path / "run"
    options = {"engine": "echo", "batch_size": BATCH}
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


def test_target_and_token_limit_may_change_on_resume(tmp_path: Path) -> None:
    out = tmp_path / "run"
    generate(SEEDS, 10, out, engine="echo", batch_size=BATCH, max_tokens_total=10**6)
    result = generate(SEEDS, TARGET, out, engine="echo", batch_size=BATCH)
    assert (result.rows, result.facts.stopped) == (TARGET, "target")
    finish(tmp_path / "direct" / "run", tmp_path / "calls")
    assert tree_digest(out) == tree_digest(tmp_path / "direct" / "run")
