"""The examples of the guides about documents, tools, reasoning and code, as a user runs them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import instructgen
from instructgen.generation.answers import find_text
from instructgen.store import read_manifest, read_rows
from instructgen.verifiers.math import final_result
from tests import forks
from tests.conftest import ROOT, needs_sandbox

ENGINE = ROOT / "tests" / "strong_engine.py"
GUIDES = {"document": "documents", "tool_dialogue": "tools", "solve": "reasoning", "code": "code"}


def commands(method: str) -> list[str]:
    """Return the commands of the example in the guide of a method."""
    text = (ROOT / "docs" / f"{GUIDES[method]}.md").read_text()
    (block,) = re.findall(rf"```sh-{method}\n(.*?)```", text, re.DOTALL)
    return block.strip().splitlines()


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    if words[0] == "generate":
        words = [*words, "--engine", "strong", "--plugin", str(ENGINE)]
    return forks.command(*words, cwd=folder)


def example(method: str, folder: Path) -> Path:
    """Run the commands of a guide; return the folder of the run."""
    for name in ("docs", "examples", "seeds"):
        (folder / name).symlink_to(ROOT / name)
    out = None
    for command in commands(method):
        words = shlex.split(command)[1:]
        done = run(words, folder)
        assert done.returncode in (0, 3) if "solve" in words else done.returncode == 0, done.stderr
        if words[0] == "generate":
            out = folder / words[words.index("--out") + 1]
    assert out is not None
    # Neither a model nor an environment nor a sandbox is needed to create the dataset again.
    before = {p.name: p.read_bytes() for p in (out / "data").iterdir()}
    done = run(["rebuild", str(out), "--plugin", str(ENGINE)], folder)
    assert done.returncode == 0, done.stderr
    assert {p.name: p.read_bytes() for p in (out / "data").iterdir()} == before
    return out


def labels(row: dict[str, Any]) -> dict[str, str]:
    return {label["name"]: label["value"] for label in row["labels"]}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example("document", tmp_path_factory.mktemp("documents"))


def test_rows_about_documents_have_verified_evidence(documents: Path) -> None:
    rows = list(read_rows(documents))
    assert len(rows) == 30
    kinds = Counter(labels(row)["question_type"] for row in rows)
    for row in rows:
        own = labels(row)
        text = (ROOT / "docs" / own["document"]).read_text()
        for suffix in ("", "_2") if own["question_type"] == "comparison" else ("",):
            if own["answerable"] == "no":
                assert "evidence" not in own
                continue
            start, end = map(int, own[f"evidence_at{suffix}"].split(":"))
            assert " ".join(text[start:end].split()) == " ".join(own[f"evidence{suffix}"].split())
            assert find_text(own[f"evidence{suffix}"], row["input"])
        assert row["license"] == "Apache-2.0"
        assert row["origin"]["group"] == own["document"]
    assert kinds["factual"] >= 10
    rejected = Counter(row["reason"] for row in read_rows(documents, "rejected"))
    assert rejected["evidence_not_found"]
    assert rejected["not_answerable"]
    manifest = read_manifest(documents)
    assert manifest is not None
    facts: Any = manifest.facts
    assert facts["candidates"] == facts["kept_instructions"] + facts["kept_rows"] + sum(
        r.count for r in manifest.rejections
    )


def test_all_segments_are_used_in_a_whole_pass(documents: Path, tmp_path: Path) -> None:
    """Without a target, each segment has its turn, also the last one of the longest document."""
    folder = documents.parent.parent / "data" / "guides"
    words = ["generate", "--method", "document", "--documents", str(folder), "--out", "all"]
    done = run([*words, "--json"], tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)["facts"]
    segments = {row["id"]: row["document"] for row in read_rows(folder)}
    rows = list(read_rows(tmp_path / "all"))
    used = {
        parent
        for table in ("data", "rejected")
        for row in read_rows(tmp_path / "all", table)
        for parent in row["origin"]["parents"][:1]
    }
    assert facts["stopped"] == "inputs_exhausted"
    assert used == segments.keys()
    per_document = Counter(labels(row)["document"] for row in rows)
    assert per_document.total() == len(rows) == facts["kept_rows"]
    assert per_document.keys() <= set(segments.values())
    # Their answers decline politely, which the filters of other methods reject.
    kinds = Counter(labels(row)["question_type"] for row in rows)
    assert all(kinds[each] > 0 for each in ("factual", "summary", "unanswerable")), kinds


def test_splits_are_by_document(documents: Path, tmp_path: Path) -> None:
    instructgen.merge([documents], tmp_path / "split", recipe={"split": {"test": 0.3}})
    parts: dict[str, set[str]] = {}
    for row in read_rows(tmp_path / "split"):
        parts.setdefault(labels(row)["document"], set()).add(row["split"])
    assert all(len(found) == 1 for found in parts.values())
    assert set.union(*parts.values()) == {"train", "test"}


def test_explain_marks_the_evidence(documents: Path) -> None:
    row = next(r for r in read_rows(documents) if labels(r)["answerable"] == "yes")
    done = run(["explain", str(documents), row["id"], "--plugin", str(ENGINE)], documents)
    assert done.returncode == 0, done.stderr
    marked = " ".join(done.stdout.split(">>>")[1].split("<<<")[0].split())
    assert marked == " ".join(labels(row)["evidence"].split())


def test_conversations_with_tools(tmp_path: Path) -> None:
    out = example("tool_dialogue", tmp_path)
    rows = list(read_rows(out))
    assert len(rows) == 12
    for row in rows:
        roles = [m["role"] for m in row["messages"]]
        assert roles[0] == "user"
        assert roles[-1] == "assistant"
        assert row["tools"]
        calls = [c for m in row["messages"] for c in m.get("tool_calls") or ()]
        assert len(calls) == roles.count("tool") == int(labels(row)["tool_calls"])


def test_solved_problems_have_a_pass_rate(tmp_path: Path) -> None:
    out = example("solve", tmp_path)
    gold = {
        p["instruction"]: p["output"].split("#### ")[1]
        for p in map(json.loads, (ROOT / "examples" / "problems.jsonl").open())
    }
    rows = list(read_rows(out))
    assert len(rows) >= 4
    for row in rows:
        # An independent comparison: of the text after the mark.
        assert row["output"] == gold[row["instruction"]]
        found = final_result(row["output"])
        assert found is not None
        rate = next(s["value"] for s in row["scores"] if s["name"] == "pass_rate")
        assert rate in (0.25, 0.5, 0.75, 1.0)
        assert row["messages"][-1]["reasoning_content"]
    curated = list(read_rows(tmp_path / "data" / "solved"))
    assert 0 < len(curated) <= len(rows)


@needs_sandbox
def test_programs_pass_their_tests(tmp_path: Path) -> None:
    out = example("code", tmp_path)
    rows = list(read_rows(out))
    assert len(rows) == 6
    for row in rows:
        code = row["output"].removeprefix("```python\n").removesuffix("\n```")
        subprocess.run([sys.executable, "-c", f"{code}\n{labels(row)['test']}"], check=True)
    rejected = Counter(row["reason"] for row in read_rows(out, "rejected"))
    assert set(rejected) <= {"tests_fail", "target_reached", "too_similar", "not_expanded"}
