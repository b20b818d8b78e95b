"""Tests that killed training resumes from a complete checkpoint, with the same losses."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from instructgen import train
from instructgen.errors import RunError
from instructgen.store import read_log, read_training, training
from tests import forks
from tests.crash import children
from tests.training_data import dataset, sentences

pytestmark = pytest.mark.slow
OPTIONS = {
    "sft": {
        "steps": 12,
        "max_length": 96,
        "batch_size": 4,
        "checkpoint_every": 3,
        "evaluate": False,
    },
    "grpo": {
        "steps": 6,
        "max_length": 96,
        "max_new_tokens": 8,
        "batch_size": 4,
        "checkpoint_every": 2,
        "evaluate": False,
        "reward": ["verifiers:ifeval"],
    },
    "ppo": {
        "steps": 6,
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


@pytest.fixture(scope="module")
def whole(rows: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained with the trainer sft, without a kill."""
    out = tmp_path_factory.mktemp("whole") / "m"
    assert run("sft", rows, tiny, out) == 0
    return out


@pytest.fixture(scope="module")
def interrupted(rows: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was killed after its second checkpoint."""
    out = tmp_path_factory.mktemp("interrupted") / "m"
    assert run("sft", rows, tiny, out, step=8) == -signal.SIGKILL
    return out


def run(trainer: str, rows: Path, tiny: Path, out: Path, step: int = -1, file: str = "") -> int:
    arguments = (trainer, str(rows), str(tiny), str(out), OPTIONS[trainer], step, file)
    return forks.run(children.train, *arguments, timeout_s=300)


def losses(out: Path) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in read_log(out)]


@pytest.mark.parametrize("trainer", ["sft", "grpo", "ppo"])
def test_training_killed_twice_has_the_same_losses(
    trainer: str, rows: Path, tiny: Path, tmp_path: Path, whole: Path
) -> None:
    if trainer != "sft":
        whole = tmp_path / "whole"
        assert run(trainer, rows, tiny, whole) == 0
    out = tmp_path / "killed"
    # Once before the first checkpoint, and once between two checkpoints.
    for step in (1, OPTIONS[trainer]["checkpoint_every"] + 1):
        assert run(trainer, rows, tiny, out, step=step) == -signal.SIGKILL
    assert run(trainer, rows, tiny, out) == 0
    assert losses(out) == losses(whole)
    one, other = ((p / "model.safetensors").read_bytes() for p in (out, whole))
    assert one == other
    assert not list(out.glob("**/*.partial"))
    assert not (out / "checkpoints").exists()


def test_training_killed_while_it_writes_files_resumes(
    rows: Path, tiny: Path, tmp_path: Path, whole: Path
) -> None:
    """Kill at an fsync of a checkpoint's file, of its seal, of the export, and of the end."""
    out = tmp_path / "killed"
    for file in (
        "checkpoint-3/optimizer.pt",
        "checkpoint-6/.sealed.json.partial",
        ".export/config.json",
        ".training.json.partial",
    ):
        assert run("sft", rows, tiny, out, file=file) == -signal.SIGKILL, file
    assert read_training(out).result is None
    assert run("sft", rows, tiny, out) == 0
    assert losses(out) == losses(whole)
    one, other = ((p / "model.safetensors").read_bytes() for p in (out, whole))
    assert one == other


def test_training_killed_at_any_time_has_the_same_losses(
    rows: Path, tiny: Path, tmp_path: Path, whole: Path
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
    assert losses(out) == losses(whole)


def newest_checkpoint(out: Path) -> Path:
    newest = sorted(out.glob("checkpoints/checkpoint-*"))
    assert [p.name for p in newest] == ["checkpoint-3", "checkpoint-6"]
    return newest[-1]


def test_a_damaged_checkpoint_is_skipped(interrupted: Path, tmp_path: Path) -> None:
    """Truncate or delete each file of the newest: the previous one is used, with a message."""
    newest = newest_checkpoint(interrupted)
    files = [p.relative_to(newest) for p in newest.rglob("*") if p.is_file()]
    assert len(files) > 5
    inputs = read_training(interrupted).inputs
    for number, name in enumerate(files):
        for harm in ("truncate", "delete"):
            out = tmp_path / f"{number}-{harm}"
            shutil.copytree(interrupted, out)
            path = out / "checkpoints" / newest.name / name
            if harm == "delete":
                path.unlink()
            else:
                os.truncate(path, path.stat().st_size // 2)
            with training(out, inputs) as model_run:
                used = model_run.latest_complete_checkpoint()
            empty = harm == "truncate" and not (newest / name).stat().st_size
            assert used.name == ("checkpoint-6" if empty else "checkpoint-3"), name
            assert len(model_run.messages) == (not empty)
            shutil.rmtree(out)


def test_a_resumed_training_reports_its_checkpoint(
    rows: Path, tiny: Path, tmp_path: Path, interrupted: Path
) -> None:
    out = tmp_path / "m"
    shutil.copytree(interrupted, out)
    os.truncate(newest_checkpoint(out) / "optimizer.pt", 100)
    resumed = train("sft", rows, out, model=str(tiny), **OPTIONS["sft"])
    assert any("optimizer.pt" in message for message in resumed.messages)
    assert any("checkpoint-3" in message for message in resumed.messages)
    assert resumed.facts.resumed
    assert resumed.facts.steps == 12


def test_two_trainings_cannot_use_one_folder_at_the_same_time(
    rows: Path, tiny: Path, tmp_path: Path
) -> None:
    options = {**OPTIONS["sft"], "steps": 1}
    out = tmp_path / "m"
    first = train("sft", rows, out, model=str(tiny), **options)
    again = train("sft", rows, out, model=str(tiny), **options)
    assert (first.unchanged, again.unchanged) == (False, True)
    inputs = read_training(out).inputs
    with (
        training(out, inputs),
        pytest.raises(RunError, match=re.escape(str(out))),
        training(out, inputs),
    ):
        pass
    # The same inputs are accepted when no other training uses the folder.
    with training(out, inputs) as alone:
        assert alone.finished() == first.facts
