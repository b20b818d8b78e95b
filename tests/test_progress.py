"""What the screen and the cards state: progress before the first row, hints, edits, splits."""

from __future__ import annotations

import time
from pathlib import Path

import orjson

import instructgen
from instructgen.cli.progress import lines
from instructgen.engines import Completion
from instructgen.generation.loop import LAG, Loop
from instructgen.generation.methods import PromptSetup
from instructgen.generation.options import load_config
from instructgen.generation.runner import Session
from instructgen.generation.seed_pool import load_seeds
from tests import forks
from tests.conftest import ROOT
from tests.test_loop import answer


def session(method: str = "self_instruct") -> Session:
    config = load_config(
        "default",
        {
            "generate": {"target": 40, "batch_size": 4},
            "engine": {"name": "echo"},
            "method": {"name": method},
        },
    )
    seeds, _ = load_seeds([ROOT / "seeds" / "general.jsonl"])
    return Session(40, Loop(config, PromptSetup("completion", False), seeds, "run"))


def test_before_the_first_row_the_stage_and_a_forecast_are_shown() -> None:
    s = session()
    # 100 seconds of the engine's time, in which two batches were committed.
    s.engine_started, s.ended = time.monotonic() - 100.0, time.monotonic()
    waiting = [s.loop.build() for _ in range(LAG)]
    s.asked, s.outstanding = 8 * 4, 6 * 4
    for requests in waiting[:2]:
        s.loop.commit(requests, answer(requests))
    progress = s.progress()
    assert progress.figures["instructions"] == s.loop.tally.kept_instructions > 0
    (note,) = [n for n in progress.notes if "stage" in n]
    assert "1 of 3" in note
    # 50 seconds per batch, and 15 of the 17 batches before the first rows are left.
    assert "750 s" in note
    assert any("instructions" in line for line in lines(progress))


def test_after_the_first_row_the_latest_row_is_shown() -> None:
    s = session()
    s.engine_started = time.monotonic()
    waiting: list = []
    while not s.loop.rows:
        while len(waiting) < LAG:
            waiting.append(s.loop.build())
        requests = waiting.pop(0)
        s.loop.commit(requests, answer(requests))
    progress = s.progress()
    assert progress.done == len(s.loop.rows)
    assert any(s.loop.rows[-1].instruction[:20] in note for note in progress.notes)


def test_a_model_that_does_not_follow_the_format_is_reported_early() -> None:
    s = session("alpaca")
    assert s.format_hint() == ""
    for _ in range(6):
        requests = s.loop.build()
        s.loop.commit(requests, [Completion("Yes, I will do that.", "stop") for _ in requests])
    # 24 completions, none of which can be parsed.
    hint = s.format_hint()
    assert "24" in hint and "alpaca" in hint and "--model" in hint
    assert hint in s.progress().notes


def test_a_model_that_follows_the_format_gets_no_hint() -> None:
    s = session()
    for _ in range(6):
        requests = s.loop.build()
        s.loop.commit(requests, answer(requests))
    assert s.format_hint() == ""


ROWS = [
    {"instruction": f"Write to {name}@example.com about the {thing}.", "output": f"The {thing}."}
    for name in ("ann", "ben", "cat", "dan")
    for thing in ("boat race", "train to Rome", "school garden", "broken window", "new law")
]


def test_edits_splits_and_benchmarks_are_on_the_screen_and_on_the_card(tmp_path: Path) -> None:
    instructgen.import_data(ROWS, tmp_path / "a", license="MIT", language="en")
    mix = instructgen.merge(tmp_path / "a", tmp_path / "b", recipe={"split": {"test": 0.3}})
    assert set(mix.splits) == {"train", "test"}
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.jsonl").write_text(
            f'{{"prompt": "How many {folder} apples are in the basket of the old farmer?"}}\n'
        )
    (tmp_path / "r.toml").write_text('[[filters]]\nname = "pii"\n')
    args = ["--recipe", tmp_path / "r.toml", "--out", tmp_path / "c", "--against"]
    files = [tmp_path / folder / "test.jsonl" for folder in ("one", "two")]
    done = forks.command("curate", tmp_path / "b", *args, *files)
    assert done.returncode == 0, done.stderr
    facts = orjson.loads((tmp_path / "c" / "manifest.json").read_bytes())["facts"]
    # Every row has an address; benchmarks of one file name have their folder in the name.
    assert facts["edited"] == {"pii": len(ROWS)}
    assert facts["benchmarks"] == {"one/test.jsonl": 1, "two/test.jsonl": 1}
    card = (tmp_path / "c" / "README.md").read_text()
    for text in (done.stdout, card):
        assert "one/test.jsonl" in text and "two/test.jsonl" in text
        assert "pii" in text and str(len(ROWS)) in text
        for name, rows in mix.splits.items():
            assert f"{name} {rows}" in text


def test_a_card_has_a_license_that_the_hub_knows(tmp_path: Path) -> None:
    for license, shown in (("LicenseRef-mine", "other"), ("MIT", "mit")):
        instructgen.import_data(ROWS, tmp_path / shown, license=license, language="en")
        lines = (tmp_path / shown / "README.md").read_text().splitlines()
        assert f"license: {shown}" in lines
