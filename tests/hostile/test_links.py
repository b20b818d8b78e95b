"""Links, pipes and devices in place of the files of a run or dataset folder are refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import instructgen
from instructgen.errors import DamagedFileError, InstructgenError
from instructgen.similarity.rouge import RougeLIndex
from tests.conftest import ROOT

GENERAL = ROOT / "seeds" / "general.jsonl"
KEPT = b"a file of somebody else"


def generate(out: Path, target: int = 5) -> instructgen.GenerateResult:
    return instructgen.generate(GENERAL, target, out, engine="echo")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    generate(out)
    return out


def files_of(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


KINDS: dict[str, Callable[[Path, Path], None]] = {
    "link": lambda path, other: path.symlink_to(other),
    "pipe": lambda path, other: os.mkfifo(path),
    "folder": lambda path, other: path.mkdir(),
    "dangling link": lambda path, other: path.symlink_to(other.with_name("missing")),
    "link to a device": lambda path, other: path.symlink_to("/dev/zero"),
}
NAMES = ["journal.jsonl", "run.json", "seeds.jsonl", "manifest.json", "lock"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_a_run_that_is_replaced_is_named(
    run: Path, tmp_path: Path, name: str, kind: str
) -> None:
    out, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(run, out)
    other.write_bytes(KEPT)
    (out / name).unlink(missing_ok=True)
    KINDS[kind](out / name, other)
    with pytest.raises(InstructgenError) as caught:
        generate(out, 8)
    assert name in str(caught.value) or (kind, name) == ("dangling link", "run.json")
    assert str(out) in str(caught.value)
    assert other.read_bytes() == KEPT


@pytest.mark.parametrize(
    "name",
    [
        ".run.json.partial",
        ".manifest.json.partial",
        ".README.md.partial",
        "data/.part-00000.parquet.partial",
    ],
)
def test_a_link_in_place_of_a_partial_file_is_replaced(
    run: Path, tmp_path: Path, name: str
) -> None:
    out, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(run, out)
    other.write_bytes(KEPT)
    (out / name).symlink_to(other)
    result = generate(out, 8)
    assert result.rows == 8
    assert other.read_bytes() == KEPT
    assert not any((out / file).is_symlink() for file in files_of(out))


@pytest.mark.parametrize("table", ["data", "rejected"])
def test_a_linked_folder_is_not_written_to(run: Path, tmp_path: Path, table: str) -> None:
    out, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(run, out)
    (out / table).rename(other)
    (out / table).symlink_to(other)
    before = {name: (other / name).read_bytes() for name in files_of(other)}
    with pytest.raises(DamagedFileError) as caught:
        generate(out, 8)
    assert caught.value.path == out / table
    assert {name: (other / name).read_bytes() for name in files_of(other)} == before


def test_a_linked_part_is_refused(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out)
    (part,) = (out / "data").glob("*.parquet")
    part.rename(tmp_path / "part")
    part.symlink_to(tmp_path / "part")
    with pytest.raises(DamagedFileError) as caught:
        list(instructgen.open(out).rows())
    assert caught.value.path == part


def test_linked_inputs_of_the_user_are_read(run: Path, tmp_path: Path) -> None:
    seeds, folder = tmp_path / "seeds.jsonl", tmp_path / "link"
    seeds.symlink_to(GENERAL)
    folder.symlink_to(run)
    assert instructgen.generate(seeds, 3, tmp_path / "out", engine="echo").rows == 3
    assert instructgen.curate(folder, tmp_path / "curated", recipe="default").facts.read == 5


def test_an_index_is_not_written_through_a_link(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(KEPT)
    (tmp_path / ".index.partial").symlink_to(other)
    RougeLIndex(0.7).save(tmp_path / "index")
    assert other.read_bytes() == KEPT
