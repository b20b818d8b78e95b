"""Tests that killed training resumes from a complete checkpoint, with the same losses."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import orjson
import pytest

from instructgen import train
from instructgen.store import read_log
from instructgen.store.checkpoints import training
from tests import forks
from tests.crash import children
from tests.training_data import dataset, sentences

pytestmark = pytest.mark.slow
OPTIONS = {
    "sft": {"steps": 12, "max_length": 96, "checkpoint_every": 3, "evaluate": False},
    "grpo": {
        "steps": 8,
        "max_length": 96,
        "max_new_tokens": 8,
        "batch_size": 4,
        "checkpoint_every": 2,
        "evaluate": False,
        "reward": ["verifiers:ifeval"],
    },
    "ppo": {
        "steps": 8,
        "max_length": 96,
        "max_new_tokens": 8,
        "batch_size": 4,
        "checkpoint_every": 2,
        "evaluate": False,
        "reward": ["verifiers:ifeval"],
    },
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("rows"), sentences(120))


def run(method: str, rows: Path, tiny: Path, out: Path, step: int = -1, sync: int = 0) -> int:
    arguments = (method, str(rows), str(tiny), str(out), OPTIONS[method], step, sync)
    return forks.run(children.train, *arguments, timeout_s=300)


def losses(out: Path) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in read_log(out)]


@pytest.mark.parametrize("method", ["sft", "grpo", "ppo"])
def test_training_killed_twice_has_the_same_losses(
    method: str, rows: Path, tiny: Path, tmp_path: Path
) -> None:
    assert run(method, rows, tiny, tmp_path / "whole") == 0
    out = tmp_path / "killed"
    # Once before the first checkpoint, and once between two checkpoints.
    for step in (1, OPTIONS[method]["checkpoint_every"] + 1):
        assert run(method, rows, tiny, out, step=step) == -signal.SIGKILL
    assert run(method, rows, tiny, out) == 0
    assert losses(out) == losses(tmp_path / "whole")
    one, other = ((p / "model.safetensors").read_bytes() for p in (out, tmp_path / "whole"))
    assert one == other
    assert not list(out.glob("**/*.partial"))
    assert not (out / "checkpoints").exists()


def test_training_killed_while_it_writes_files_resumes(
    rows: Path, tiny: Path, tmp_path: Path
) -> None:
    """Kill at an fsync of a checkpoint's seal, of the export, and of the end."""
    assert run("sft", rows, tiny, tmp_path / "whole") == 0
    out = tmp_path / "killed"
    kills = 0
    for sync in (9, 19, 24):
        code = run("sft", rows, tiny, out, sync=sync)
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
    assert run("sft", rows, tiny, out) == 0
    assert kills >= 2
    assert losses(out) == losses(tmp_path / "whole")
    assert (out / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


def test_training_killed_at_any_time_has_the_same_losses(
    rows: Path, tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    arguments = ("sft", str(rows), str(tiny), str(out), OPTIONS["sft"])
    codes = []
    for seconds in (1.0, 2.0):
        child = forks.start(children.train, *arguments)
        time.sleep(seconds)
        child.kill()
        child.join()
        codes.append(child.exitcode)
    assert -signal.SIGKILL in codes
    assert run("sft", rows, tiny, out) == 0
    assert run("sft", rows, tiny, tmp_path / "whole") == 0
    assert losses(out) == losses(tmp_path / "whole")


def checkpointed(rows: Path, tiny: Path, out: Path) -> Path:
    assert run("sft", rows, tiny, out, step=8) == -signal.SIGKILL
    newest = sorted(out.glob("checkpoints/checkpoint-*"))
    assert [p.name for p in newest] == ["checkpoint-3", "checkpoint-6"]
    return newest[-1]


def test_a_damaged_checkpoint_is_skipped(rows: Path, tiny: Path, tmp_path: Path) -> None:
    """Truncate or delete each file of the newest: the previous one is used, with a message."""
    newest = checkpointed(rows, tiny, tmp_path / "m")
    files = [p.relative_to(newest) for p in newest.rglob("*") if p.is_file()]
    assert len(files) > 5
    asked = orjson.loads((tmp_path / "m" / "run.json").read_bytes())
    asked = {k: v for k, v in asked.items() if k not in ("format", "status")}
    for number, name in enumerate(files):
        for harm in ("truncate", "delete"):
            out = tmp_path / f"{number}-{harm}"
            shutil.copytree(tmp_path / "m", out)
            path = out / "checkpoints" / newest.name / name
            if harm == "delete":
                path.unlink()
            else:
                os.truncate(path, path.stat().st_size // 2)
            with training(out, asked) as model_run:
                taken = model_run.latest_complete_checkpoint()
            empty = harm == "truncate" and not (newest / name).stat().st_size
            assert taken.name == ("checkpoint-6" if empty else "checkpoint-3"), name
            assert len(model_run.messages) == (not empty)
            shutil.rmtree(out)


def test_a_resumed_training_reports_its_checkpoint(rows: Path, tiny: Path, tmp_path: Path) -> None:
    newest = checkpointed(rows, tiny, tmp_path / "m")
    os.truncate(newest / "optimizer.pt", 100)
    options = OPTIONS["sft"]
    resumed = train("sft", rows, tmp_path / "m", model=str(tiny), **options)
    assert any("optimizer.pt" in message for message in resumed.messages)
    assert any("checkpoint-3" in message for message in resumed.messages)
    assert resumed.facts["steps"] == 12


def test_two_trainings_cannot_use_one_folder_at_the_same_time(
    rows: Path, tiny: Path, tmp_path: Path
) -> None:
    from instructgen.errors import RunError

    out = tmp_path / "m"
    first = train("sft", rows, out, model=str(tiny), **OPTIONS["sft"])
    again = train("sft", rows, out, model=str(tiny), **OPTIONS["sft"])
    assert (first.unchanged, again.unchanged) == (False, True)
    asked = orjson.loads((out / "run.json").read_bytes())
    asked = {k: asked[k] for k in ("command", "options")}
    with (
        training(out, asked),
        pytest.raises(RunError, match="in use"),
        training(out, asked),
    ):
        pass
