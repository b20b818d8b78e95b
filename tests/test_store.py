"""Run and dataset folders: files are complete or absent, and damage raises DamagedFileError."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgen.engines import Completion
from instructgen.errors import DamagedFileError, RunError, StorageError, VersionError
from instructgen.schema.arrow import sample_row
from instructgen.schema.sample import Kind, Origin, Rejected, Rejection, Sample, Score
from instructgen.store import (
    FORMAT,
    CompletionLine,
    IssueLine,
    RejectionCount,
    Run,
    RunInfo,
    Seeds,
    SessionLine,
    find_row,
    is_run,
    read_manifest,
    read_rows,
    read_samples,
    write_atomic,
    write_dataset,
)
from tests import forks
from tests.conftest import ROOT

INFO = RunInfo(FORMAT, "r1", config={}, seeds=Seeds("", 0), versions={})


def completion(i: int) -> Completion:
    return Completion(f"text {i} \u2028 \n ü", "stop", i, 2 * i)


def line(i: int) -> SessionLine | IssueLine | CompletionLine:
    """Return one line of each kind in turn."""
    if i % 3 == 0:
        limits = {"max_tokens_total": 10 * i, "max_cost": None, "version": "1"}
        return SessionLine(i, "all" if i % 2 else i, "arrival", i or None, **limits)
    if i % 3 == 1:
        return IssueLine(i, i - 1, i // 2, "instances", "writer")
    return CompletionLine(i, f"d{i}", completion(i))


def begin(folder: Path, n: int = 3) -> None:
    with Run.create(folder, INFO, []) as run:
        for i in range(n):
            run.append(line(i))
        run.sync()


def lines_of(run: Run) -> list:
    return [each for _, each in run.lines()]


def damaged_at(error: DamagedFileError) -> int:
    """Return the number of undamaged bytes, which the hint passes to truncate."""
    command = re.search(r"truncate -s (\d+) ", error.hint)
    assert command is not None
    return int(command[1])


def test_recorded_lines_are_read_back(tmp_path: Path) -> None:
    begin(tmp_path / "a", 7)
    with Run.open(tmp_path / "a") as run:
        assert len(run) == 7
        assert list(run.lines()) == [(i + 1, line(i)) for i in range(7)]
        run.append(line(7))
        assert lines_of(run)[7:] == [line(7)]
    with Run.open(tmp_path / "a") as run:
        assert len(run) == 8


@pytest.mark.parametrize("together", [1, 3, 7])
def test_lines_appended_together_or_one_by_one_are_the_same_bytes(
    tmp_path: Path, together: int
) -> None:
    begin(tmp_path / "a", 21)
    with Run.create(tmp_path / "b", INFO, []) as run:
        run.append()
        for at in range(0, 21, together):
            run.append(*map(line, range(at, at + together)))
            assert len(run) == at + together
        assert lines_of(run) == [line(i) for i in range(21)]
    journals = [(tmp_path / name / "journal.jsonl").read_bytes() for name in "ab"]
    assert journals[0] == journals[1]


def test_lines_yields_what_the_journal_has_at_the_first_line(tmp_path: Path) -> None:
    """Lines that are appended while the journal is replayed are not replayed."""
    begin(tmp_path / "a", 3)
    with Run.open(tmp_path / "a") as run:
        seen = []
        for number, each in run.lines():
            seen.append(each)
            run.append(line(number))
        assert seen == [line(i) for i in range(3)]
        assert len(run) == 6
    with Run.create(tmp_path / "b", INFO, []) as run:
        assert lines_of(run) == []


@given(st.text(), st.text(max_size=5))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, text: str, error: str) -> None:
    folder = tmp_path_factory.mktemp("run") / "a"
    appended = (
        replace(line(0), version=text),
        IssueLine(0, 0, 0, error, "judge"),
        CompletionLine(0, error, Completion(text, "error", 1, 2, error)),
    )
    with Run.create(folder, INFO, []) as run:
        run.append(*appended)
    with Run.open(folder) as run:
        assert lines_of(run) == list(appended)


def test_a_journal_truncated_within_its_last_two_records_is_repaired(tmp_path: Path) -> None:
    begin(tmp_path / "a", 4)
    journal = tmp_path / "a" / "journal.jsonl"
    whole = journal.read_bytes()
    lines = whole.split(b"\n")[:-1]
    start = len(whole) - len(lines[-1]) - len(lines[-2]) - 2
    for cut in range(start, len(whole) + 1):
        journal.write_bytes(whole[:cut])
        with Run.open(tmp_path / "a") as run:
            assert len(run) == whole[:cut].count(b"\n")
            torn = bool(whole[:cut]) and not whole[:cut].endswith(b"\n")
            assert bool(run.healed) == torn
        # The torn line is removed, so that the next record starts a new line.
        assert not journal.read_bytes() or journal.read_bytes().endswith(b"\n")


def test_zeros_that_a_power_failure_left_among_the_last_lines_are_removed(tmp_path: Path) -> None:
    begin(tmp_path / "a", 600)
    journal = tmp_path / "a" / "journal.jsonl"
    whole = journal.read_bytes()
    starts = [0, *(i + 1 for i, byte in enumerate(whole) if byte == 10)]
    for line, removed in ((len(starts) - 250, True), (100, False)):
        at = starts[line] + 5
        journal.write_bytes(whole[:at] + b"\0" * 700 + whole[at + 700 :])
        if removed:
            with Run.open(tmp_path / "a") as run:
                assert run.healed and len(run) == line
            assert journal.read_bytes() == whole[: starts[line]]
        else:
            with pytest.raises(DamagedFileError) as caught, Run.open(tmp_path / "a"):
                pass
            assert damaged_at(caught.value) == starts[line]


def test_a_flipped_byte_anywhere_in_the_journal_is_detected(tmp_path: Path) -> None:
    begin(tmp_path / "a", 26)
    journal = tmp_path / "a" / "journal.jsonl"
    whole = journal.read_bytes()
    assert len(whole) > 3000
    detected = 0
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        journal.write_bytes(bytes(damaged))
        if at == len(whole) - 1:
            # Without its newline the last line is a torn one: it is removed and reported.
            with Run.open(tmp_path / "a") as run:
                assert run.healed
                assert len(run) == 25
            detected += 1
            continue
        with pytest.raises(DamagedFileError) as caught, Run.open(tmp_path / "a"):
            pass
        assert caught.value.path == journal
        # The hint names the start of the damaged line.
        assert damaged_at(caught.value) == whole.rfind(b"\n", 0, at) + 1
        detected += 1
    assert detected == len(whole)


@pytest.mark.parametrize(("edit", "line"), [("swap", 0), ("delete", 2), ("repeat", 3)])
def test_swapped_deleted_and_repeated_lines_are_detected(
    tmp_path: Path, edit: str, line: int
) -> None:
    begin(tmp_path / "a", 6)
    journal = tmp_path / "a" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    changed = {
        "swap": [lines[1], lines[0], *lines[2:]],
        "delete": [*lines[:2], *lines[3:]],
        "repeat": [*lines[:3], *lines[2:]],
    }[edit]
    journal.write_bytes(b"".join(changed))
    with pytest.raises(DamagedFileError) as caught, Run.open(tmp_path / "a"):
        pass
    assert caught.value.path == journal
    assert damaged_at(caught.value) == sum(map(len, lines[:line]))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("fault", ["interrupt after", "interrupt before", "half, then full"])
def test_an_interrupted_append_leaves_a_complete_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, count: int
) -> None:
    """None of its lines is recorded; a line that is appended after it is read back."""
    original = os.write

    def faulty(handle: int, data: memoryview) -> int:
        if fault == "half, then full" and len(data) > 150:
            # A part of the data fits on the disk, and perhaps some of its lines.
            return original(handle, data[: max(100, len(data) // 2)])
        monkeypatch.setattr(os, "write", original)
        if fault == "interrupt after":
            original(handle, data)
            raise KeyboardInterrupt
        if fault == "interrupt before":
            raise KeyboardInterrupt
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    journal = tmp_path / "a" / "journal.jsonl"
    with Run.create(tmp_path / "a", INFO, []) as run:
        run.append(line(0))
        before = journal.read_bytes()
        monkeypatch.setattr(os, "write", faulty)
        expected = StorageError if fault == "half, then full" else KeyboardInterrupt
        with pytest.raises(expected):
            run.append(*map(line, range(1, 1 + count)))
        assert os.write is original
        assert journal.read_bytes() == before
        assert len(run) == 1
        run.append(line(8))
        assert lines_of(run) == [line(0), line(8)]
    with Run.open(tmp_path / "a") as run:
        assert run.healed is None
        assert lines_of(run) == [line(0), line(8)]


def test_a_write_of_a_few_bytes_at_a_time_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: original(handle, data[:7]))
    begin(tmp_path / "a", 5)
    with Run.open(tmp_path / "a") as run:
        assert run.healed is None
        assert lines_of(run) == [line(i) for i in range(5)]


WRITER = """
import os, sys
from pathlib import Path
from instructgen.store import Run
from tests.test_store import line

write = os.write

def halting(handle, data):
    os.write = write
    written = write(handle, data[: len(data) // 2])
    print("torn", flush=True)
    sys.stdin.readline()
    return written

with Run.open(Path(sys.argv[1])) as run:
    run.append(line(3))
    os.write = halting
    run.append(line(4))
    run.append(line(5))
    print("complete", flush=True)
    sys.stdin.readline()
"""


def test_a_run_that_another_process_writes_can_be_viewed(tmp_path: Path) -> None:
    """Its incomplete last line is skipped, and nothing is changed on the disk."""
    folder = tmp_path / "a"
    begin(folder, 3)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert writer.stdin is not None and writer.stdout is not None
    try:
        assert writer.stdout.readline() == "torn\n"
        before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}
        assert not before[folder / "journal.jsonl"][0].endswith(b"\n")
        with pytest.raises(RunError), Run.open(folder):
            pass
        with Run.view(folder) as run:
            assert (len(run), run.healed, run.id) == (4, None, INFO.run)
            assert lines_of(run) == [line(i) for i in range(4)]
            assert before == {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}
            writer.stdin.write("\n")
            writer.stdin.flush()
            assert writer.stdout.readline() == "complete\n"
            # A view has the lines that there were when it was opened.
            assert lines_of(run) == [line(i) for i in range(4)]
        with Run.view(folder) as run:
            assert lines_of(run) == [line(i) for i in range(6)]
    finally:
        writer.kill()
        writer.communicate()


def test_a_view_of_a_damaged_or_missing_journal(tmp_path: Path) -> None:
    begin(tmp_path / "a", 4)
    journal = tmp_path / "a" / "journal.jsonl"
    damaged = bytearray(journal.read_bytes())
    damaged[30] ^= 1
    journal.write_bytes(damaged)
    with pytest.raises(DamagedFileError) as caught, Run.view(tmp_path / "a"):
        pass
    assert caught.value.path == journal
    journal.unlink()
    with Run.view(tmp_path / "a") as run:
        assert (len(run), lines_of(run)) == (0, [])
    assert not journal.exists()
    with pytest.raises(RunError), Run.view(tmp_path / "none"):
        pass


def test_the_known_rows_of_a_run_are_read_back(tmp_path: Path) -> None:
    rows = [Sample(f"Do {i}", origin=Origin(parents=("a",))) for i in range(3)]
    data = [orjson.dumps(sample_row(row)) + b"\n" for row in rows]
    known = Seeds(hashlib.sha256(b"".join(data)).hexdigest(), 3)
    with Run.create(tmp_path / "a", replace(INFO, known=known), [], data) as run:
        assert list(run.known()) == rows
    with Run.view(tmp_path / "a") as run:
        assert list(run.known()) == rows
    file = tmp_path / "a" / "known.jsonl"
    file.write_bytes(b"".join(data[:2]))
    with Run.open(tmp_path / "a") as run, pytest.raises(DamagedFileError) as caught:
        list(run.known())
    assert caught.value.path == file
    begin(tmp_path / "b")
    with Run.open(tmp_path / "b") as run:
        assert list(run.known()) == []
    assert not (tmp_path / "b" / "known.jsonl").exists()


def test_the_journal_of_another_run_is_detected(tmp_path: Path) -> None:
    begin(tmp_path / "a")
    with Run.create(tmp_path / "b", replace(INFO, run="r2"), []):
        pass
    (tmp_path / "b" / "journal.jsonl").write_bytes((tmp_path / "a" / "journal.jsonl").read_bytes())
    with pytest.raises(DamagedFileError) as caught, Run.open(tmp_path / "b"):
        pass
    assert (caught.value.path, damaged_at(caught.value)) == (tmp_path / "b" / "journal.jsonl", 0)


def test_only_one_process_can_open_a_run(tmp_path: Path) -> None:
    begin(tmp_path / "a")
    code = (
        "import sys; from pathlib import Path; from instructgen.store import Run\n"
        "from instructgen.errors import RunError\n"
        "try:\n"
        "    with Run.open(Path(sys.argv[1])): print('opened')\n"
        "except RunError as error: print(type(error).__name__, error)"
    )

    def open_in_another_process() -> str:
        argv = [sys.executable, "-c", code, str(tmp_path / "a")]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    with Run.open(tmp_path / "a") as run:
        output = open_in_another_process()
        assert output.startswith("RunError ")
        assert str(tmp_path / "a") in output
        run.append(line(5))
    with Run.open(tmp_path / "a") as run:
        assert len(run) == 4
    # It was the first process that prevented the second from opening the run.
    assert open_in_another_process() == "opened\n"


def test_a_folder_that_is_not_a_run_of_this_format_raises_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"run\.json") as caught, Run.open(tmp_path / "none"):
        pass
    assert type(caught.value) is RunError
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "letter.txt").write_text("mine")
    with pytest.raises(RunError, match=r"letter\.txt"), Run.create(tmp_path / "x", INFO, []):
        pass
    assert (tmp_path / "x" / "letter.txt").read_text() == "mine"
    begin(tmp_path / "a")
    info = tmp_path / "a" / "run.json"
    info.write_bytes(b"{")
    with pytest.raises(DamagedFileError) as damaged, Run.open(tmp_path / "a"):
        pass
    assert damaged.value.path == info
    info.write_bytes(replace(INFO, format=99).to_json())
    with pytest.raises(VersionError) as version, Run.open(tmp_path / "a"):
        pass
    assert (version.value.path, version.value.found) == (info, 99)


def test_a_model_folder_is_not_a_run(tmp_path: Path) -> None:
    begin(tmp_path / "a")
    assert is_run(tmp_path / "a")
    (tmp_path / "m").mkdir()
    # Trainings of format 1 have a run.json, those of format 2 a training.json.
    for name in ("run.json", "training.json", "model.safetensors", "log.jsonl"):
        (tmp_path / "m" / name).write_bytes(b"{}")
    assert not is_run(tmp_path / "m")


@pytest.mark.parametrize("name", ["journal.jsonl", "run.json"])
def test_a_pipe_in_place_of_a_file_raises_an_error_at_once(tmp_path: Path, name: str) -> None:
    begin(tmp_path / "a")
    (tmp_path / "a" / name).unlink()
    os.mkfifo(tmp_path / "a" / name)
    path = re.escape(str(tmp_path / "a" / name))
    with pytest.raises(RunError, match=path), Run.open(tmp_path / "a"):
        pass


def test_a_file_in_place_of_the_folder_raises_an_error(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("x")
    with pytest.raises(RunError, match=re.escape(str(path))), Run.create(path, INFO, []):
        pass
    assert path.read_text() == "x"


# -- datasets ---------------------------------------------------------------------------


def samples(n: int = 5) -> list[Sample]:
    origin = Origin("m", "model", "r", 1, 2, ("a", "b"), "f" * 64)
    return [
        Sample(
            f"Do {i}",
            "x" if i % 2 else "",
            f"y{i}",
            Kind.GENERATION,
            None,
            "en",
            "s",
            "MIT",
            origin,
            (Score("q", 0.5), Score("r", None, "could not be read")),
        )
        for i in range(n)
    ]


def rejected(n: int = 3) -> list[Rejected]:
    rejection = Rejection("novelty", "too_similar", "detail", 0.8, "abc")
    return [Rejected(s, rejection, "instructions", i) for i, s in enumerate(samples(n))]


def put(folder: Path, n: int = 5) -> None:
    rejections = [RejectionCount("instructions", "novelty", "too_similar", 3)]
    write_dataset(folder, samples(n), rejected(), lambda _: "# card\n", rejections, {"read": n})


def test_the_rows_and_the_manifest_of_a_dataset_are_read_back(tmp_path: Path) -> None:
    put(tmp_path / "d")
    assert list(read_samples(tmp_path / "d")) == samples()
    manifest = read_manifest(tmp_path / "d")
    assert manifest is not None
    assert [part.rows for part in manifest.files] == [5, 3]
    assert (manifest.rows, manifest.rejected, manifest.facts) == (5, 3, {"read": 5})
    assert [(r.reason, r.count) for r in manifest.rejections] == [("too_similar", 3)]
    for row in read_rows(tmp_path / "d"):
        assert find_row(tmp_path / "d", row["id"]) == ("data", row)
    first = rejected()[0]
    found = find_row(tmp_path / "d", first.id)
    assert found is not None
    assert (found[0], found[1]["reason"], found[1]["nearest"]) == ("rejected", "too_similar", "abc")
    assert find_row(tmp_path / "d", "nope") is None


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    put(tmp_path / "a")
    put(tmp_path / "b")
    put(tmp_path / "b")
    for file in sorted(p for p in (tmp_path / "a").rglob("*") if p.is_file()):
        other = tmp_path / "b" / file.relative_to(tmp_path / "a")
        assert file.read_bytes() == other.read_bytes()


def test_a_dataset_without_rows_is_complete(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", [], [], lambda _: "")
    assert list(read_rows(tmp_path / "d")) == []
    assert pq.read_schema(tmp_path / "d" / "data" / "part-00000.parquet").names[0] == "id"


def test_parts_of_an_earlier_dataset_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instructgen.store.dataset._ROWS_PER_PART", 2)
    monkeypatch.setattr("instructgen.store.dataset._ROWS_PER_GROUP", 2)
    put(tmp_path / "d", 5)
    assert len(list((tmp_path / "d" / "data").iterdir())) == 3
    assert list(read_samples(tmp_path / "d")) == samples(5)
    mine = tmp_path / "d" / "data" / "notes.txt"
    mine.write_text("a file of the user")
    put(tmp_path / "d", 2)
    assert sorted(p.name for p in mine.parent.iterdir()) == ["notes.txt", "part-00000.parquet"]


def test_a_flipped_byte_in_a_part_is_detected(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", samples(300), [], lambda _: "")
    path = tmp_path / "d" / "data" / "part-00000.parquet"
    whole = path.read_bytes()
    good = list(read_rows(tmp_path / "d"))
    places = range(4, len(whole) - 4, max(1, len(whole) // 200))
    for at in places:
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        path.write_bytes(bytes(damaged))
        with pytest.raises(DamagedFileError) as caught:
            list(read_rows(tmp_path / "d"))
        assert caught.value.path == path
    # The checksums of pyarrow detect most damage, for readers that do not know the manifest.
    silent = 0
    for at in places:
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        path.write_bytes(bytes(damaged))
        try:
            silent += pq.read_table(path, page_checksum_verification=True).to_pylist() != good
        except (OSError, ValueError, MemoryError, NotImplementedError):
            continue
    assert silent <= len(places) // 20


@pytest.mark.parametrize("call", ["replace", "fsync", "write_table"])
def test_no_incomplete_file_has_a_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """After the n-th call fails, each part is complete and the manifest is missing.

    Only the last fsync can fail after the manifest has its name.
    """
    targets = {
        "replace": (Path, "replace"),
        "fsync": (os, "fsync"),
        "write_table": (pq.ParquetWriter, "write_table"),
    }
    owner, name = targets[call]
    original = getattr(owner, name)
    for fail_at in range(12):
        folder = tmp_path / str(fail_at)
        calls = 0

        def failing(*args, _at=fail_at, **kwargs):
            nonlocal calls
            calls += 1
            if calls == _at + 1:
                raise OSError(28, "No space left on device")
            return original(*args, **kwargs)

        with monkeypatch.context() as m:
            m.setattr(owner, name, failing)
            try:
                put(folder)
                finished = True
            except StorageError as error:
                finished = False
                assert "No space left" in str(error)
        for path in folder.rglob("part-*.parquet"):
            pq.read_table(path)
        if not finished:
            complete = read_manifest(folder)
            assert complete is None or call == "fsync"
        put(folder)
        assert list(read_samples(folder)) == samples()
        if finished:
            break
    assert finished
    assert fail_at > 0


def test_a_run_resumes_after_a_full_disk(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes writes to the journal fail as a full disk does."""
    code = """
import resource, signal, sys
from pathlib import Path
import instructgen
from instructgen.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    instructgen.generate(sys.argv[1], 20, sys.argv[2], engine="echo")
except StorageError as error:
    print(error)
    sys.exit(1)
"""
    from tests.test_loop import tree_digest

    # Few seeds, so that the journal becomes longer than their copy.
    seeds = tmp_path / "seeds.jsonl"
    lines = (ROOT / "seeds" / "general.jsonl").read_bytes().splitlines(keepends=True)
    seeds.write_bytes(b"".join(lines[:20]))
    full, plain = tmp_path / "full" / "run", tmp_path / "plain" / "run"

    def run(out: Path, limit: int) -> subprocess.CompletedProcess[str]:
        return forks.script(code, seeds, out, limit)

    assert run(plain, 0).returncode == 0
    copied = (plain / "seeds.jsonl").stat().st_size
    journal = (plain / "journal.jsonl").stat().st_size
    assert journal > copied + 50_000
    full_at_journal = []
    for limit in (copied // 2, copied + 1_000, copied + 20_000, copied + 40_000):
        done = run(full, limit)
        if done.returncode:
            assert done.returncode == 1, done.stderr
            assert os.strerror(errno.EFBIG) in done.stdout
            full_at_journal.append("journal.jsonl" in done.stdout)
    assert full_at_journal == [False, True, True, True]
    assert run(full, 0).returncode == 0
    assert tree_digest(full) == tree_digest(plain)


def test_a_failed_atomic_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomic(path, [b"old"])

    def chunks():
        yield b"new"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_atomic(path, chunks())
    assert path.read_bytes() == b"old"
