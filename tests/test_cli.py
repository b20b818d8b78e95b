"""Tests of the command line: one-line error messages, exit codes, and output as JSON."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from instructgen import generate
from instructgen.printable import printable
from instructgen.store import read_rows
from tests import forks
from tests.conftest import ROOT

COMMAND = str(Path(sys.executable).parent / "instructgen")
SEEDS = str(ROOT / "seeds" / "general.jsonl")


# Runs a fork that has imported the package; `run_installed` starts the installed command.
run = forks.command


def run_installed(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *map(str, args)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "a"
    done = run_installed(
        "generate", "--seeds", SEEDS, "--target", 12, "--seed", 1, "--engine", "echo", "--out", out
    )
    assert done.returncode == 0, done.stderr
    return out


GOOD = b'{"instruction": "Say hello to them", "context": "", "response": "Hi."}\n'
BAD_SEEDS = {
    "broken line": (GOOD + b'{"instruction": \n', ["line 2", "JSON", "--on-bad-row=reject"]),
    "missing field": (GOOD + b'{"instruction": "a"}\n', ["line 2", '"response"']),
    "invalid UTF-8": (GOOD + GOOD.replace(b"Hi", b"\xff"), ["line 2", "UTF-8"]),
    "empty": (b"", ["empty"]),
    "unknown format": (b'{"a": 1}\n', ["line 1", "--map", "'a' (a number)"]),
}


@pytest.mark.parametrize("name", BAD_SEEDS)
def test_an_invalid_seed_file_gives_one_line_of_error(tmp_path: Path, name: str) -> None:
    content, named = BAD_SEEDS[name]
    path = tmp_path / "s.jsonl"
    path.write_bytes(content)
    done = run(
        "generate",
        "--seeds",
        path,
        "--target",
        5,
        "--seed",
        1,
        "--engine",
        "echo",
        "--out",
        tmp_path / "o",
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    for text in [str(path), *named]:
        assert text in done.stderr
    assert not (tmp_path / "o").exists()


BAD_OPTIONS = {
    "wrong extension": (["--seeds", "Makefile", "--target", 5], r"Makefile: .*\.parquet\b"),
    "missing file": (["--seeds", "none.jsonl", "--target", 5], r"none\.jsonl: "),
    "target of 0": (["--seeds", SEEDS, "--target", 0], r"--target: .*\b1\b.*\b0\b"),
    "target too large": (["--seeds", SEEDS, "--target", 10**23], r"--target: "),
    "a name too long": (["--seeds", "a" * 300 + ".jsonl", "--target", 5], r"a{300}\.jsonl: "),
    "target not a number": (["--seeds", SEEDS, "--target", "many"], r"--target.*'many'"),
    "missing model": (["--seeds", SEEDS, "--target", 5, "--model", "./none"], r"--model=\./none: "),
    "model is a file": (
        ["--seeds", SEEDS, "--target", 5, "--model", "Makefile"],
        r"--model=Makefile: ",
    ),
    "folder without a model": (
        ["--seeds", SEEDS, "--target", 5, "--model", "docs"],
        r"--model=docs: .*\bconfig\.json\b",
    ),
    "unknown engine": (["--seeds", SEEDS, "--target", 5, "--engine", "vlm"], r"'vlm'.*\bvllm\?"),
    "unknown recipe": (
        ["--seeds", SEEDS, "--target", 5, "--recipe", "defalt"],
        r"--recipe=defalt: .*\bdefault\?",
    ),
    "unknown license": (["--seeds", SEEDS, "--target", 5, "--license", "nope"], r"SPDX.*'nope'"),
    "unknown option": (["--seeds", SEEDS, "--target", 5, "--modle", "x"], r"--modle.*--model\b"),
    "chat without template": (
        ["--seeds", SEEDS, "--target", 5, "--seed", 1, "--engine", "echo", "--recipe", "chat.toml"],
        r"style = chat.*\becho\b",
    ),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_an_invalid_option_is_named(tmp_path: Path, name: str) -> None:
    args, named = BAD_OPTIONS[name]
    for file in ("Makefile", "docs"):
        (tmp_path / file).symlink_to(ROOT / file)
    (tmp_path / "chat.toml").write_text('[method]\nstyle = "chat"\n')
    done = run("generate", *args, "--out", "o", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert re.search(named, done.stderr)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o").exists()


def test_rejected_seed_rows_are_counted(tmp_path: Path) -> None:
    lines = (ROOT / "seeds" / "general.jsonl").read_bytes().splitlines(keepends=True)[:30]
    path = tmp_path / "s.jsonl"
    path.write_bytes(b"".join([*lines, b"{\n", b"{\n"]))
    args = ["--seeds", path, "--target", 3, "--engine", "echo", "--on-bad-row", "reject"]
    done = run("generate", *args, "--out", tmp_path / "o")
    assert done.returncode == 0
    assert re.search(r"^2 seed rows\b", done.stdout, re.MULTILINE)


def test_generate_prints_the_paths_of_its_files(finished: Path) -> None:
    args = ["--seeds", SEEDS, "--target", 12, "--seed", 1, "--engine", "echo", "--show", 10]
    done = run("generate", *args, "--out", finished)
    assert f"dataset  {finished}/data/part-00000.parquet" in done.stdout
    assert f"card     {finished}/README.md" in done.stdout
    assert done.stdout.count("output  ") == 10


def test_a_run_that_ends_before_its_target_prints_why(tmp_path: Path) -> None:
    args = ["--seeds", SEEDS, "--target", 9999, "--engine", "echo", "--max-tokens-total", 20_000]
    done = run("generate", *args, "--out", tmp_path / "o")
    assert done.returncode == 3
    facts = orjson.loads((tmp_path / "o" / "manifest.json").read_bytes())["facts"]
    assert facts["stopped"] == "max_tokens_total"
    assert facts["stopped_detail"] in done.stdout


def test_results_as_json(finished: Path) -> None:
    args = ["--seeds", SEEDS, "--target", 12, "--seed", 1, "--engine", "echo", "--json"]
    result = orjson.loads(run("generate", *args, "--out", finished).stdout)
    assert (result["rows"], result["facts"]["stopped"]) == (12, "target")
    forecast = orjson.loads(run("preview", *args).stdout)
    assert forecast["kept_rows"] > 0
    assert forecast["output_tokens"] > 0
    row_id = pd.read_parquet(finished / "data")["id"][0]
    assert orjson.loads(run("explain", finished, row_id, "--json").stdout)["verdict"] == "kept"
    assert orjson.loads(run("rebuild", finished, "--json").stdout)["rows"] == 12


def test_preview_forecasts_and_writes_nothing(tmp_path: Path) -> None:
    # Echo repeats itself, so that for many more rows there would be no forecast.
    done = run("preview", "--seeds", SEEDS, "--target", 1000, "--engine", "echo", cwd=tmp_path)
    assert done.returncode == 0
    measured, forecast = done.stdout.splitlines()[-2:]
    # The shares of accepted candidates and of similar instructions, and the latter at the end.
    assert len(re.findall(r"\d+% of", measured)) == 2
    assert len(re.findall(r"\d+% of", forecast)) == 1
    assert re.search(r"\b1,000 rows\b.*[\d,]+ prompt\b.*[\d,]+ output tokens\b", forecast)
    assert "written" in forecast
    assert list(tmp_path.iterdir()) == []


def test_explain_a_seed_of_a_hostile_source(tmp_path: Path) -> None:
    seeds = [
        {
            "instruction": f"Say {i}.", "input": "", "output": "Yes.", "kind": "generation",
            "language": "en", "source": "a[/]b\x1b[31m", "license": "MIT",
        }
        for i in range(8)
    ]  # fmt: skip
    file = tmp_path / "seeds.jsonl"
    file.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in seeds))
    out = generate(file, 2, tmp_path / "a", engine="echo").out
    first = (out / "seeds.jsonl").read_bytes().split(b"\n")[0]
    done = run("explain", out, orjson.loads(first)["id"])
    assert done.returncode == 0, done.stderr
    assert "source a[/]b" in done.stdout and "\x1b" not in done.stdout


def test_explain_a_kept_row(finished: Path) -> None:
    row = pd.read_parquet(finished / "data").iloc[3]
    done = run("explain", finished, row["id"])
    assert done.returncode == 0
    assert f"{row['id']}  kept" in done.stdout
    for parent in row["origin"]["parents"]:
        assert parent in done.stdout
    for text in ("model echo", "CC0-1.0", "Come up with a series of tasks", "nearest", "novelty"):
        assert text in done.stdout
    assert done.stdout.count("completion") >= 2


@pytest.mark.parametrize("reason", ["too_similar", "not_expanded", "too_short", "no_instances"])
def test_explain_a_rejected_row(finished: Path, reason: str) -> None:
    rejected = pd.read_parquet(finished / "rejected")
    row = rejected[rejected["reason"] == reason].iloc[0]
    done = run("explain", finished, row["id"])
    assert done.returncode == 0, done.stderr
    assert f"rejected by {row['filter']}: {reason}" in done.stdout
    if reason == "too_similar":
        assert row["nearest"] in done.stdout


def test_explained_prompts_are_those_that_the_model_got(finished: Path) -> None:
    import hashlib

    from instructgen import explain

    for table in ("data", "rejected"):
        rows = pd.read_parquet(finished / table)
        for _, row in rows.iloc[:: max(1, len(rows) // 20)].iterrows():
            written = explain(finished, row["id"]).written
            digests = {hashlib.sha256(w.prompt.encode()).hexdigest() for w in written}
            assert row["origin"]["prompt_sha256"] in digests


def test_parents_and_neighbors_can_be_explained(finished: Path) -> None:
    rejected = pd.read_parquet(finished / "rejected")
    nearest = set(rejected["nearest"].dropna())
    parents = {p for o in pd.read_parquet(finished / "data")["origin"] for p in o["parents"]}
    verdicts = {}
    for row_id in sorted(nearest)[:6] + sorted(parents)[:6]:
        done = run("explain", finished, row_id)
        assert done.returncode == 0, done.stderr
        verdicts[row_id] = done.stdout.splitlines()[0].split("  ")[1]
    assert set(verdicts.values()) <= {"a seed", "in the pool"}
    assert "a seed" in verdicts.values()


def test_filters_passed_are_those_before_the_rejecting_one(finished: Path) -> None:
    from instructgen import explain

    rejected = pd.read_parquet(finished / "rejected")
    names = ["length", "wording", "script", "novelty", "control_tokens", "repetition"]
    instruction = [f"instruction/{name}" for name in names]
    for reason, passed in {
        "too_short": [],
        "too_similar": instruction[:3],
        "not_expanded": instruction,
        "no_instances": instruction,
    }.items():
        row = rejected[rejected["reason"] == reason].iloc[0]
        assert list(explain(finished, row["id"]).passed) == passed, reason


def test_explain_a_row_that_is_not_in_the_journal(finished: Path, tmp_path: Path) -> None:
    import shutil

    out = tmp_path / "a"
    shutil.copytree(finished, out)
    (out / "journal.jsonl").write_bytes(b"")
    done = run("explain", out, pd.read_parquet(out / "data")["id"].iloc[-1])
    assert done.returncode == 2
    assert "instructgen rebuild" in done.stderr


def test_preview_of_an_unreachable_target() -> None:
    done = run("preview", "--seeds", SEEDS, "--target", 10**7, "--engine", "echo")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_unknown_row_and_folder(finished: Path, tmp_path: Path) -> None:
    done = run("explain", finished, "0000")
    assert (done.returncode, "'0000'" in done.stderr) == (2, True)
    for command in (["explain", tmp_path, "x"], ["rebuild", tmp_path]):
        done = run(*command)
        assert done.returncode == 2
        assert str(tmp_path) in done.stderr
        assert "run.json" in done.stderr


def test_a_second_process_does_not_change_the_settings_of_a_run_in_use(tmp_path: Path) -> None:
    from instructgen.store import Run, read_info

    out = tmp_path / "a"
    args = ["generate", "--seeds", SEEDS, "--engine", "echo", "--out", out]
    assert run(*args, "--target", 4).returncode == 0
    before = read_info(out)
    with Run.open(out):
        done = run(*args, "--target", 3)
        assert done.returncode == 2
        assert "in use" in done.stderr
        assert read_info(out) == before


def test_a_command_never_reduces_a_dataset(finished: Path, tmp_path: Path) -> None:
    import shutil

    out = tmp_path / "a"
    shutil.copytree(finished, out)
    before = (out / "data" / "part-00000.parquet").read_bytes()
    lower = run(
        "generate", "--seeds", SEEDS, "--target", 5, "--seed", 1, "--engine", "echo", "--out", out
    )
    assert lower.returncode == 2
    assert re.search(r"\b12 rows\b.*\b5\b.*--target\b", lower.stderr)
    (out / "journal.jsonl").write_bytes(b"")
    done = run("rebuild", out)
    assert done.returncode == 2
    assert re.search(r"\b12 rows\b.*\b0\b.*\bjournal\.jsonl\b", done.stderr)
    assert (out / "data" / "part-00000.parquet").read_bytes() == before


@pytest.mark.parametrize("name", ["run.json", "seeds.jsonl", "manifest.json"])
@pytest.mark.parametrize("content", [b"[]", b"{", None])
def test_a_damaged_file_of_a_run_is_named(
    finished: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    import shutil

    row_id = pd.read_parquet(finished / "data")["id"][0]
    out = tmp_path / "a"
    shutil.copytree(finished, out)
    (out / name).unlink()
    if content is not None:
        (out / name).write_bytes(content)
    done = run("explain", out, row_id)
    assert done.returncode == 2
    if (name, content) == ("manifest.json", None):
        # The dataset is not complete; a damaged file is not the reason.
        assert "instructgen rebuild" in done.stderr
    elif (name, content) == ("run.json", None):
        # Without it, the folder is not a run, and not a derived dataset either.
        assert str(out) in done.stderr
        assert {"run.json", "provenance.json"} <= set(re.findall(r"\w+\.json", done.stderr))
    else:
        assert str(out / name) in done.stderr
    assert "Traceback" not in done.stderr


def test_mistyped_command() -> None:
    done = run("genrate")
    assert done.returncode == 2
    assert re.search(r"'genrate'.*\bgenerate\?", done.stderr)


@pytest.mark.parametrize("command", ["generate", "preview", "explain", "rebuild"])
def test_help_has_an_example(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert f"  instructgen {command}" in done.stdout


def test_progress_without_a_terminal_is_plain_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    from instructgen import generate
    from instructgen.cli.progress import watching

    monkeypatch.setattr("instructgen.cli.progress._LINE_EVERY_S", 0.0)
    text = io.StringIO()
    with watching(Console(file=text, soft_wrap=True), show=True) as watch:
        generate(SEEDS, 5, tmp_path / "o", engine="echo", watch=watch)
    assert re.search(r"generate: 0 of 5 rows\b.*\binstructions 0\b", text.getvalue())
    assert "5 of 5 rows" in text.getvalue().splitlines()[-1]
    assert "\x1b" not in text.getvalue()


def test_a_short_run_prints_no_progress(tmp_path: Path) -> None:
    args = [
        "--seeds",
        SEEDS,
        "--target",
        5,
        "--seed",
        1,
        "--engine",
        "echo",
        "--out",
        tmp_path / "o",
    ]
    assert run("generate", *args).stderr == ""


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "instructgen", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "instructgen,")


def test_terminal_output_is_stripped_of_control_characters() -> None:
    hostile = "a\x1b[31mred\x07\u202eevil\ttab\nline\u200cjoin"
    assert printable(hostile) == "a\ufffd[31mred\ufffd\ufffdevil\ttab\nline\u200cjoin"


def requirements(name: str) -> set[str]:
    """Return the names of a distribution and of all that it requires without extras."""
    found: set[str] = set()
    pending = [name]
    while pending:
        name = canonicalize_name(pending.pop())
        if name not in found:
            found.add(name)
            needed = map(Requirement, distribution(name).requires or [])
            pending += [r.name for r in needed if not r.marker or r.marker.evaluate({"extra": ""})]
    return found


@pytest.mark.slow
def test_the_wheel_contains_its_data(tmp_path: Path) -> None:
    """Build the wheel, install it with what it requires alone, and generate with its own data."""
    pip = [sys.executable, "-m", "pip"]
    build = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run(
        [*pip, "--python", python, "install", "-q", "--no-deps", "--no-index", wheel], check=True
    )
    (site,) = (tmp_path / "env" / "lib").glob("*/site-packages")
    # What it requires is installed already, so links take the place of another download.
    for name in requirements("instructgen") - {"instructgen"}:
        for top in {f.parts[0] for f in distribution(name).files or []} - {"..", "__pycache__"}:
            place = distribution(name).locate_file(top)
            if not (site / top).exists():
                (site / top).symlink_to(str(place))
    command = tmp_path / "env" / "bin" / "instructgen"
    args = ["generate", "--seeds", SEEDS, "--target", "3", "--out", "run"]
    plain = [command, *args, "--recipe", "self_instruct"]
    done = subprocess.run([*plain, "--engine", "echo"], cwd=tmp_path, check=False)
    assert done.returncode == 0
    none = subprocess.run(
        [command, *args, "--out", "other"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert none.returncode == 1
    assert "pip install" in none.stderr
    assert "Traceback" not in none.stderr
    for package in ("torch", "vllm", "transformers"):
        assert subprocess.run([python, "-c", f"import {package}"], capture_output=True).returncode
    assert not (site / "seeds").exists()


DEDUP = ("dedup", SEEDS, "--how", "exact,minhash")


def test_dedup_writes_a_dataset_with_a_reason_per_rejected_row(
    finished: Path, tmp_path: Path
) -> None:
    copies = tmp_path / "copies.jsonl"
    lines = Path(SEEDS).read_bytes().splitlines(keepends=True)
    copies.write_bytes(b"".join(lines[:5]))
    out = tmp_path / "clean"
    done = run(*DEDUP, copies, finished, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    result = orjson.loads(done.stdout)
    rows, rejected = pd.read_parquet(out / "data"), pd.read_parquet(out / "rejected")
    assert (result["rows"], result["rejected"]) == (len(rows), len(rejected))
    assert result["rows"] + result["rejected"] == len(lines) + 5 + 12
    assert set(rejected["nearest"]) <= set(rows["id"])
    assert (rejected["filter"] == "dedup").all()
    assert (rejected["stage"] == "exact").sum() == 5
    assert sum(r["count"] for r in result["rejections"]) == len(rejected)
    card = (out / "README.md").read_text()
    assert "copies.jsonl" in card
    assert "- synthetic" in card
    assert "written by `echo`" in card
    assert f"{result['facts']['components_would_reject']:,} rows" in card
    assert f"{result['facts']['largest_component']:,} rows" in card
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    again = run(*DEDUP, copies, finished, "--out", out, "--show", 2)
    assert again.returncode == 0, again.stderr
    assert "exact, duplicate" in again.stdout
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    part = out / "data" / "part-00000.parquet"
    part.unlink()
    assert run(*DEDUP, copies, finished, "--out", out).returncode == 0
    assert part.read_bytes() == before[part]
    other = run(*DEDUP, "--out", out)
    assert other.returncode == 2
    assert "changed: inputs" in other.stderr
    # The same bytes in another folder of the same name.
    third = tmp_path / "x" / "clean"
    assert run(*DEDUP, copies, finished, "--out", third).returncode == 0
    assert all((third / p.relative_to(out)).read_bytes() == data for p, data in before.items())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--how", "exact,minhas"], r"\bhow\b.*'minhas'.*\bminhash\?"),
        (["--threshold", "semantic=0.5"], r"\bthreshold\b.*'semantic'"),
        (["--threshold", "much"], r"--threshold\b.*'much'.*STAGE=NUMBER"),
        (["--threshold", "0.5", "--threshold", "minhash=0.6"], r"--threshold\b.*STAGE=NUMBER"),
        (["--threshold", "nan"], r"\bthreshold\b.*\bnan\b.*\b0 and 1\b"),
        (["--priority", "size"], r"\bpriority\b.*'size'"),
        (["--frame-quota", "0"], r"--frame-quota: .*\b0\b"),
        (["--sources", "nowhere"], r"'nowhere'.*\binstructgen\b"),
        (["--threshold", "0.01"], r"\bthreshold\b.*\b0\.01\b"),
        (["--license", "nonsense"], r"SPDX.*'nonsense'"),
    ],
)
def test_dedup_names_an_invalid_option(tmp_path: Path, arguments: list[str], named: str) -> None:
    out = tmp_path / "out"
    done = run(*DEDUP, "--out", out, *arguments)
    assert done.returncode == 2
    assert re.search(named, done.stderr)
    assert "Traceback" not in done.stderr
    # The next call can use the folder.
    assert run(*DEDUP, "--out", out).returncode == 0


def test_dedup_of_hostile_names_and_a_damaged_folder(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/\xff\xfe.jsonl"))
    odd.write_bytes(Path(SEEDS).read_bytes())
    out = tmp_path / "out"
    assert run("dedup", odd, "--how", "exact", "--out", out).returncode == 0
    (out / "provenance.json").write_bytes(b"{")
    done = run("dedup", odd, "--how", "exact", "--out", out)
    assert done.returncode == 2
    assert str(out) in done.stderr
    assert "provenance.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_dedup_of_invalid_inputs_and_into_another_folder(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for data, out, named in (
        (tmp_path / "empty", tmp_path / "o", tmp_path / "empty"),
        (tmp_path / "none.jsonl", tmp_path / "o", tmp_path / "none.jsonl"),
        # The output folder contains a run, in which README.md is the first file by name.
        (SEEDS, finished, finished),
    ):
        done = run("dedup", data, "--how", "exact", "--out", out)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {named}")
        assert ("(contains README.md)" in done.stderr) == (out == finished)


def test_a_file_is_imported_merged_curated_explained_and_exported(
    finished: Path, tmp_path: Path
) -> None:
    file = tmp_path / "faq.csv"
    file.write_text(
        "question,answer\n"
        "How do I water a fern in winter?,Sparingly.[3]\n"
        "Why does bread dough rise before baking?,Yeast.\n"
        '"Which tool cuts a thin, straight slot?",[bold]A saw[/]\x1b[31m\n'
    )
    bench = tmp_path / "bench.jsonl"
    bench.write_text('{"question": "why does bread dough rise before baking"}\n')
    names = ["--map", "instruction=question", "--map", "output=answer"]
    out, mix, clean = tmp_path / "faq", tmp_path / "mix", tmp_path / "clean"
    done = run("import", file, *names, "--license", "CC-BY-4.0", "--out", out)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^3 rows\b.*\b3 of 3\b.*\b0 rejected\b", done.stdout, re.MULTILINE)
    done = run("merge", out, finished, "--out", mix, "--json")
    assert orjson.loads(done.stdout)["rows"] == 15
    again = run("merge", out, finished, "--out", mix, "--require", "permissive")
    assert again.returncode == 2
    assert "options.require" in again.stderr
    done = run("curate", out, "--recipe", "strict", "--against", bench, "--out", clean)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^2 rows\b.*\b3 kept\b.*\b1 rejected\b", done.stdout, re.MULTILINE)
    rejected = pd.read_parquet(clean / "rejected").iloc[0]
    assert rejected["nearest"] == "bench.jsonl row 1"
    done = run("explain", clean, rejected["id"])
    assert "rejected by contamination: equal_prompt" in done.stdout
    assert "CC-BY-4.0" in done.stdout
    kept = pd.read_parquet(clean / "data")
    shown = "".join(run("explain", clean, row_id).stdout for row_id in kept["id"])
    assert "\x1b" not in shown
    assert "[bold]A saw[/]" in shown
    assert re.search(r"^edited  \w+, output: ", shown, re.MULTILINE)
    done = run("export", clean, "--format", "openai", "--to", tmp_path / "o.jsonl")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^  - .*\bCC-BY-4\.0 \(2 rows\)", done.stdout, re.MULTILINE)
    assert len((tmp_path / "o.jsonl").read_bytes().splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("import", "none.jsonl"), r"none\.jsonl: "),
        (("import", "dolyl", SEEDS), r"'dolyl'.*\bdolly\?"),
        (("import", "a", "b", "c"), r"\bone file\b"),
        (("import", SEEDS, "--map", "instruction"), r"--map\b.*'instruction'.*\bFIELD=NAME\b"),
        (("merge", "none"), r"\bnone: "),
        (("curate", "none"), r"\bnone: "),
        (("curate", "a", "b"), r"\(b\)"),
    ],
)
def test_an_invalid_argument_of_a_dataset_command_is_named(
    tmp_path: Path, arguments: tuple[object, ...], named: str
) -> None:
    done = run(*arguments, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert re.search(named, done.stderr)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()


def commands() -> list[str]:
    from instructgen.cli import cli

    return [*cli.commands, "run"]


@pytest.mark.parametrize("name", commands())
def test_every_command_has_an_example_and_the_same_options(name: str) -> None:
    from instructgen.cli import parts

    help_ = run(name, "--help").stdout
    assert "Example" in help_ and f"instructgen {name}" in help_
    assert "--json" in help_
    # The commands that list parts have no progress to hide.
    assert ("--quiet" in help_) == (name not in {command.name for command in parts.COMMANDS})
    mistyped = run(name, "--jsom")
    assert mistyped.returncode == 2 and "--json" in mistyped.stderr


def test_the_shell_completes_commands_options_and_recipes() -> None:
    def completed(words: str, word: int) -> str:
        env = {**os.environ, "_INSTRUCTGEN_COMPLETE": "bash_complete", "COMP_WORDS": words}
        argv = [COMMAND]
        env["COMP_CWORD"] = str(word)
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=False).stdout

    assert "plain,generate" in completed("instructgen gen", 1)
    assert "plain,--target" in completed("instructgen generate --ta", 2)
    assert "plain,quickstart" in completed("instructgen run qu", 2)


def test_no_color_disables_colors(tmp_path: Path) -> None:
    """The standard error of the command is a pseudo-terminal."""
    import pty

    stderr = {}
    for no_color in ("", "1"):
        reader, terminal = pty.openpty()
        env = {**os.environ, "NO_COLOR": no_color, "TERM": "xterm-256color"}
        if not no_color:
            del env["NO_COLOR"]
        argv = [COMMAND, "curate", str(tmp_path / "none"), "--out", str(tmp_path / "o")]
        assert subprocess.run(argv, env=env, stderr=terminal, check=False).returncode == 2
        os.close(terminal)
        stderr[no_color] = os.read(reader, 10_000).decode()
        os.close(reader)
    assert "\x1b[1;31m" in stderr[""] or "\x1b[31m" in stderr[""]
    assert "31m" not in stderr["1"]
    assert str(tmp_path / "none") in stderr["1"]


# -- the inputs and ends of a run --------------------------------------------------------------

FINITE = """
from dataclasses import replace
from instructgen.generation.methods import Accept, Draft, Method, child_sample
from instructgen.engines import Request, Sampling

class EachSeed(Method):
    name = "each_seed"
    finite = True

    def start(self, pool, rng, number, form):
        at = number % len(pool.seeds)
        return Draft(number, "rows", child_sample(pool, (at,), "en"), (at,))

    def request(self, pool, draft, form):
        text = pool.at(draft.parents[0]).instruction
        return Request(f"{text} {draft.number}", Sampling(max_tokens=8), stage="rows")

    def read(self, draft, completion, form):
        text = f"Task {draft.number}"
        return [Accept(replace(draft.sample, instruction=text, output=completion.text or "a"))]
"""


@pytest.mark.parametrize(
    ("words", "code", "rows", "stopped"),
    [
        (("--target", "all"), 0, 12, "inputs_exhausted"),
        (("--target", "all", "--passes", 3), 0, 36, "inputs_exhausted"),
        (("--target", 7), 0, 7, "target"),
        (("--set", "generate.target=7"), 0, 7, "target"),
        (("--set", "generate.target=500"), 3, 12, "inputs_exhausted"),
        (("--target", 500), 3, 12, "inputs_exhausted"),
        (("--target", 500, "--price", "1,2", "--max-cost", 0.0001), 3, None, "max_cost"),
        (("--target", 500, "--max-tokens-total", 60), 3, None, "max_tokens_total"),
    ],
)
def test_the_end_of_a_run_and_its_exit_code(
    tmp_path: Path,
    seeds_file: Path,
    words: tuple[Any, ...],
    code: int,
    rows: int | None,
    stopped: str,
) -> None:
    plugin, recipe = tmp_path / "finite.py", tmp_path / "r.toml"
    plugin.write_text(FINITE)
    recipe.write_text("filters = []\n")
    options = ("--plugin", plugin, "--method", "each_seed", "--engine", "echo", "--recipe", recipe)
    done = run(
        "generate", "--seeds", seeds_file, *options, "--out", tmp_path / "o", *words, "--json"
    )
    assert done.returncode == code, done.stderr
    result = orjson.loads(done.stdout)
    assert result["facts"]["stopped"] == stopped
    assert rows is None or result["rows"] == rows


NO_FILTERS = "no_filters.toml"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--target", 5, "--batch-size", 8), "--in-flight"),
        (("--target", "some"), "--target"),
        (("--target", 0), "--target"),
        (("--target", "all"), "--max-tokens-total"),
        (("--target", 5, "--max-cost", 3), "--price"),
        (("--target", 5, "--price", "1"), "--price"),
        (("--target", 5, "--novel-against", "missing"), "missing"),
        (("--target", 5, "--novel-against", SEEDS, "--recipe", NO_FILTERS), "--novel-against"),
    ],
)
def test_an_invalid_end_is_an_error(
    tmp_path: Path, seeds_file: Path, words: tuple[Any, ...], named: str
) -> None:
    out = tmp_path / "o"
    (tmp_path / NO_FILTERS).write_text("filters = []\n")
    words = tuple(tmp_path / word if word == NO_FILTERS else word for word in words)
    done = run("generate", "--seeds", seeds_file, "--engine", "echo", "--out", out, *words)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_a_snapshot_of_a_run_that_is_not_finished(tmp_path: Path) -> None:
    out, copy = tmp_path / "run", tmp_path / "copy"
    result = generate(SEEDS, 30, out, engine="echo")
    complete = [r["id"] for r in read_rows(out)]
    lines = (out / "journal.jsonl").read_bytes().splitlines(keepends=True)
    shutil.rmtree(out / "data")
    (out / "manifest.json").unlink()
    counts = []
    # The last completions that were used gave the last rows.
    used = [i for i, line in enumerate(lines) if b'"kind":"completion"' in line]
    for kept in (used[result.facts.requests - 20], len(lines)):
        # The last line is torn, as while another process writes it.
        (out / "journal.jsonl").write_bytes(b"".join(lines[:kept]) + lines[0][:9])
        before = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
        done = run("snapshot", out, "--out", copy, "--json")
        assert done.returncode == 0, done.stderr
        assert orjson.loads(done.stdout)["rows"] == len(list(read_rows(copy)))
        assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == before
        counts.append([r["id"] for r in read_rows(copy)])
    assert 0 < len(counts[0]) < len(counts[1])
    assert counts[1] == complete
    assert run("explain", copy, complete[0]).returncode == 0
    assert run("snapshot", out).returncode == 0
    assert [r["id"] for r in read_rows(out / "snapshot")] == complete
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    assert run("snapshot", out, "--out", tmp_path / "other").returncode == 2
    assert run("snapshot", tmp_path / "other").returncode == 2
