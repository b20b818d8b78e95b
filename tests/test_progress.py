"""What the screen and the cards state: progress before the first row, hints, edits, splits."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

import instructgen
from instructgen.cli.progress import lines
from instructgen.engines import Completion
from instructgen.generation.loop import Loop
from instructgen.generation.progress import format_hint, progress_of
from instructgen.generation.sequencer import Activity
from instructgen.schema.progress import Progress
from tests import forks
from tests.test_loop import GENERAL, Answer, echo, make

UNPARSED = Completion("Yes, I will do that.", "stop")


def work(loop: Loop, until: Callable[[], object], answer: Answer = echo) -> None:
    """Answer the requests of a loop, eight at a time, until a condition is met."""
    waiting: deque[tuple[int, Completion]] = deque()
    number = 0
    while not until():
        while len(waiting) < 8 and (choice := loop.choose(lambda role: True)) is not None:
            waiting.append((number, answer(loop.issue(number, choice))))
            number += 1
        loop.commit(*waiting.popleft())


def running(seconds: float = 100.0, *, replayed: int = 0) -> Activity:
    """Return the activity of a start whose engine was busy for half of ``seconds``."""
    activity = Activity(asked=32, replayed=replayed, slots=4, window=4, output_tokens=4_000)
    begin = time.monotonic() - seconds
    activity.change(+4, begin)
    activity.change(-4, begin + seconds / 2)
    activity.end()
    return activity


def notes(progress: Progress, start: str) -> list[str]:
    return [note for note in progress.notes if note.startswith(start)]


def test_the_use_of_the_engine_is_measured_over_time() -> None:
    activity = running(100.0)
    assert activity.engine_s == pytest.approx(100.0, abs=1)
    assert activity.mean_in_flight == pytest.approx(2.0, abs=0.1)
    assert activity.slots_busy == pytest.approx(0.5, abs=0.03)
    assert activity.tokens_per_s == pytest.approx(40.0, abs=1)
    assert activity.in_flight == 0
    # More requests in flight than slots do not make the slots busier.
    crowded = Activity(slots=4)
    crowded.change(+40, time.monotonic() - 100.0)
    crowded.end()
    assert crowded.slots_busy == pytest.approx(1.0, abs=0.03)
    assert crowded.mean_in_flight == pytest.approx(40.0, abs=1)
    # The number of slots is unknown until the engine has started.
    early = Activity()
    early.change(+4, time.monotonic() - 100.0)
    early.end()
    assert (early.slots_busy, early.mean_in_flight) == (0, pytest.approx(4.0, abs=0.1))
    unused = Activity()
    unused.end()
    assert (unused.engine_s, unused.slots_busy, unused.mean_in_flight, unused.tokens_per_s) == (
        0, 0, 0, 0,
    )  # fmt: skip


def test_before_the_first_row_the_instructions_and_the_stages_are_shown() -> None:
    loop = make(40)
    work(loop, lambda: loop.tally.kept_instructions)
    assert not loop.rows
    progress = progress_of(loop, running())
    assert (progress.done, progress.total, progress.seconds_left) == (0, 40, None)
    assert progress.figures["instructions"] == loop.tally.kept_instructions
    assert progress.figures["tokens/s"] == 40
    assert progress.figures["slots busy"] == pytest.approx(0.5, abs=0.03)
    assert "requests per row" not in progress.figures
    (note,) = notes(progress, "in flight 0 of")
    busy = {name: count for name, count in loop.in_progress().items() if count}
    assert len(busy) > 1
    for name, count in busy.items():
        assert f"{name} {count}" in note
    assert any("instructions" in line for line in lines(progress))


def test_before_the_first_request_nothing_is_estimated() -> None:
    progress = progress_of(make(40), Activity())
    assert (progress.done, progress.seconds_left) == (0, None)
    assert not any(progress.figures.values())
    assert not notes(progress, "in flight") and not notes(progress, "latest row")


def test_after_the_first_row_the_latest_row_is_shown() -> None:
    loop = make(40)
    work(loop, lambda: loop.rows)
    progress = progress_of(loop, running())
    assert progress.done == len(loop.rows)
    assert progress.figures["requests per row"] == pytest.approx(
        loop.tally.requests / len(loop.rows), abs=0.01
    )
    (note,) = notes(progress, "latest row")
    assert loop.rows[-1].instruction[:20] in note


def test_the_time_left_is_estimated_from_a_tenth_of_the_rows() -> None:
    loop = make(40)
    work(loop, lambda: len(loop.rows) >= 3)
    if len(loop.rows) < 4:
        assert progress_of(loop, running()).seconds_left is None
    loop = make(40)
    work(loop, lambda: len(loop.rows) >= 8)
    rows = len(loop.rows)
    left = progress_of(loop, running(100.0)).seconds_left
    assert left == pytest.approx(100.0 * (40 - rows) / rows, rel=0.02)
    # The rows of a resumed run did not take the time of this start.
    assert progress_of(loop, running(100.0, replayed=9)).seconds_left is None
    endless = make("all", max_tokens_total=10**9)
    work(endless, lambda: len(endless.rows) >= 8)
    progress = progress_of(endless, running())
    assert (progress.total, progress.seconds_left) == (None, None)


def test_a_model_that_does_not_follow_the_format_is_reported_early() -> None:
    loop = make(40, "alpaca")
    assert format_hint(loop) == ""
    work(loop, lambda: loop.tally.requests == 15, lambda request: UNPARSED)
    assert format_hint(loop) == ""
    loop = make(40, "alpaca")
    work(loop, lambda: loop.tally.requests == 24, lambda request: UNPARSED)
    # 24 completions, none of which can be parsed.
    hint = format_hint(loop)
    assert "24" in hint and "alpaca" in hint and "--model" in hint
    assert hint in progress_of(loop, running()).notes


def test_a_model_that_follows_the_format_gets_no_hint() -> None:
    loop = make(40)
    work(loop, lambda: loop.tally.requests == 40)
    assert loop.tally.candidates > 16
    assert format_hint(loop) == ""


def test_progress_is_reported_while_rows_are_generated(tmp_path: Path) -> None:
    seen: list[Progress] = []
    recipe = {"engine": {"name": "echo", "delay_s": 0.01}}
    result = instructgen.generate(GENERAL, 9, tmp_path / "run", recipe=recipe, watch=seen.append)
    assert len(seen) > 2
    counts = [progress.done for progress in seen]
    assert counts == sorted(counts)
    assert counts[-1] <= result.facts.kept_rows + result.rejected
    assert {(p.stage, p.unit, p.total) for p in seen} == {("generate", "rows", 9)}
    flight = [re.search(r"in flight (\d+) of (\d+)", " ".join(p.notes)) for p in seen]
    assert any(0 < int(f[1]) <= int(f[2]) for f in flight if f)
    # The window is known in the first note too.
    assert all(int(f[2]) > 0 for f in flight if f)


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
