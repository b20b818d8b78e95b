"""Tests of the quickstart pipeline with the included model, as `make demo` runs it, but smaller."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from instructgen.store import read_rows, read_samples
from tests.test_real_engines import run

pytest.importorskip("vllm")

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the quickstart pipeline in its reduced version (`--small`)."""
    out = tmp_path_factory.mktemp("demo") / "q"
    steps = run_quickstart(out)
    assert [s["ran"] for s in steps] == [True] * 9
    return out


def run_quickstart(out: Path) -> list[dict[str, Any]]:
    done = run("run", "quickstart", "--small", "--json", "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    steps: list[dict[str, Any]] = orjson.loads(done.stdout)["steps"]
    return steps


@pytest.mark.timeout(1800)
def test_the_quickstart_makes_a_dataset_an_adapter_and_a_report(quickstart: Path) -> None:
    """The adapter improves the measure; a second start has nothing left to do."""
    evaluation = orjson.loads((quickstart / "evaluation" / "evaluation.json").read_bytes())
    (measure,) = evaluation["measures"]
    assert measure["difference"]["high"] < 0 and measure["after"]["rows"] == 10
    held = {s.id for s in read_samples(quickstart / "human", split="test")}
    trained = {s.id for s in read_samples(quickstart / "clean", split="train")}
    assert len(held) == 36 and not held & trained
    text = (quickstart / "report.html").read_text()
    assert "<h3>Before and after</h3>" in text and "<h3>Embedding map</h3>" in text
    assert not any(s["ran"] for s in run_quickstart(quickstart))


def test_quickstart_rows_are_complete(quickstart: Path) -> None:
    rows = list(read_rows(quickstart / "expanded"))
    assert len(rows) == 1
    assert all(r["instruction"] and r["output"] for r in rows)
    assert {r["origin"]["model"] for r in rows} == {"smollm2"}
    assert {r["license"] for r in rows} == {"CC0-1.0"}


def test_a_finished_quickstart_dataset_is_not_generated_again(quickstart: Path) -> None:
    out = quickstart / "expanded"
    before = (out / "journal.jsonl").stat().st_size
    began = time.monotonic()
    options = ("--seeds", quickstart / "human", "--target", 1)
    done = run("generate", *options, "--out", out, "--show", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("  output  ") == 1
    assert str(out / "data" / "part-00000.parquet") in done.stdout
    assert str(out / "README.md") in done.stdout
    again = run("generate", *options, "--out", out, "--json")
    assert orjson.loads(again.stdout)["asked"] == 0
    assert (out / "journal.jsonl").stat().st_size == before
    assert time.monotonic() - began < 60


def test_explain_shows_the_origin_of_a_generated_row(quickstart: Path) -> None:
    out = quickstart / "expanded"
    row = next(read_rows(out))
    done = run("explain", out, row["id"])
    assert done.returncode == 0
    for text in ("model smollm2", "nearest", "instances", *row["origin"]["parents"]):
        assert text in done.stdout
