"""The scripts in examples/ run as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import instructgen
from tests.conftest import ROOT
from tests.tiny_model import make_tiny_model

EXAMPLES = ROOT / "examples"


def run(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, args)], capture_output=True, text=True, check=False
    )


def test_the_loop_on_one_page() -> None:
    first = run(EXAMPLES / "self_instruct_loop.py", "--target", 5)
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert len([line for line in lines if line.startswith("- ")]) == 5
    assert run(EXAMPLES / "self_instruct_loop.py", "--target", 5).stdout == first.stdout


def test_sft_on_one_page(tmp_path: Path, tiny: Path) -> None:
    rows = [
        {"instruction": f"Repeat the word {word}.", "output": f"{word} {word}"}
        for word in ("sun", "sea", "moon", "sand", "wind", "rain")
    ]
    instructgen.import_data(rows, tmp_path / "data", license="MIT", language="en")
    args = ["--model", tiny, "--steps", 12, "--batch-size", 3, "--learning-rate", 1e-2]
    done = run(EXAMPLES / "sft.py", tmp_path / "data", *args, "--out", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    losses = [float(line.split("loss ")[1].split()[0]) for line in done.stdout.splitlines()[:-1]]
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.2
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_each_script_fits_on_a_page_or_two() -> None:
    for script in EXAMPLES.glob("*.py"):
        assert len(script.read_text().splitlines()) <= 100, script.name


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")
