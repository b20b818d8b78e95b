"""The commands and scripts of the README and the guides run, and links lead to files."""

from __future__ import annotations

import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rouge_score.rouge_scorer import RougeScorer

from instructgen.engines import Completion, Request, Sampling, ask
from instructgen.formats import RowError
from instructgen.schema.sample import Sample
from instructgen.store import read_rows
from tests import forks
from tests.conftest import ROOT, real
from tests.crash import children
from tests.engine_host import CORES, ENVIRONMENT, EngineHost
from tests.scripted import play

# In reading order, because later commands use the output of earlier ones.
GUIDES = (
    "generating",
    "methods",
    "datasets",
    "duplicates",
    "training",
    "recipes",
    "pipelines",
    "reports",
)
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in GUIDES)]
OTHERS = [ROOT / "AGENTS.md", ROOT / "CONTRIBUTING.md"]
OTHERS += [
    ROOT / "docs" / f"{name}.md" for name in ("commands", "parts", "architecture", "dolly_expand")
]
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    texts = [page.read_text() for page in PAGES]
    wanted = rf"^```{language}\n(.*?)^```"
    return [b for text in texts for b in re.findall(wanted, text, re.MULTILINE | re.DOTALL)]


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]


def workplace(tmp_path: Path) -> Path:
    for name in ("seeds", "filters", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def test_there_are_commands_to_try() -> None:
    assert len(COMMANDS) >= 5
    assert all(c.startswith("instructgen ") for c in COMMANDS)


def test_python_examples_run_and_print_the_stated_output(tmp_path: Path) -> None:
    place = workplace(tmp_path)
    for block in blocks("python"):
        done = forks.script(block, cwd=place)
        assert done.returncode == 0, done.stderr
        expected = re.findall(r"^print\(.*\)  # (.+)$", block, re.MULTILINE)
        assert [line for line in expected if line not in done.stdout] == []


def test_the_mix_of_the_readme_is_valid(tmp_path: Path) -> None:
    from instructgen.commands.mixing import load_mix

    (text,) = [block for block in blocks("toml") if "[mix]" in block]
    (tmp_path / "mix.toml").write_text(text)
    mix, split = load_mix(str(tmp_path / "mix.toml"))
    assert (mix.rows, mix.weights, split.validation) == (20000, {"dolly": 2.0}, 0.05)


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda p: p.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_the_references_are_generated_from_the_code() -> None:
    reference = runpy.run_path(str(ROOT / "docs" / "reference.py"))
    for name in ("commands", "parts"):
        written = (ROOT / "docs" / f"{name}.md").read_text()
        assert written == reference[name](), "run: python docs/reference.py"


def test_the_pipeline_of_the_guide_is_valid(tmp_path: Path) -> None:
    from instructgen.pipeline.definition import load_steps

    (text,) = [block for block in blocks("toml") if "[[steps]]" in block]
    (tmp_path / "r.toml").write_text(text)
    steps = load_steps(str(tmp_path / "r.toml"), tmp_path / "out", {}, small=True)
    assert [step.name for step in steps] == ["human", "expanded", "mix", "sft"]
    assert "--target=20" in steps[1].argv and "--set=lora_rank=8" in steps[3].argv


def test_the_parts_of_contributing_work(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S):
        # Pydantic looks for the types of fields in the module of the class.
        module = ModuleType("parts")
        monkeypatch.setitem(sys.modules, "parts", module)
        scope = vars(module)
        exec(compile(code, "parts.py", "exec"), scope)
        parts |= {k: v for k, v in scope.items() if getattr(v, "__module__", "") == "parts"}
    assert set(parts) == {"Shouting", "Quiz", "Parrot", "Shorter"}
    shouting = parts["Shouting"]()
    assert shouting.reason(Sample("DO THIS NOW")).reason == "shouting"
    assert shouting.reason(Sample("Do this now")) is None
    record = {"quiz_question": "Who?", "quiz_answer": "Me."}
    assert parts["Quiz"]().samples(record) == [Sample("Who?", output="Me.")]
    with pytest.raises(RowError):
        parts["Quiz"]().samples({"quiz_question": "Who?"})
    answers = list(ask(parts["Parrot"](), [Request("Say a b", Sampling(0.0, max_tokens=2))]))
    assert [(place, c.text, c.output_tokens) for place, c in answers] == [(0, "a b", 2)]
    seeds = [Sample(f"Name {i} fruits.", output="x", license="MIT") for i in range(3)]
    done = play(parts["Shorter"](), seeds, lambda r: f"Of {r.prompt[0].content[-9:]}")
    assert [row.output for row in done.rows] == [f"Of {i} fruits." for i in range(3)]
    assert [row.origin.parents for row in done.rows] == [(seed.id,) for seed in seeds]
    assert {row.license for row in done.rows} == {"MIT"}
    cut = Completion("Of", "length", 1, 1)
    assert play(parts["Shorter"](), seeds, lambda r: cut).reasons() == ["cut_by_length"] * 3
    assert play(parts["Shorter"](), seeds, lambda r: "").reasons() == ["empty_answer"] * 3
    briefed = play(parts["Shorter"](brief="Be kind."), seeds, lambda r: "x")
    assert all("Be kind." in r.prompt[0].content for r in briefed.requests)


# Smaller sizes, so that a CPU runs the same commands in minutes. The model of a million random
# parameters takes the place of the trained one, where only the trainer is shown.
SMALLER = (
    (" --target 60 --show-prompts", " --target 60 --show-prompts --engine echo"),
    (" --target 20 --out runs/magpie", " --target 1 --max-tokens-total 300 --out runs/magpie"),
    *(
        (
            f" train {kind} data/{data} --model models/sft ",
            f" train {kind} data/{data} --model tiny ",
        )
        for kind, data in (("reward", "prefs"), ("dpo", "prefs"), ("grpo", "clean"))
    ),
    (" --target 100 ", " --target 1 "),
    (" --target 20 ", " --target 1 "),
    (" --target 5000", " --target 5000 --engine echo"),
    (" --tokens 2000 ", " --tokens 150 --batch-size 2 --set held_out_rows=4 "),
    (" --limit 20", " --limit 4"),
    (" --limit 8 ", " --limit 3 "),
    (" --steps 4 ", " --steps 1 --batch-size 2 --set held_out_rows=2 "),
    (
        " --max-length 384 --steps 2 ",
        " --max-length 384 --steps 1 --batch-size 2 --set held_out_rows=2 ",
    ),
    (" --steps 2 --batch-size 2 ", " --steps 1 --batch-size 1 --set held_out_rows=2 "),
)


def smaller(command: str) -> str:
    for long, short in SMALLER:
        command = command.replace(long, short)
    return command


def test_every_smaller_size_is_used() -> None:
    """Every size above is in some command."""
    text = "\n".join(f"{command} " for command in COMMANDS)
    assert [long for long, _ in SMALLER if long not in text] == []


def files(place: Path, dolly_rows: int | None) -> Path:
    """The files that the commands name, from real datasets; Dolly may be cut to its first rows."""
    dolly = real("dolly/databricks-dolly-15k.rejoined.jsonl")
    for name, path in (
        ("oasst", real("oasst1/oasst1-en-validation.messages.jsonl")),
        ("libre", real("alpaca-libre/alpaca_libre_tasks_v2.jsonl")),
        ("mt_bench", real("mt-bench/question.jsonl")),
        ("gsm8k", real("gsm8k/test.jsonl")),
    ):
        (place / f"{name}.jsonl").symlink_to(path)
    (table,) = blocks("csv")
    (place / "faq.csv").write_text(table)
    (recipe,) = [b for b in blocks("toml") if 'name = "pii"' in b and "min_words = 3" in b]
    (place / "support.toml").write_text(recipe)
    with dolly.open("rb") as file:
        lines = list(file)
    rows = [orjson.loads(line) for line in lines[15_000:]]
    pq.write_table(pa.Table.from_pylist(rows), place / "heldout.parquet")
    (place / "dolly.jsonl").write_bytes(b"".join(lines[:dolly_rows]))
    return place / "dolly.jsonl"


@pytest.mark.engine
@pytest.mark.timeout(1800)
def test_the_commands_run(engine_host: EngineHost, tiny: Path, tmp_path: Path) -> None:
    """Each runs once, in order and in one folder, with the real model, at small sizes.

    Commands that use vLLM share a process in which it is loaded; the others are forks.
    """
    pytest.importorskip("vllm")
    place = workplace(tmp_path)
    (place / "tiny").symlink_to(tiny)
    dolly = files(place, 1_500)
    for command in dict.fromkeys(map(smaller, COMMANDS)):
        words = shlex.split(command)[1:]
        if words[0] in ("generate", "preview", "prefer") and "echo" not in words:
            done = engine_host.run(*words, folder=place)
            code, err = done.code, done.stderr
        else:
            given = (words, str(place), str(place / "err"), str(place / "out"), len(CORES))
            code = forks.run(children.command, *given, timeout_s=600)
            err = (place / "err").read_text()
        # With this few prompts, all answers to each may have the same score: no pairs, exit code 3.
        # The same code says that the tokens of a run are spent.
        allowed = (0, 3) if words[0] == "prefer" or "magpie" in words else (0,)
        assert code in allowed, f"{command}\n{err[-3000:]}"
    assert sum(1 for _ in read_rows(place / "runs" / "a")) == 1
    check_dolly(place / "runs" / "dolly", dolly, 1)


@pytest.mark.engine
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_commands_run_as_they_stand(tmp_path: Path) -> None:
    """In order, with the real model and all of Dolly, each in a process of its own."""
    pytest.importorskip("vllm")
    place = workplace(tmp_path)
    dolly = files(place, None)
    env = {**ENVIRONMENT, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    for command in COMMANDS:
        done = subprocess.run(
            shlex.split(command), cwd=place, env=env, capture_output=True, text=True, check=False
        )
        allowed = (0, 3) if command.startswith("instructgen prefer") else (0,)
        assert done.returncode in allowed, f"{command}\n{done.stderr[-3000:]}"
    assert sum(1 for _ in read_rows(place / "runs" / "a")) == 20
    check_dolly(place / "runs" / "dolly", dolly, 100)


def check_dolly(out: Path, dolly: Path, count: int) -> None:
    """The expected number of rows, with Dolly's license and no row too similar to a seed."""
    rows = list(read_rows(out))
    assert len(rows) == count
    assert {r["license"] for r in rows} == {"CC-BY-SA-3.0"}
    assert "license: cc-by-sa-3.0" in (out / "README.md").read_text()
    seeds = [orjson.loads(line)["instruction"] for line in dolly.open("rb")]
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    nearest = max(
        scorer.score(seed, row["instruction"])["rougeL"].fmeasure
        for row in rows[:5]
        for seed in seeds[::5]
    )
    # The floating-point F-measure of a pair at exactly 7/10 may be slightly higher.
    assert 0.1 < nearest <= 0.7 + 1e-9


def test_the_names_of_the_architecture_exist() -> None:
    """`file:name` and `file:Class.method` in docs/architecture.md are in the code."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`([\w/]+\.py):([\w.]+)`", text)
    assert len(named) >= 35
    for file, name in named:
        body = ast.parse((ROOT / "instructgen" / file).read_text()).body
        for part in name.split("."):
            found = [n for n in body if getattr(n, "name", None) == part]
            assert found, f"{file}:{name}"
            body = getattr(found[0], "body", [])


def test_the_tree_of_agents_exists() -> None:
    """AGENTS.md names every package, and every folder that it names exists."""
    text = (ROOT / "AGENTS.md").read_text()
    package = ROOT / "instructgen"
    folders = re.findall(r"^      (\w+)/ ", text, re.MULTILINE)
    packages = {p.parent.name for p in package.glob("*/__init__.py")}
    assert set(folders) == packages
    flat = re.search(r"^      (errors .*?)   ", text, re.MULTILINE)
    assert flat is not None
    assert {f"{n}.py" for n in flat[1].split()} == {p.name for p in package.glob("[!_]*.py")}
    for target in re.findall(r"`(instructgen/[\w/]+)/NAME\.py`", text):
        assert (ROOT / target).is_dir()
