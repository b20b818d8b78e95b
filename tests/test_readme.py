"""The commands of the README and the guides run as they stand, and links lead somewhere."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rouge_score.rouge_scorer import RougeScorer

from instructgen.engines import Request, Sampling
from instructgen.formats import RowError
from instructgen.schema.sample import Sample
from instructgen.store import read_rows
from tests.conftest import ROOT, real

# In the order in which one reads them: later ones use what earlier ones made.
GUIDES = ("generating", "datasets", "duplicates", "training", "recipes", "reports")
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in GUIDES)]
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    texts = [page.read_text() for page in PAGES]
    wanted = rf"^```{language}\n(.*?)^```"
    return [b for text in texts for b in re.findall(wanted, text, re.MULTILINE | re.DOTALL)]


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]


def workplace(tmp_path: Path) -> Path:
    for name in ("seeds", "filters"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def test_there_are_commands_to_try() -> None:
    assert len(COMMANDS) >= 5
    assert all(c.startswith("instructgen ") for c in COMMANDS)


def test_python_examples_run_and_print_what_they_say(tmp_path: Path) -> None:
    place = workplace(tmp_path)
    for block in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-c", block],
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said = re.findall(r"^print\(.*\)  # (.+)$", block, re.MULTILINE)
        assert [line for line in said if line not in done.stdout] == []


def test_the_mix_of_the_readme_is_valid(tmp_path: Path) -> None:
    from instructgen.commands.mixing import load_mix

    (text,) = [block for block in blocks("toml") if "[mix]" in block]
    (tmp_path / "mix.toml").write_text(text)
    mix, split = load_mix(str(tmp_path / "mix.toml"))
    assert (mix.rows, mix.weights, split.validation) == (20000, {"dolly": 2.0}, 0.05)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "docs" / "commands.md"], ids=lambda p: p.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_the_command_reference_is_of_the_code() -> None:
    reference = runpy.run_path(str(ROOT / "docs" / "reference.py"))["reference"]()
    assert (ROOT / "docs" / "commands.md").read_text() == reference, "python docs/reference.py"


def test_the_recipe_of_the_guide_is_valid(tmp_path: Path) -> None:
    from instructgen.pipeline.recipe import load_steps

    (text,) = [block for block in blocks("toml") if "[[steps]]" in block]
    (tmp_path / "r.toml").write_text(text)
    steps = load_steps(str(tmp_path / "r.toml"), tmp_path / "out", {}, limit=True)
    assert [step.name for step in steps] == ["human", "expanded", "mix", "sft"]
    assert "--target=20" in steps[1].argv and "--set=lora_rank=8" in steps[3].argv


def test_the_parts_of_contributing_work() -> None:
    parts: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S):
        scope: dict[str, Any] = {"__name__": "parts"}
        exec(compile(code, "parts.py", "exec"), scope)
        parts |= {k: v for k, v in scope.items() if getattr(v, "__module__", "") == "parts"}
    assert set(parts) == {"Shouting", "Quiz", "Parrot"}
    shouting = parts["Shouting"]()
    assert shouting.reason(Sample("DO THIS NOW")).reason == "shouting"
    assert shouting.reason(Sample("Do this now")) is None
    record = {"quiz_question": "Who?", "quiz_answer": "Me."}
    assert parts["Quiz"]().samples(record) == [Sample("Who?", output="Me.")]
    with pytest.raises(RowError):
        parts["Quiz"]().samples({"quiz_question": "Who?"})
    made = list(parts["Parrot"]().complete([Request("Say a b", Sampling(0.0, max_tokens=2))]))
    assert [(place, c.text, c.output_tokens) for place, c in made] == [(0, "a b", 2)]


@pytest.mark.engine
@pytest.mark.timeout(2700)
def test_the_commands_run_as_they_stand(tmp_path: Path) -> None:
    """In their order and one folder, with the real model."""
    pytest.importorskip("vllm")
    place = workplace(tmp_path)
    dolly = real("dolly/databricks-dolly-15k.rejoined.jsonl")
    for name, path in (
        ("dolly", dolly),
        ("oasst", real("oasst1/oasst1-en-validation.messages.jsonl")),
        ("libre", real("alpaca-libre/alpaca_libre_tasks_v2.jsonl")),
        ("mt_bench", real("mt-bench/question.jsonl")),
        ("gsm8k", real("gsm8k/test.jsonl")),
    ):
        (place / f"{name}.jsonl").symlink_to(path)
    with dolly.open("rb") as file:
        rows = [orjson.loads(line) for line in islice(file, 15_000, None)]
    pq.write_table(pa.Table.from_pylist(rows), place / "heldout.parquet")
    env = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    for command in COMMANDS:
        done = subprocess.run(
            shlex.split(command), cwd=place, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
    assert sum(1 for _ in read_rows(place / "runs" / "a")) == 20
    check_dolly(place / "runs" / "dolly", dolly)


def check_dolly(out: Path, dolly: Path) -> None:
    """100 rows from 15,011 seeds, with Dolly's licence and none too near to a seed."""
    rows = list(read_rows(out))
    assert len(rows) == 100
    assert {r["license"] for r in rows} == {"CC-BY-SA-3.0"}
    assert "license: cc-by-sa-3.0" in (out / "README.md").read_text()
    seeds = [orjson.loads(line)["instruction"] for line in dolly.open("rb")]
    assert len(seeds) == 15011
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    nearest = max(
        scorer.score(seed, row["instruction"])["rougeL"].fmeasure
        for row in rows[::20]
        for seed in seeds[::5]
    )
    # The float F-measure may lie a hair above a pair that is exactly 7/10.
    assert 0.1 < nearest <= 0.7 + 1e-9
