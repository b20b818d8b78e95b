"""Parts that an installed package adds: their code is part of what made a result."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from instructgen.store import read_made
from tests.conftest import ROOT
from tests.training_data import dataset, sentences

FILTER = """
from instructgen.filters import Filter
from acme.words import BANNED

class Banned(Filter):
    name = "banned"

    def reason(self, sample):
        return self.reject("banned") if BANNED in sample.instruction else None
"""
SOURCE = """
from instructgen.schema.sample import Sample
from instructgen.formats import Source, text

class Quiz(Source):
    name = "quiz"
    fields = frozenset({"quiz_question", "quiz_answer"})
    license = "CC-BY-4.0"

    def samples(self, record):
        return [Sample(text(record, "quiz_question"), output=text(record, "quiz_answer"))]
"""
VERIFIER = """
from instructgen.verifiers import Verifier

class Short(Verifier):
    name = "short"

    def task(self, sample, rng):
        return sample

    def judge(self, sample, answer):
        return float(len(answer) < 99)
"""


class Site:
    """A folder that Python installs from, with one distribution that adds parts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.package = folder, folder / "acme"
        self.package.mkdir(parents=True)
        (self.package / "__init__.py").write_text("")
        (self.package / "banned.py").write_text(FILTER)
        (self.package / "quiz.py").write_text(SOURCE)
        (self.package / "short.py").write_text(VERIFIER)
        self.words("red")
        self.version("1.0")

    def words(self, word: str) -> None:
        """Another module of the package than the filter's own."""
        (self.package / "words.py").write_text(f"BANNED = {word!r}\n")

    def version(self, number: str) -> None:
        for old in self.folder.glob("acme-*.dist-info"):
            for file in old.iterdir():
                file.unlink()
            old.rmdir()
        info = self.folder / f"acme-{number}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme\nVersion: {number}\n")
        (info / "entry_points.txt").write_text(
            "[instructgen.filters]\nbanned = acme.banned:Banned\n"
            "[instructgen.sources]\nquiz = acme.quiz:Quiz\n"
            "[instructgen.verifiers]\nshort = acme.short:Short\n"
        )

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        paths = (str(self.folder), str(ROOT), os.environ.get("PYTHONPATH", ""))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        return subprocess.run(
            [sys.executable, "-m", "instructgen", *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            stdin=subprocess.DEVNULL,
        )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


def recipe(folder: Path) -> Path:
    path = folder / "recipe.toml"
    path.write_text('[[filters]]\nname = "banned"\n')
    return path


def test_changed_code_of_a_filter_is_no_old_dataset(site: Site, tmp_path: Path) -> None:
    rows, out = dataset(tmp_path / "rows", sentences(20)), tmp_path / "out"
    words = ("curate", rows, "--recipe", recipe(tmp_path), "--out", out)
    done = site.run(*words)
    assert done.returncode == 0, done.stderr
    made = read_made(out)["plugins"]["filters.banned"]
    assert (made["package"], made["version"], len(made["sha256"])) == ("acme", "1.0", 16)
    kept = orjson.loads((out / "manifest.json").read_bytes())["rows"]
    assert 0 < kept < 20

    again = site.run(*words)
    assert (again.returncode, "already made, unchanged" in again.stdout) == (0, True)
    assert orjson.loads(site.run(*words, "--json").stdout)["unchanged"] is True

    site.words("blue")
    refused = site.run(*words)
    assert refused.returncode == 2
    assert "plugins.filters.banned.sha256" in refused.stderr
    site.words("red")
    site.version("1.1")
    refused = site.run(*words)
    assert refused.returncode == 2
    assert "plugins.filters.banned.version" in refused.stderr


def test_all_code_of_a_package_counts(site: Site, tmp_path: Path) -> None:
    """Without an __init__.py, and through a link."""
    rows, out = dataset(tmp_path / "rows", sentences(20)), tmp_path / "out"
    (site.package / "__init__.py").unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "more.py").write_text("X = 1\n")
    (site.package / "linked").symlink_to(tmp_path / "elsewhere")
    words = ("curate", rows, "--recipe", recipe(tmp_path), "--out", out)
    assert site.run(*words).returncode == 0
    assert "already made, unchanged" in site.run(*words).stdout
    (tmp_path / "elsewhere" / "more.py").write_text("X = 2\n")
    assert site.run(*words).returncode == 2
    (tmp_path / "elsewhere" / "more.py").write_text("X = 1\n")
    assert site.run(*words).returncode == 0
    site.words("blue")
    assert site.run(*words).returncode == 2


def test_changed_code_of_a_format_is_no_old_dataset(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "quiz.jsonl"
    file.write_bytes(orjson.dumps({"quiz_question": "Who?", "quiz_answer": "Me."}) + b"\n")
    words = ("import", file, "--out", tmp_path / "out")
    assert site.run(*words).returncode == 0
    assert "already made, unchanged" in site.run(*words).stdout
    site.words("green")
    assert site.run(*words).returncode == 2


def test_changed_code_of_any_format_may_change_what_dedup_reads(site: Site, tmp_path: Path) -> None:
    file = ROOT / "seeds" / "general.jsonl"
    words = ("dedup", file, "--how", "exact", "--out", tmp_path / "out")
    assert site.run(*words).returncode == 0
    assert "already made, unchanged" in site.run(*words).stdout
    site.words("green")
    assert site.run(*words).returncode == 2


def test_a_run_is_not_resumed_or_rebuilt_by_other_code(site: Site, tmp_path: Path) -> None:
    seeds, out = ROOT / "seeds" / "general.jsonl", tmp_path / "run"
    words = ("generate", "--seeds", seeds, "--target", 8, "--engine", "echo", "--batch-size", 4)
    words = (*words, "--recipe", recipe(tmp_path), "--out", out)
    assert site.run(*words).returncode == 0
    assert "already made, unchanged" in site.run(*words).stdout
    assert "already made" not in site.run(*words[:4], 12, *words[5:]).stdout
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    site.words("the")
    for refused in (site.run(*words[:4], 12, *words[5:]), site.run("rebuild", out)):
        assert refused.returncode == 1 or refused.returncode == 2
        assert "filters.banned" in refused.stderr
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_a_step_is_run_again_by_other_code(site: Site, tmp_path: Path) -> None:
    rows = dataset(tmp_path / "rows", sentences(20))
    path = tmp_path / "pipeline.toml"
    escaped = tmp_path / "escaped.toml"
    escaped.write_text('[[filters]]\nname = "\\u0062anned"\n')
    path.write_text(
        f'[[steps]]\nname = "clean"\nrun = "curate {rows}"\nrecipe = "{escaped}"\n'
        f'[[steps]]\nname = "mix"\nrun = "merge {rows}"\n'
    )

    def steps() -> list[bool]:
        done = site.run("run", path, "--out", tmp_path / "out", "--json")
        assert done.returncode == 0, done.stderr
        return [step["ran"] for step in orjson.loads(done.stdout)["steps"]]

    assert steps() == [True, True]
    assert steps() == [False, False]
    site.words("blue")
    assert steps() == [True, False]


@pytest.mark.slow
def test_a_model_is_not_trained_on_rewards_of_other_code(
    site: Site, tiny: Path, tmp_path: Path
) -> None:
    rows, out = dataset(tmp_path / "rows", sentences(12)), tmp_path / "m"
    words = ("train", "rloo", rows, "--model", tiny, "--reward", "verifiers:short", "--out", out)
    words = (
        *words,
        "--steps",
        1,
        "--set",
        "max_new_tokens=4",
        "--batch-size",
        4,
        "--max-length",
        96,
    )
    done = site.run(*words)
    assert done.returncode == 0, done.stderr
    site.words("blue")
    refused = site.run(*words)
    assert refused.returncode != 0
    assert "plugins.verifiers.short.sha256" in refused.stderr
