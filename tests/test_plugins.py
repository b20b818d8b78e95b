"""Tests of plug-ins from installed packages: a change of their code invalidates old results."""

from __future__ import annotations

import subprocess
from pathlib import Path

import orjson
import pytest

from instructgen.store import manifest_in, read_provenance
from tests import forks
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
FORMAT = """
from instructgen.schema.sample import Sample
from instructgen.formats import Format, text

class Quiz(Format):
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

    def check(self, sample, answer):
        return float(len(answer) < 99)
"""


class Site:
    """A folder on the Python path with one installed package, acme, that adds plug-ins."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.package = folder, folder / "acme"
        self.package.mkdir(parents=True)
        (self.package / "__init__.py").write_text("")
        (self.package / "banned.py").write_text(FILTER)
        (self.package / "quiz.py").write_text(FORMAT)
        (self.package / "short.py").write_text(VERIFIER)
        self.words("red")
        self.version("1.0")

    def words(self, word: str) -> None:
        """Change a module that the filter imports."""
        (self.package / "words.py").write_text(f"BANNED = {word!r}\n")

    def version(self, number: str) -> None:
        """Change the version of the installed package."""
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

    def unchanged(self, *words: object) -> bool:
        """Run a command; return whether its output already existed and was not rewritten."""
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        return orjson.loads(done.stdout)["unchanged"]

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        return forks.command(*words, site=self.folder)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


def recipe(folder: Path) -> Path:
    path = folder / "recipe.toml"
    path.write_text('[[filters]]\nname = "banned"\n')
    return path


def test_curate_rejects_an_output_made_with_other_filter_code(site: Site, tmp_path: Path) -> None:
    rows, out = dataset(tmp_path / "rows", sentences(20)), tmp_path / "out"
    words = ("curate", rows, "--recipe", recipe(tmp_path), "--out", out)
    done = site.run(*words)
    assert done.returncode == 0, done.stderr
    code = read_provenance(out).plugins["filters.banned"]
    assert (code["package"], code["version"], len(code["sha256"])) == ("acme", "1.0", 16)
    assert 0 < manifest_in(out).rows < 20

    assert site.run(*words).returncode == 0
    assert site.unchanged(*words)

    site.words("blue")
    failed = site.run(*words)
    assert failed.returncode == 2
    assert "plugins.filters.banned.sha256" in failed.stderr
    site.words("red")
    site.version("1.1")
    failed = site.run(*words)
    assert failed.returncode == 2
    assert "plugins.filters.banned.version" in failed.stderr


def test_the_code_digest_covers_the_whole_package(site: Site, tmp_path: Path) -> None:
    """The package has no __init__.py, and one of its folders is a symbolic link."""
    rows, out = dataset(tmp_path / "rows", sentences(20)), tmp_path / "out"
    (site.package / "__init__.py").unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "more.py").write_text("X = 1\n")
    (site.package / "linked").symlink_to(tmp_path / "elsewhere")
    words = ("curate", rows, "--recipe", recipe(tmp_path), "--out", out)
    assert site.run(*words).returncode == 0
    assert site.unchanged(*words)
    (tmp_path / "elsewhere" / "more.py").write_text("X = 2\n")
    assert site.run(*words).returncode == 2
    (tmp_path / "elsewhere" / "more.py").write_text("X = 1\n")
    assert site.run(*words).returncode == 0
    site.words("blue")
    assert site.run(*words).returncode == 2


def test_import_rejects_an_output_made_with_other_format_code(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "quiz.jsonl"
    file.write_bytes(orjson.dumps({"quiz_question": "Who?", "quiz_answer": "Me."}) + b"\n")
    words = ("import", file, "--out", tmp_path / "out")
    assert site.run(*words).returncode == 0
    assert site.unchanged(*words)
    site.words("green")
    assert site.run(*words).returncode == 2


def test_dedup_rejects_an_output_made_with_other_format_code(site: Site, tmp_path: Path) -> None:
    """Any format can be the detected one, so the code of all formats counts."""
    file = ROOT / "seeds" / "general.jsonl"
    words = ("dedup", file, "--how", "exact", "--out", tmp_path / "out")
    assert site.run(*words).returncode == 0
    assert site.unchanged(*words)
    site.words("green")
    assert site.run(*words).returncode == 2


def test_a_run_is_not_resumed_or_rebuilt_with_other_code(site: Site, tmp_path: Path) -> None:
    seeds, out = ROOT / "seeds" / "general.jsonl", tmp_path / "run"
    words = ("generate", "--seeds", seeds, "--target", 8, "--engine", "echo")
    words = (*words, "--recipe", recipe(tmp_path), "--out", out)
    assert site.run(*words).returncode == 0
    assert site.unchanged(*words)
    assert not site.unchanged(*words[:4], 12, *words[5:])
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    site.words("the")
    for failed in (site.run(*words[:4], 12, *words[5:]), site.run("rebuild", out)):
        assert failed.returncode in (1, 2)
        assert "filters.banned" in failed.stderr
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_a_pipeline_step_runs_again_with_other_code(site: Site, tmp_path: Path) -> None:
    rows = dataset(tmp_path / "rows", sentences(20))
    path = tmp_path / "pipeline.toml"
    # The name of the filter contains an escape sequence, which only a TOML parser resolves.
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
def test_training_rejects_an_output_made_with_other_verifier_code(
    site: Site, tiny: Path, tmp_path: Path
) -> None:
    rows, out = dataset(tmp_path / "rows", sentences(12)), tmp_path / "m"
    words = ("train", "ppo", rows, "--model", tiny, "--reward", "verifiers:short", "--out", out)
    words = (*words, "--steps=1", "--set=max_new_tokens=4", "--batch-size=4", "--max-length=96")
    done = site.run(*words)
    assert done.returncode == 0, done.stderr
    site.words("blue")
    failed = site.run(*words)
    assert failed.returncode != 0
    assert "plugins.verifiers.short.sha256" in failed.stderr
