"""Tests that a dataset command, killed and rerun, gives the same bytes."""

from __future__ import annotations

import signal
from pathlib import Path

import orjson
import pytest

from instructgen import import_data
from tests import forks
from tests.crash import children


def files(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file in a folder, including temporary files."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def run(at: int, command: str, out: Path, recipe: Path, source: Path) -> int:
    return forks.run(children.derive, command, str(out), str(recipe), [str(source)], at)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["import", "merge", "curate"])
def test_a_command_killed_at_each_durable_step_gives_the_same_bytes(
    tmp_path: Path, command: str
) -> None:
    lines = [{"instruction": f"Do thing {i} well.", "output": f"answer {i}"} for i in range(60)]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines) + b"{broken\n")
    data = import_data(file, tmp_path / "data", license="MIT", on_bad_row="reject").out
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        "[split]\ntest = 0.2\n" if command == "merge" else '[[filters]]\nname = "novelty"\n'
    )
    source = file if command == "import" else data
    whole = tmp_path / "whole" / "out"
    assert run(0, command, whole, recipe, source) == 0
    for at in range(1, 200, 2):
        out = tmp_path / f"at{at}" / "out"
        code = run(at, command, out, recipe, source)
        if code == 0:
            # The command has fewer than ``at`` steps.
            assert at > 8
            break
        assert code == -signal.SIGKILL
        assert run(0, command, out, recipe, source) == 0
        assert files(out) == files(whole), at
    else:
        pytest.fail("the command has more than 199 steps")
