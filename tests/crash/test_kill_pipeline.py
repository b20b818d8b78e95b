"""Tests that a pipeline whose process is killed with SIGKILL finally gives the same bytes."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_pipeline import PIPELINE, SEEDS, datasets, write


def start(pipeline: Path, out: Path) -> subprocess.Popen[bytes]:
    """Start the pipeline in its own process."""
    argv = [sys.executable, "-m", "instructgen", "run", str(pipeline), "--out", str(out), "--quiet"]
    return subprocess.Popen([*argv, "--input", f"tasks={SEEDS}"], cwd=ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("runs", [1, pytest.param(10, marks=pytest.mark.long)])
def test_a_pipeline_killed_at_random_times_gives_the_same_bytes(tmp_path: Path, runs: int) -> None:
    # Each of the first four steps is a process.
    steps = PIPELINE[: PIPELINE.index('[[steps]]\nname = "clean"')]
    pipeline = write(tmp_path, steps.replace("target = 12", "target = 24"))
    began = time.monotonic()
    assert start(pipeline, tmp_path / "whole").wait() == 0
    seconds = time.monotonic() - began
    expected = datasets(tmp_path / "whole")
    rng, kills = random.Random(4), 0
    for number in range(runs):
        out = tmp_path / f"killed{number}"
        # Kill up to twice, at random moments of the remaining work.
        for _ in range(2):
            process = start(pipeline, out)
            try:
                process.wait(rng.uniform(0.05, 0.8) * seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
        assert start(pipeline, out).wait() == 0
        assert datasets(out) == expected
    assert kills >= runs
