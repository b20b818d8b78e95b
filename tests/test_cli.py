"""The command line as a person meets it: one clear line for what is wrong, exit codes, JSON."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import orjson
import pandas as pd
import pytest

from instructgen import generate
from instructgen.printable import printable
from tests import forks
from tests.conftest import ROOT

COMMAND = str(Path(sys.executable).parent / "instructgen")
SEEDS = str(ROOT / "seeds" / "general.jsonl")


# As forks, which have their imports done; `really` starts the installed command.
run = forks.command


def really(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *map(str, args)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "a"
    done = really("generate", "--seeds", SEEDS, "--target", 12, "--engine", "echo", "--out", out)
    assert done.returncode == 0, done.stderr
    return out


GOOD = b'{"instruction": "Say hello to them", "context": "", "response": "Hi."}\n'
BAD_SEEDS = {
    "broken line": (
        GOOD + b'{"instruction": \n',
        ["line 2", "no valid JSON", "--on-bad-row reject"],
    ),
    "missing field": (GOOD + b'{"instruction": "a"}\n', ["line 2", '"response" is missing']),
    "invalid UTF-8": (GOOD + GOOD.replace(b"Hi", b"\xff"), ["line 2", "no valid JSON"]),
    "empty": (b"", ["the file is empty"]),
    "unknown format": (b'{"a": 1}\n', ["no known format", "dolly"]),
}


@pytest.mark.parametrize("name", BAD_SEEDS)
def test_bad_seed_files(tmp_path: Path, name: str) -> None:
    content, wanted = BAD_SEEDS[name]
    path = tmp_path / "s.jsonl"
    path.write_bytes(content)
    done = run(
        "generate", "--seeds", path, "--target", 5, "--engine", "echo", "--out", tmp_path / "o"
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    for text in [str(path), *wanted]:
        assert text in done.stderr
    assert not (tmp_path / "o").exists()


BAD_OPTIONS = {
    "wrong extension": (["--seeds", "Makefile", "--target", 5], "this kind of file is not read"),
    "no such seeds": (["--seeds", "none.jsonl", "--target", 5], "none.jsonl: no such file"),
    "target of 0": (
        ["--seeds", SEEDS, "--target", 0],
        "--target: input should be greater than or equal to 1",
    ),
    "target too large": (["--seeds", SEEDS, "--target", 10**23], "--target: "),
    "a name too long": (["--seeds", "a" * 300 + ".jsonl", "--target", 5], "no such file"),
    "target no number": (["--seeds", SEEDS, "--target", "many"], "not a valid integer"),
    "no such model": (["--seeds", SEEDS, "--target", 5, "--model", "./none"], "no such folder"),
    "model is a file": (["--seeds", SEEDS, "--target", 5, "--model", "Makefile"], "no such folder"),
    "folder is no model": (["--seeds", SEEDS, "--target", 5, "--model", "docs"], "no config.json"),
    "unknown engine": (["--seeds", SEEDS, "--target", 5, "--engine", "vlm"], "vlm"),
    "unknown recipe": (
        ["--seeds", SEEDS, "--target", 5, "--recipe", "defalt"],
        "Did you mean default",
    ),
    "bad licence": (
        ["--seeds", SEEDS, "--target", 5, "--license", "nope"],
        "'nope' is no SPDX licence",
    ),
    "unknown option": (["--seeds", SEEDS, "--target", 5, "--modle", "x"], "--model"),
    "chat without template": (
        ["--seeds", SEEDS, "--target", 5, "--engine", "echo", "--recipe", "chat.toml"],
        "no chat template",
    ),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(tmp_path: Path, name: str) -> None:
    args, wanted = BAD_OPTIONS[name]
    for file in ("Makefile", "docs"):
        (tmp_path / file).symlink_to(ROOT / file)
    (tmp_path / "chat.toml").write_text('[method]\nstyle = "chat"\n')
    done = run("generate", *args, "--out", "o", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert wanted in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o").exists()


def test_reject_carries_on_and_says_how_many(tmp_path: Path) -> None:
    lines = (ROOT / "seeds" / "general.jsonl").read_bytes().splitlines(keepends=True)[:30]
    path = tmp_path / "s.jsonl"
    path.write_bytes(b"".join([*lines, b"{\n", b"{\n"]))
    args = ["--seeds", path, "--target", 3, "--engine", "echo", "--on-bad-row", "reject"]
    done = run("generate", *args, "--out", tmp_path / "o")
    assert done.returncode == 0
    assert "2 seed rows could not be used" in done.stdout


def test_generate_prints_where_things_are(made: Path) -> None:
    args = ["--seeds", SEEDS, "--target", 12, "--engine", "echo", "--show", 10]
    done = run("generate", *args, "--out", made)
    assert f"dataset  {made}/data/part-00000.parquet" in done.stdout
    assert f"card     {made}/README.md" in done.stdout
    assert done.stdout.count("output  ") == 10


def test_a_run_that_falls_short_says_so(tmp_path: Path) -> None:
    args = ["--seeds", SEEDS, "--target", 9999, "--engine", "echo", "--max-tokens-total", 20_000]
    done = run("generate", *args, "--out", tmp_path / "o")
    assert done.returncode == 3
    assert "tokens used" in done.stdout
    assert (tmp_path / "o" / "manifest.json").exists()


def test_json(tmp_path: Path, made: Path) -> None:
    args = ["--seeds", SEEDS, "--target", 12, "--engine", "echo", "--json"]
    result = orjson.loads(run("generate", *args, "--out", made).stdout)
    assert (result["rows"], result["stopped"]["reason"]) == (12, "target")
    forecast = orjson.loads(run("preview", *args).stdout)
    assert forecast["kept_rows"] > 0
    assert forecast["output_tokens"] > 0
    row_id = pd.read_parquet(made / "data")["id"][0]
    assert orjson.loads(run("explain", made, row_id, "--json").stdout)["verdict"] == "kept"
    assert orjson.loads(run("rebuild", made, "--json").stdout)["rows"] == 12


def test_preview_keeps_nothing(tmp_path: Path) -> None:
    done = run("preview", "--seeds", SEEDS, "--target", 5000, "--engine", "echo", cwd=tmp_path)
    assert done.returncode == 0
    for word in ("tokens", "acceptance", "too similar", "Nothing was kept"):
        assert word in done.stdout
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
    made = generate(file, 2, tmp_path / "a", engine="echo", batch_size=4).out
    first = (made / "seeds.jsonl").read_bytes().split(b"\n")[0]
    done = run("explain", made, orjson.loads(first)["id"])
    assert done.returncode == 0, done.stderr
    assert "source a[/]b" in done.stdout and "\x1b" not in done.stdout


def test_explain_a_kept_row(made: Path) -> None:
    row = pd.read_parquet(made / "data").iloc[3]
    done = run("explain", made, row["id"])
    assert done.returncode == 0
    assert f"{row['id']}  kept" in done.stdout
    for parent in row["origin"]["parents"]:
        assert parent in done.stdout
    for text in ("model echo", "CC0-1.0", "Come up with a series of tasks", "nearest", "novelty"):
        assert text in done.stdout
    assert done.stdout.count("completion") >= 2


@pytest.mark.parametrize("reason", ["too_similar", "not_expanded", "too_short", "no_instances"])
def test_explain_a_rejected_one(made: Path, reason: str) -> None:
    rejected = pd.read_parquet(made / "rejected")
    row = rejected[rejected["reason"] == reason].iloc[0]
    done = run("explain", made, row["id"])
    assert done.returncode == 0, done.stderr
    assert f"rejected by {row['filter']}: {reason}" in done.stdout
    if reason == "too_similar":
        assert row["nearest"] in done.stdout


def test_explained_prompts_are_the_ones_that_were_asked(made: Path) -> None:
    import hashlib

    from instructgen import explain

    for table in ("data", "rejected"):
        rows = pd.read_parquet(made / table)
        for _, row in rows.iloc[:: max(1, len(rows) // 20)].iterrows():
            e = explain(made, row["id"])
            digests = {hashlib.sha256(w.prompt.encode()).hexdigest() for w in e.written}
            assert row["origin"]["prompt_sha256"] in digests


def test_parents_and_neighbours_can_be_explained(made: Path) -> None:
    rejected = pd.read_parquet(made / "rejected")
    nearest = set(rejected["nearest"].dropna())
    parents = {p for o in pd.read_parquet(made / "data")["origin"] for p in o["parents"]}
    verdicts = {}
    for row_id in sorted(nearest)[:6] + sorted(parents)[:6]:
        done = run("explain", made, row_id)
        assert done.returncode == 0, done.stderr
        verdicts[row_id] = done.stdout.splitlines()[0].split("  ")[1]
    assert set(verdicts.values()) <= {"a seed", "in the pool"}
    assert "a seed" in verdicts.values()


def test_filters_passed_are_those_that_saw_it(made: Path) -> None:
    from instructgen import explain

    rejected = pd.read_parquet(made / "rejected")
    names = ["length", "wording", "script", "novelty", "control_tokens", "repetition"]
    instruction = [f"instruction/{name}" for name in names]
    for reason, wanted in {
        "too_short": [],
        "too_similar": instruction[:3],
        "not_expanded": instruction,
        "no_instances": instruction,
    }.items():
        row = rejected[rejected["reason"] == reason].iloc[0]
        assert list(explain(made, row["id"]).passed) == wanted, reason


def test_a_row_that_the_journal_does_not_lead_to(made: Path, tmp_path: Path) -> None:
    import shutil

    out = tmp_path / "a"
    shutil.copytree(made, out)
    (out / "journal.jsonl").write_bytes(b"")
    done = run("explain", out, pd.read_parquet(out / "data")["id"].iloc[-1])
    assert done.returncode == 2
    assert "instructgen rebuild" in done.stderr


def test_preview_of_what_cannot_be_reached() -> None:
    done = run("preview", "--seeds", SEEDS, "--target", 10**7, "--engine", "echo")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_unknown_row_and_folder(made: Path, tmp_path: Path) -> None:
    done = run("explain", made, "0000")
    assert (done.returncode, "nothing has the id '0000'" in done.stderr) == (2, True)
    for command in (["explain", tmp_path, "x"], ["rebuild", tmp_path]):
        done = run(*command)
        assert done.returncode == 2
        assert "is no run" in done.stderr


def test_a_second_process_leaves_the_first_ones_settings_alone(tmp_path: Path) -> None:
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


def test_a_dataset_is_never_made_smaller(made: Path, tmp_path: Path) -> None:
    import shutil

    out = tmp_path / "a"
    shutil.copytree(made, out)
    before = (out / "data" / "part-00000.parquet").read_bytes()
    lower = run("generate", "--seeds", SEEDS, "--target", 5, "--engine", "echo", "--out", out)
    assert (lower.returncode, "leave 5" in lower.stderr) == (2, True)
    (out / "journal.jsonl").write_bytes(b"")
    done = run("rebuild", out)
    assert (done.returncode, "leave 0" in done.stderr) == (2, True)
    assert (out / "data" / "part-00000.parquet").read_bytes() == before


@pytest.mark.parametrize("name", ["run.json", "seeds.jsonl", "manifest.json"])
@pytest.mark.parametrize("content", [b"[]", b"{", None])
def test_damaged_run_files(made: Path, tmp_path: Path, name: str, content: bytes | None) -> None:
    import shutil

    row_id = pd.read_parquet(made / "data")["id"][0]
    out = tmp_path / "a"
    shutil.copytree(made, out)
    (out / name).unlink()
    if content is not None:
        (out / name).write_bytes(content)
    done = run("explain", out, row_id)
    assert done.returncode == 2
    assert name in done.stderr or "no complete dataset" in done.stderr
    assert "Traceback" not in done.stderr


def test_mistyped_command() -> None:
    done = run("genrate")
    assert done.returncode == 2
    assert "Did you mean generate?" in done.stderr


@pytest.mark.parametrize("command", ["generate", "preview", "explain", "rebuild"])
def test_help_has_an_example(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert f"  instructgen {command}" in done.stdout


def test_progress_is_plain_lines_where_there_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    from instructgen import generate
    from instructgen.cli.progress import watching

    monkeypatch.setattr("instructgen.cli.progress._LINE_EVERY_S", 0.0)
    text = io.StringIO()
    with watching(Console(file=text, soft_wrap=True), show=True) as watch:
        generate(SEEDS, 5, tmp_path / "o", engine="echo", watch=watch)
    assert "generate: 0 of 5 rows, instructions 0, batch 0" in text.getvalue()
    assert "5 of 5 rows" in text.getvalue().splitlines()[-1]
    assert "\x1b" not in text.getvalue()


def test_a_short_run_has_no_progress_to_tell(tmp_path: Path) -> None:
    args = ["--seeds", SEEDS, "--target", 5, "--engine", "echo", "--out", tmp_path / "o"]
    assert run("generate", *args).stderr == ""


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "instructgen", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "instructgen,")


def test_terminal_output_is_stripped_of_control_characters() -> None:
    hostile = "a\x1b[31mred\x07\u202eevil\ttab\nline\u200cjoin"
    assert printable(hostile) == "a\ufffd[31mred\ufffd\ufffdevil\ttab\nline\u200cjoin"


@pytest.mark.slow
def test_the_wheel_stands_alone(tmp_path: Path) -> None:
    """Built, installed without torch or vLLM, run: the data travels with it."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", wheel], check=True)
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
    listed = subprocess.run(
        [python, "-m", "pip", "list"], capture_output=True, text=True, check=True
    )
    assert "torch" not in listed.stdout
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert not (Path(site) / "seeds").exists()


DEDUP = ("dedup", SEEDS, "--how", "exact,minhash")


def test_dedup_writes_a_dataset_and_says_why(made: Path, tmp_path: Path) -> None:
    copies = tmp_path / "copies.jsonl"
    lines = Path(SEEDS).read_bytes().splitlines(keepends=True)
    copies.write_bytes(b"".join(lines[:5]))
    out = tmp_path / "clean"
    done = run(*DEDUP, copies, made, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    result = orjson.loads(done.stdout)
    rows, rejected = pd.read_parquet(out / "data"), pd.read_parquet(out / "rejected")
    assert (result["rows"], result["removed"]) == (len(rows), len(rejected))
    assert result["rows"] + result["removed"] == len(lines) + 5 + 12
    assert set(rejected["nearest"]) <= set(rows["id"])
    assert (rejected["filter"] == "dedup").all()
    assert (rejected["stage"] == "exact").sum() == 5
    assert sum(r["count"] for r in result["funnel"]) == len(rejected)
    card = (out / "README.md").read_text()
    assert "copies.jsonl" in card
    assert "- synthetic" in card
    assert "written by `echo`" in card
    assert "Connected components would have removed" in card
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    again = run(*DEDUP, copies, made, "--out", out, "--show", 2)
    assert again.returncode == 0, again.stderr
    assert "exact, duplicate" in again.stdout
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    part = out / "data" / "part-00000.parquet"
    part.unlink()
    assert run(*DEDUP, copies, made, "--out", out).returncode == 0
    assert part.read_bytes() == before[part]
    other = run(*DEDUP, "--out", out)
    assert other.returncode == 2
    assert "changed: inputs" in other.stderr
    # The same bytes in another folder of the same name.
    third = tmp_path / "x" / "clean"
    assert run(*DEDUP, copies, made, "--out", third).returncode == 0
    assert all((third / p.relative_to(out)).read_bytes() == data for p, data in before.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--how", "exact,minhas"], "Did you mean minhash"),
        (["--threshold", "semantic=0.5"], "no such stage"),
        (["--threshold", "much"], "STAGE=NUMBER"),
        (["--threshold", "0.5", "--threshold", "minhash=0.6"], "one number"),
        (["--threshold", "nan"], "between 0 and 1"),
        (["--priority", "size"], "no priority"),
        (["--frame-quota", "0"], "frame_quota"),
        (["--sources", "nowhere"], "no row is from"),
        (["--threshold", "0.01"], "too low"),
        (["--license", "nonsense"], "SPDX"),
    ],
)
def test_dedup_with_bad_options(tmp_path: Path, arguments: list[str], message: str) -> None:
    out = tmp_path / "out"
    done = run(*DEDUP, "--out", out, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    # The folder is not spoilt for a better try.
    assert run(*DEDUP, "--out", out).returncode == 0


def test_dedup_of_hostile_names_and_a_damaged_folder(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/\xff\xfe.jsonl"))
    odd.write_bytes(Path(SEEDS).read_bytes())
    out = tmp_path / "out"
    assert run("dedup", odd, "--how", "exact", "--out", out).returncode == 0
    (out / "made.json").write_bytes(b"{")
    done = run("dedup", odd, "--how", "exact", "--out", out)
    assert done.returncode == 2
    assert "made.json cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_dedup_of_what_is_no_dataset(made: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for given, out, message in (
        (tmp_path / "empty", tmp_path / "o", "no complete dataset"),
        (tmp_path / "none.jsonl", tmp_path / "o", "no such file"),
        (SEEDS, made, "is none of ours"),
    ):
        done = run("dedup", given, "--how", "exact", "--out", out)
        assert done.returncode == 2
        assert message in done.stderr


def test_from_a_foreign_file_to_another_tools(made: Path, tmp_path: Path) -> None:
    """import, merge, curate, explain, export: one line each."""
    foreign = tmp_path / "faq.csv"
    foreign.write_text(
        "question,answer\n"
        "How do I water a fern in winter?,Sparingly.[3]\n"
        "Why does bread dough rise before baking?,Yeast.\n"
        '"Which tool cuts a thin, straight slot?",[bold]A saw[/]\x1b[31m\n'
    )
    bench = tmp_path / "bench.jsonl"
    bench.write_text('{"question": "why does bread dough rise before baking"}\n')
    names = ["--map", "instruction=question", "--map", "output=answer"]
    out, mix, clean = tmp_path / "faq", tmp_path / "mix", tmp_path / "clean"
    done = run("import", foreign, *names, "--license", "CC-BY-4.0", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "3 rows from 3 of 3 rows read; 0 were rejected." in done.stdout
    done = run("merge", out, made, "--out", mix, "--json")
    assert orjson.loads(done.stdout)["rows"] == 15
    again = run("merge", out, made, "--out", mix, "--require", "permissive")
    assert again.returncode == 2
    assert "changed: options.require" in again.stderr
    done = run("curate", out, "--recipe", "strict", "--against", bench, "--out", clean)
    assert done.returncode == 0, done.stderr
    assert "2 rows of 3 kept, 1 rejected." in done.stdout
    rejected = pd.read_parquet(clean / "rejected").iloc[0]
    assert rejected["nearest"] == "bench.jsonl row 1"
    done = run("explain", clean, rejected["id"])
    assert "rejected by contamination: equal_prompt" in done.stdout
    assert "CC-BY-4.0" in done.stdout
    kept = pd.read_parquet(clean / "data")
    shown = "".join(run("explain", clean, row_id).stdout for row_id in kept["id"])
    assert "\x1b" not in shown
    assert "[bold]A saw[/]" in shown
    assert "changed" in shown
    done = run("export", clean, "--format", "openai", "--to", tmp_path / "o.jsonl")
    assert done.returncode == 0, done.stderr
    assert "- Give credit" in done.stdout
    assert len((tmp_path / "o.jsonl").read_bytes().splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("import", "none.jsonl"), "no such file"),
        (("import", "dolyl", SEEDS), "Did you mean dolly"),
        (("import", "a", "b", "c"), "Give one file"),
        (("import", SEEDS, "--map", "instruction"), "not OURS=THEIRS"),
        (("merge", "none"), "no such dataset"),
        (("curate", "none"), "no such dataset"),
        (("curate", "a", "b"), "one dataset too many"),
    ],
)
def test_bad_calls_of_the_dataset_commands(
    tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    done = run(*arguments, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()


def commands() -> list[str]:
    from instructgen.cli import cli

    return [*cli.commands, "run"]


@pytest.mark.parametrize("name", commands())
def test_every_command_has_the_same_habits(name: str) -> None:
    help_ = run(name, "--help").stdout
    assert "Example" in help_ and f"instructgen {name}" in help_
    assert "--json" in help_ and "--quiet" in help_
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


def test_no_colour_where_none_is_wanted(tmp_path: Path) -> None:
    """On a terminal, which a pseudo-terminal is."""
    import pty

    said = {}
    for wanted in ("", "1"):
        ours, theirs = pty.openpty()
        env = {**os.environ, "NO_COLOR": wanted, "TERM": "xterm-256color"}
        if not wanted:
            del env["NO_COLOR"]
        argv = [COMMAND, "curate", str(tmp_path / "none"), "--out", str(tmp_path / "o")]
        assert subprocess.run(argv, env=env, stderr=theirs, check=False).returncode == 2
        os.close(theirs)
        said[wanted] = os.read(ours, 10_000).decode()
        os.close(ours)
    assert "\x1b[1;31m" in said[""] or "\x1b[31m" in said[""]
    assert "31m" not in said["1"]
    assert "no such dataset" in said["1"]
