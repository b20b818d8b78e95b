"""Attacks of further kinds: each command ends with a clear message, in time, and loses nothing.

Most commands run in a process of their own with limits of memory and time, because an attack that
succeeds may crash or block the process.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import instructgen
from instructgen.errors import InstructgenError
from instructgen.schema.records import InputRef
from instructgen.schema.sample import Label, Origin, Sample
from instructgen.store import LicenseCounts, TrainedRows, TrainingFacts, TrainingInputs
from instructgen.store.files import digest_of_file
from instructgen.store.records import TrainingInfo
from instructgen.verifiers import Verifier
from instructgen.verifiers.ifeval import IfEval
from instructgen.verifiers.math import Math
from instructgen.verifiers.regex import Regex
from tests import forks
from tests.conftest import ROOT
from tests.crash import children
from tests.test_openai import Server, reply

GENERAL = ROOT / "seeds" / "general.jsonl"
SECRET = "sk-test-SECRET12345"
# What a command may use in addition to what its process has after the imports.
EXTRA = 2**30
SECONDS = 30
# For an input that takes a correct command milliseconds, and a wrong one hours.
MOMENT = 5
ROW = {"instruction": "Say it now please.", "output": "It."}
# Done, invalid input, or no row was kept.
ALLOWED = (0, 2, 3)


# -- running commands -----------------------------------------------------------------------


def _limited(words: list[str], folder: str, env: dict[str, str]) -> None:
    """Run a command line in this process, with limits and environment variables of its own."""
    os.environ.update(env)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + EXTRA
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    children.command(words, folder, f"{folder}/.stderr", f"{folder}/.stdout")


def command(
    folder: Path, *words: object, seconds: float = SECONDS, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command line in a folder; fail if it does not end in time."""
    texts = [str(word) for word in words]
    code = forks.run(_limited, texts, str(folder), env, timeout_s=seconds)
    out, err = (
        (folder / n).read_bytes().decode("utf-8", "replace") for n in (".stdout", ".stderr")
    )
    return subprocess.CompletedProcess(texts, code, out, err)


def installed(
    folder: Path, *words: object, shell: str = "", **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command line in a new Python process, with redirections by the shell."""
    argv = [sys.executable, "-m", "instructgen", *map(str, words)]
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {shell}', "sh", *argv], capture_output=True, text=True,
        errors="replace", cwd=folder, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "", **env},
    )  # fmt: skip


def sound(done: subprocess.CompletedProcess[str], codes: tuple[int, ...] = (2,)) -> None:
    """Check what holds for every command: no traceback, and only text on the terminal."""
    assert "Traceback" not in done.stderr, done.stderr[-400:]
    assert done.returncode in codes, (done.returncode, done.stderr[-500:])
    assert "\x1b" not in done.stdout + done.stderr
    if done.returncode == 2:
        assert done.stderr.strip()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def imported(
    folder: Path, path: object, *more: object, codes: tuple[int, ...] = ALLOWED, **options: Any
) -> int:
    """Import a file, rejecting bad rows; return the number of rows that were kept or rejected."""
    terms = ("--license", "MIT", "--language", "en", "--on-bad-row", "reject")
    words = ("import", path, "--out", folder / "out", *terms, *more)
    done = command(folder, *words, **options)
    sound(done, codes)
    if done.returncode == 2:
        assert not (folder / "out" / "manifest.json").exists()
        return 0
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    return int(manifest["rows"] + manifest["rejected"])


def lines(path: Path, *rows: object) -> Path:
    texts = (row if isinstance(row, bytes) else orjson.dumps(row) for row in rows)
    path.write_bytes(b"".join(text + b"\n" for text in texts))
    return path


# -- datasets, runs and models --------------------------------------------------------------

Change = Callable[[pa.Table], pa.Table]
Manifest = Callable[[dict[str, Any]], Any]


def sample(number: int = 0, **fields: Any) -> Sample:
    terms = {"license": "MIT", "source": "s", "language": "en"}
    text = f"Say the number {number} aloud please."
    return Sample(**{"instruction": text, "output": f"Answer {number}.", **terms, **fields})


def dataset(
    folder: Path,
    samples: list[Sample] | None = None,
    change: Change | None = None,
    manifest: Manifest | None = None,
) -> Path:
    """Write a dataset, and change its part or its manifest; the digests match the changes."""
    rows = [sample(i) for i in range(6)] if samples is None else samples
    instructgen.store.write_dataset(folder, rows, [], lambda _: "---\n---\n")
    (part,) = (folder / "data").glob("*.parquet")
    if change is not None:
        pq.write_table(change(pq.read_table(part)), part)
    values = json.loads((folder / "manifest.json").read_text())
    facts = {"bytes": part.stat().st_size, "sha256": digest_of_file(part)}
    values["files"][0] |= facts
    if manifest is not None:
        manifest(values)
    (folder / "manifest.json").write_text(json.dumps(values))
    provenance = {"command": "curate", "inputs": [{"name": "x"}], "options": {}}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    return folder


def recipe(folder: Path, text: str = "[[filters]]\nname = 'length'\n") -> Path:
    (folder / "recipe.toml").write_text(text)
    return folder / "recipe.toml"


def curate(folder: Path, data: Path, *more: object, **options: Any) -> Any:
    file = folder / "recipe.toml" if (folder / "recipe.toml").exists() else recipe(folder)
    return command(
        folder, "curate", data, "--out", folder / "curated", "--recipe", file, *more, **options
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return instructgen.generate(
        GENERAL, 3, tmp_path_factory.mktemp("finished") / "run", engine="echo"
    ).out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


# -- texts in other encodings ---------------------------------------------------------------

UTF_16 = b"\xff\xfe" + json.dumps(ROW).encode("utf-16-le")
ENCODED: dict[str, tuple[bytes, str]] = {
    "UTF-16 that is cut off": (UTF_16 + b"\n\0\n", ""),
    "half a surrogate pair in UTF-16": (UTF_16.replace(b"I\0t\0", b"I\0\x41\xd8") + b"\n\0", ""),
    "not UTF-32": (orjson.dumps(ROW), "utf-32"),
    "a codec of bytes": (orjson.dumps(ROW), "hex"),
    "a codec that expands": (orjson.dumps(ROW), "bz2"),
    "a name that is not UTF-8": (orjson.dumps(ROW), "\udcff"),
}


@pytest.mark.parametrize("name", ENCODED)
def test_encodings_that_do_not_fit_are_refused(tmp_path: Path, name: str) -> None:
    data, encoding = ENCODED[name]
    (tmp_path / "a.jsonl").write_bytes(data)
    imported(tmp_path, tmp_path / "a.jsonl", *([f"--encoding={encoding}"] if encoding else []))


# -- nesting, numbers and names of columns --------------------------------------------------

MESSAGES = b'"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x"}]'
PAIR = b'"prompt": "q", "chosen": "a", "rejected": "b"'
MESSAGE = {"message_tree_id": "t", "tree_state": "ready_for_export", "lang": "en", "text": "t"}
ODD_ROWS: dict[str, list[object]] = {
    "a bad row that is as deep as the parser allows": [
        ROW, b'{"instruction": "a", "output": 5, "x": ' + b"[" * 1015 + b"]" * 1015 + b"}",
    ],
    "deep JSON in a text": [ROW, {**ROW, "instruction": "b", "messages": "[" * 100_000}],
    "a score with 400 digits": [b"{" + PAIR + b', "score_chosen": ' + b"9" * 400 + b"}"] * 2,
    "a label with 4,000 digits": [
        {**MESSAGE, "message_id": "a", "parent_id": None, "role": "prompter"},
        orjson.dumps({**MESSAGE, "message_id": "b", "parent_id": "a", "role": "assistant",
                      "labels": {"name": ["x"], "value": ["V"]}}).replace(b'"V"', b"9" * 4000),
    ],
    "a license of parentheses": [ROW, {**ROW, "instruction": "b", "license": "()"}],
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_ROWS)
def test_odd_values_are_read_or_reject_their_row(tmp_path: Path, name: str) -> None:
    rows = ODD_ROWS[name]
    read = imported(tmp_path, lines(tmp_path / "a.jsonl", *rows), codes=(0, 3))
    # Two messages are one row if both are valid.
    assert read in ((1, 2) if "label" in name else (len(rows),))


def test_columns_that_differ_only_in_case_are_refused(tmp_path: Path) -> None:
    """Otherwise one of the two texts would be lost without a word."""
    row = {"Instruction": "first", "INSTRUCTION": "second", "Output": "c"}
    assert imported(tmp_path, lines(tmp_path / "a.jsonl", row), codes=(2, 3)) <= 1


def test_deep_tools_can_be_explained(tmp_path: Path) -> None:
    """Deeper tools than can be explained are rejected."""
    tools = (b'[{"function": {"name": "f", "x": %s}}]' % (b"[" * n + b"]" * n) for n in (90, 300))
    rows = [b'{%s, "tools": %s}' % (MESSAGES, text) for text in tools]
    assert imported(tmp_path, lines(tmp_path / "a.jsonl", *rows), codes=(0,)) == 2
    (row,) = instructgen.open(tmp_path / "out").rows()
    sound(command(tmp_path, "explain", tmp_path / "out", row["id"], "--json"), (0,))


CALL = '"tool_calls": [{"id": %s, "function": {"name": %s, "arguments": "{}"}}]'
HALF = r'"\ud800"'
SURROGATES = {
    "source": '"instruction": "a", "output": "c", "source": ' + HALF,
    "id": '"instruction": "a", "output": "c", "id": ' + HALF,
    "model of a speaker": r'"conversations": [{"from": "human", "value": "a"}, '
    r'{"from": "gpt-4\ud800", "value": "b"}]',
    "id of a call": MESSAGES.decode().replace('"x"', '"x", ' + CALL % (HALF, '"f"')),
}


@pytest.mark.parametrize("name", SURROGATES)
def test_half_a_surrogate_pair_beside_the_texts(tmp_path: Path, name: str) -> None:
    path = lines(tmp_path / "a.jsonl", f"{{{SURROGATES[name]}}}".encode())
    assert imported(tmp_path, path, codes=(0, 3)) == 1


# -- Arrow and Parquet ----------------------------------------------------------------------


def arrow(path: Path, columns: dict[str, Any] | pa.Table, **options: Any) -> Path:
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    writing = pa.ipc.IpcWriteOptions(**options)
    with pa.ipc.new_file(path, table.schema, options=writing) as writer:
        writer.write_table(table)
    return path


def zone(path: Path) -> Path:
    moments = pa.array([1, 2], pa.timestamp("us", tz="Bogus/Zone"))
    pq.write_table(pa.table({"instruction": ["a", "b"], "output": ["c", "d"], "t": moments}), path)
    return path


def repeated(path: Path) -> Path:
    """Write a table of which each cell repeats one long text."""
    rows = 256
    long = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), ["x" * 2**20])
    texts = {"instruction": ["a"] * rows, "output": ["b"] * rows}
    return arrow(path, {**texts, **{f"x{i}": long for i in range(16)}}, compression="zstd")


def zeros(path: Path) -> Path:
    """Write a batch that is 24 times 64 MiB when it is decompressed."""
    zeros = pa.array([b"\0" * 2**26], pa.large_binary())
    columns = {"instruction": ["a"], "output": ["b"], **{f"x{i}": zeros for i in range(24)}}
    return arrow(path, columns, compression="zstd")


def nulls(path: Path) -> Path:
    """Write two billion empty rows in a few hundred bytes."""
    rows = 2 * 10**9
    return arrow(path, {"instruction": pa.nulls(rows), "output": pa.nulls(rows)})


def offsets(path: Path, second: int) -> Path:
    """Write texts of which one has an offset that is not in the file."""
    arrow(path, {"instruction": ["a b c"] * 64, "output": ["answer text"] * 64})
    before, after = (b"".join(x.to_bytes(4, "little", signed=True) for x in (0, n, 22))
                     for n in (11, second))  # fmt: skip
    data = path.read_bytes()
    assert data.count(before) == 1
    path.write_bytes(data.replace(before, after))
    return path


def twice(path: Path) -> Path:
    names = ["instruction", "output", "output"]
    return arrow(path, pa.table([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names))


# A Parquet file with one changed byte in the statistics of a column.
DAMAGED_PARQUET = (
    r"c-n=M%}N6?6oqfnG*&Ixmfny+ky+T#h1OPRanX$%QRt%j2IDYbVfy3D)V6ORF2rYWDaDogP(Fbh!OTpHEiDKkA-N}Ca!"
    r"%4YyRIX{0v@!HA`}2BAICq|_9Z|X0Bq~VauA~Wp^@c~BQG_fl8y^98S;5p+D6TU5yHUei>OzyJ68Za!uEr)>u=!lq$20"
    r"zKV-H_CZ;}#x~U=WV{L^@rjktlcze@1FX>YxMUg450g?yKt=qGa17<aqyWM^e`XeXo4*F$imy8;-Wh(h#6b?t>e5pYt@"
    r"r+a6ZbdUDnb!?Mq=|OR_1vD@Ux)=$CDqbU!mMfl&#9F|Fe{jNB;t+e3!T{%wu+2F1P9}fLQ51CSK4?1Sf<Xe7z3Y)cqj"
    r"Us=ufga=XI#u1U)5QY;9pFhCdK7BYKw7UvxR@btF@ofjW<KH#xkd1k)Mu#GqmgZU1iMhDXkDcx3zjU~JvHeqi#jPMXzP"
    r"wXRwwx}?FYdE}1yxWAO%bgc"
)


def damaged(path: Path) -> Path:
    path.write_bytes(zlib.decompress(base64.b85decode(DAMAGED_PARQUET)))
    return path


TABLES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "an unknown time zone in Parquet": ("a.parquet", zone),
    "two columns of one name": ("a.arrow", twice),
    "a dictionary with a long text": ("a.arrow", repeated),
    "compressed zeros": ("a.arrow", zeros),
    "an offset behind the file": ("a.arrow", lambda path: offsets(path, 2**31 - 1)),
    "damaged statistics": ("a.parquet", damaged),
}


@pytest.mark.parametrize("name", TABLES)
def test_odd_tables_are_read_within_limits_or_refused(tmp_path: Path, name: str) -> None:
    file, write = TABLES[name]
    path = write(tmp_path / file)
    assert path.stat().st_size < 4 * 2**20
    rows = imported(tmp_path, path)
    if name == "two columns of one name":
        assert rows == 0
    elif "offset" in name:
        texts = instructgen.open(tmp_path / "out").rows() if rows else ()
        assert {row["output"] for row in texts} <= {"answer text"}


def test_rows_without_contents_are_counted_before_they_are_read(tmp_path: Path) -> None:
    """To read two billion rows, and to write why each is rejected, would take hours."""
    imported(tmp_path, nulls(tmp_path / "a.arrow"), codes=(2,), seconds=2 * MOMENT)


# -- parts and manifests of datasets --------------------------------------------------------


def column(name: str, values: Callable[[int], Any]) -> Change:
    def change(table: pa.Table) -> pa.Table:
        return table.set_column(table.schema.get_field_index(name), name, values(table.num_rows))

    return change


def texts(*values: str) -> Change:
    kind = pa.list_(pa.json_())
    return column("messages", lambda n: pa.array([values] * n, pa.list_(pa.string())).cast(kind))


def no_origin(table: pa.Table) -> pa.Table:
    nulls = pa.nulls(table.num_rows, table.schema.field("origin").type)
    return column("origin", lambda _: nulls)(table)


PARTS: dict[str, Change] = {
    "a missing column": lambda table: table.drop_columns(["license"]),
    "a column twice": lambda table: table.append_column("output", table.column("output")),
    "numbers as texts": column("instruction", lambda rows: pa.array([5] * rows)),
    "texts that are not UTF-8": column(
        "output", lambda n: pa.array([b"\xff"] * n, pa.binary()).cast(pa.string(), safe=False)
    ),
    "missing origins": no_origin,
    "messages that are not JSON": texts('{"role":', "[]"),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_parts_with_other_columns_are_refused(tmp_path: Path, name: str) -> None:
    """Their digests are valid, because somebody else wrote the whole dataset."""
    data = dataset(tmp_path / "data", change=PARTS[name])
    for done in (
        curate(tmp_path, data),
        command(tmp_path, "export", data, "--format", "alpaca", "--to", tmp_path / "e.jsonl"),
    ):
        sound(done)
    assert not (tmp_path / "e.jsonl").exists()
    assert not (tmp_path / "curated" / "manifest.json").exists()


def counted(rows: int) -> Manifest:
    return lambda values: values["files"][0].update(rows=rows)


MANIFESTS: dict[str, Manifest] = {
    "more rows than in the part": counted(50),
    "rows without an end": counted(2**62),
    "another kind of rows": lambda values: values.update(shape="preferences"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_that_do_not_fit_their_parts_are_refused(tmp_path: Path, name: str) -> None:
    data = dataset(tmp_path / "data", manifest=MANIFESTS[name])
    sound(curate(tmp_path, data))
    with pytest.raises(InstructgenError):
        list(instructgen.open(data).rows())


def test_odd_facts_of_a_manifest_are_reported_or_refused(tmp_path: Path) -> None:
    facts = {"filters": 5, "borderline": [1], "shares": 3, "output_tokens": "x"}
    data = dataset(tmp_path / "data", manifest=lambda values: values.update(facts=facts))
    sound(command(tmp_path, "report", data, "--out", tmp_path / "r.html"), (0, 2))


MARKUP = {
    "rejections": [{"stage": "[/]", "filter": "\x1b[2J", "reason": "y", "count": 1}],
    "facts": {"format": "[/]", "unit": "\x1b]0;x\x07", "read": 1, "used": 1},
}


@pytest.mark.parametrize("name", MARKUP)
def test_words_of_a_manifest_are_printed_as_text(tmp_path: Path, name: str) -> None:
    path = lines(tmp_path / "a.jsonl", ROW)
    imported(tmp_path, path)
    manifest = tmp_path / "out" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), name: MARKUP[name]}))
    imported(tmp_path, path)


def test_cards_have_only_headings_of_their_own(tmp_path: Path) -> None:
    rows = [
        sample(0, source="a\r# Forged"),
        sample(1, generators=("g",), origin=Origin(method="model", model="x`\n\n# Forged\n\n`")),
        sample(2, attribution=("a\r\n# Forged",)),
    ]
    sound(curate(tmp_path, dataset(tmp_path / "b\n# Forged", rows)), (0,))
    card = (tmp_path / "curated" / "README.md").read_bytes().decode().replace("\r", "\n")
    assert [line for line in card.split("\n") if line.startswith("# ")] == ["# curated"]


# -- files that change while they are read --------------------------------------------------


def _swapped(data: str, other: str, out: str) -> None:
    """Read a dataset of which a part is replaced after its digest was compared."""
    from instructgen.store import dataset as module

    check = module.check_columns

    def checked(*values: Any, **options: Any) -> None:
        check(*values, **options)
        if Path(other).exists():
            Path(other).replace(next(Path(data, "data").glob("*.parquet")))

    module.check_columns = checked
    try:
        rows = len(list(instructgen.open(data).rows()))
    except InstructgenError:
        rows = 6
    Path(out).write_text(str(rows))


def test_a_part_that_is_replaced_after_the_comparison_is_not_read(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    (part,) = (data / "data").glob("*.parquet")
    pq.write_table(pq.read_table(part).slice(0, 3), tmp_path / "other")
    words = (str(data), str(tmp_path / "other"), str(tmp_path / "out"))
    assert forks.run(_swapped, *words, timeout_s=SECONDS) == 0
    assert (tmp_path / "out").read_text() == "6"


def _exchanged(data: str, other: str, out: str) -> None:
    """Curate a dataset that is replaced by another one after its rows were counted."""
    from instructgen.commands import curate as module

    opened = module.readers_of

    def readers(folders: list[Path]) -> Any:
        found = opened(folders)
        if Path(other).exists():
            shutil.rmtree(data)
            Path(other).rename(data)
        return found

    module.readers_of = readers
    try:
        instructgen.curate(data, out, recipe={"filters": [{"name": "length"}]})
    except InstructgenError:
        sys.exit(2)


def test_a_dataset_that_is_replaced_during_a_command_is_an_error(tmp_path: Path) -> None:
    data, other = dataset(tmp_path / "data"), dataset(tmp_path / "other", [sample()])
    words = (str(data), str(other), str(tmp_path / "out"))
    assert forks.run(_exchanged, *words, timeout_s=SECONDS) == 2
    assert not (tmp_path / "out" / "manifest.json").exists()


# -- journals and records of runs and models ------------------------------------------------


def rewritten(run: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Change the lines of a journal; the digests of its lines match the changes."""
    journal = run / "journal.jsonl"
    payloads = [line.partition(b" ")[2] for line in journal.read_bytes().split(b"\n")[:-1]]
    chain, data = json.loads((run / "run.json").read_text())["run"], b""
    for payload in change(payloads):
        chain = hashlib.sha256(chain.encode() + payload).hexdigest()[:16]
        data += b"%s %s\n" % (chain.encode(), payload)
    journal.write_bytes(data)


def edited(kind: str, /, **values: Any) -> Callable[[list[bytes]], list[bytes]]:
    """Return a change that sets values of the first line of a kind."""

    def change(payloads: list[bytes]) -> list[bytes]:
        at = next(i for i, p in enumerate(payloads) if orjson.loads(p)["kind"] == kind)
        line = orjson.dumps({**orjson.loads(payloads[at]), **values})
        return [*payloads[:at], line, *payloads[at + 1 :]]

    return change


JOURNALS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "a line that is not JSON": lambda payloads: [*payloads, b"{"],
    "an unknown kind": edited("session", kind="evil"),
    "an unknown key": edited("session", evil=1),
    "a number as text": edited("completion", text=5),
}


@pytest.mark.parametrize("name", JOURNALS)
def test_journals_with_other_lines_are_refused(run: Path, tmp_path: Path, name: str) -> None:
    rewritten(run, JOURNALS[name])
    before = contents(run)
    sound(command(tmp_path, "rebuild", run))
    assert contents(run) == before


Run = Callable[[dict[str, Any], Path], Any]


def seeds(**values: Any) -> Run:
    """Return a change of the first seed of a run; the digest of the seeds matches it."""

    def change(info: dict[str, Any], run: Path) -> None:
        path = run / "seeds.jsonl"
        first, *others = path.read_bytes().splitlines()
        lines(path, {**orjson.loads(first), **values}, *others)
        info["seeds"]["sha256"] = digest_of_file(path)

    return change


RUNS: dict[str, Run] = {
    "no engine": lambda info, _: info["config"].pop("engine"),
    "a number as the method": lambda info, _: info["config"]["method"].update(name=5),
    "an unknown form": lambda info, _: info.update(form={"evil": 1}),
    "a seed without text": seeds(instruction=None),
}


@pytest.mark.parametrize("name", RUNS)
def test_runs_with_other_settings_are_refused(run: Path, tmp_path: Path, name: str) -> None:
    info = json.loads((run / "run.json").read_text())
    RUNS[name](info, run)
    (run / "run.json").write_text(json.dumps(info))
    before = contents(run)
    sound(command(tmp_path, "rebuild", run))
    sound(command(tmp_path, "report", run, "--out", tmp_path / "r.html"), (0, 2))
    assert contents(run) == before


def test_a_session_with_a_number_of_400_digits(run: Path, tmp_path: Path) -> None:
    numbers = b'{"engine_s": 1, "asked": 1, "output_tokens": %s}\n' % (b"9" * 400)
    (run / "sessions.jsonl").write_bytes(numbers)
    sound(command(tmp_path, "report", run, "--out", tmp_path / "r.html"), (0, 2))


def trained(folder: Path, log: bytes, **options: Any) -> Path:
    """Write the records of a model that was trained."""
    rows = TrainedRows(1, 1, "x", {}, 0, "")
    facts = TrainingFacts("b", "b", "sft", rows, 5, 5, 1.0, 1.0, 1.0, False, {}, (),
                          LicenseCounts({"MIT": 1}, {}, {}), {})  # fmt: skip
    inputs = TrainingInputs("sft", InputRef("m"), InputRef("d"), (), None, options)
    folder.mkdir()
    (folder / "training.json").write_bytes(TrainingInfo(2, inputs, facts).to_json())
    (folder / "log.jsonl").write_bytes(log)
    return folder


LOGS = {
    "text": b'{"step": 1, "loss": "x"}\n{"step": 2, "loss": {}}\n',
    "large": b'{"step": 1, "loss": 1e308}\n{"step": 2, "loss": -1e308}\n',
}


@pytest.mark.parametrize("name", LOGS)
def test_logs_with_other_numbers_are_reported_or_refused(tmp_path: Path, name: str) -> None:
    model = trained(tmp_path / "m", LOGS[name], peft="none")
    sound(command(tmp_path, "report", model, "--out", tmp_path / "r.html"), (0, 2))


def test_a_model_without_an_expected_option_is_reported_or_refused(tmp_path: Path) -> None:
    model = trained(tmp_path / "m", b"")
    sound(command(tmp_path, "report", model, "--out", tmp_path / "r.html"), (0, 2))


def test_intervals_of_any_size_are_reported_or_refused(tmp_path: Path) -> None:
    value = {"value": 0.0, "low": -1e308, "high": 1e308, "rows": 5}
    measure = {"suite": "s", "dataset": "d", "measure": "x", "before": None, "after": value,
               "difference": None, "better": "lower"}  # fmt: skip
    record = {"model": {"name": "m"}, "against": None, "data": ["d"], "format": "chat",
              "seed": 0, "measures": [measure], "versions": {}}  # fmt: skip
    (tmp_path / "evaluation.json").write_text(json.dumps(record))
    sound(command(tmp_path, "report", tmp_path, "--out", tmp_path / "r.html"), (0, 2))


# -- files without an end, pipes, hard links and deep folders -------------------------------


def sparse(path: Path) -> Path:
    """Extend a file by 3 GiB that need no space on the disk."""
    path.parent.mkdir(exist_ok=True)
    path.touch()
    os.truncate(path, 3 * 2**30)
    return path


@pytest.mark.parametrize("name", ["README.md", "state.json"])
def test_descriptions_of_data_without_an_end(tmp_path: Path, name: str) -> None:
    (tmp_path / "data").mkdir()
    lines(tmp_path / "data" / "a.jsonl", ROW)
    sparse(tmp_path / "data" / name)
    imported(tmp_path, tmp_path / "data", codes=(0, 2))


@pytest.mark.parametrize("name", ["journal.jsonl", "manifest.json"])
def test_files_of_a_run_without_an_end(run: Path, tmp_path: Path, name: str) -> None:
    sparse(run / name)
    words = ("report", run, "--out", tmp_path / "r.html")
    sound(command(tmp_path, *(words if name == "manifest.json" else ("rebuild", run))))


PIPES: dict[str, tuple[str, ...]] = {
    "data/evaluation.json": ("report", "data", "--out", "r.html"),
    "out/pipeline.json": ("run", "quickstart", "--dry-run", "--out", "out"),
}


@pytest.mark.parametrize("name", PIPES)
def test_pipes_in_place_of_files_are_refused(tmp_path: Path, name: str) -> None:
    dataset(tmp_path / "set")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    sound(command(tmp_path, *PIPES[name], seconds=MOMENT))


@pytest.mark.parametrize("name", ["journal.jsonl", "sessions.jsonl"])
def test_a_file_that_has_another_name_elsewhere_is_not_changed(
    run: Path, tmp_path: Path, name: str
) -> None:
    """An archive can contain hard links, also to files that are not in it."""
    other = tmp_path / "other"
    other.write_bytes(b"a file of somebody else")
    (run / name).unlink()
    os.link(other, run / name)
    words = ("--target", 4, "--engine", "echo", "--out", run)
    sound(command(tmp_path, "generate", "--seeds", GENERAL, *words), (0, 2))
    assert other.read_bytes() == b"a file of somebody else"


def test_a_folder_in_1500_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    for _ in range(1500):
        os.mkdir("a")  # noqa: PTH102 - the path would be too long
        os.chdir("a")
    lines(Path("a.jsonl"), ROW)
    monkeypatch.chdir(tmp_path)
    try:
        imported(tmp_path, tmp_path / "data", codes=(0, 2))
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "data"], check=True)


def test_a_file_is_read_once_though_a_link_leads_back_to_its_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "again").symlink_to(".")
    lines(tmp_path / "data" / "a.jsonl", ROW)
    assert imported(tmp_path, f"{tmp_path}/data/**/*.jsonl", codes=(0, 2)) <= 1


CARDS = {"lines": "---" + "\n" * 99_000 + "x", "spaces": f"---\nlicense: a{' ' * 95_000}b\n---\n"}


@pytest.mark.parametrize("name", CARDS)
def test_cards_of_white_space_are_read_in_time(tmp_path: Path, name: str) -> None:
    (tmp_path / "data").mkdir()
    lines(tmp_path / "data" / "a.jsonl", ROW)
    (tmp_path / "data" / "README.md").write_text(CARDS[name])
    imported(tmp_path, tmp_path / "data", codes=(0, 2), seconds=MOMENT)


# -- words of the command line and names of files -------------------------------------------

NAME = os.fsdecode(b"x\xff")
ECHO = ("generate", "--seeds", GENERAL, "--target", 1, "--engine", "echo", "--out")
WORDS: dict[str, tuple[object, ...]] = {
    "the name of a run": (*ECHO, NAME),
    "an export": ("export", "set", "--format", "sharegpt", "--to", f"{NAME}.jsonl"),
    "files in a folder": ("import", "in", "--out", "o", "--license", "MIT"),
    "a benchmark": ("curate", "set", "--out", "o", "--against", f"in/{NAME}.jsonl"),
    "a number with 5,000 digits": (*ECHO, "o", "--set", "method.human=" + "9" * 5000),
    "a deep list": (*ECHO, "o", "--set", "method.human=" + "[" * 5000),
    "an escape sequence": ("curate", "set", "\x1b]0;x\x07", "--out", "o"),
}


@pytest.mark.parametrize("name", WORDS)
def test_odd_words_are_used_or_refused(tmp_path: Path, name: str) -> None:
    """A name may consist of any bytes. A command that fails leaves no output that looks complete."""
    dataset(tmp_path / "set")
    lines(tmp_path / "a.jsonl", ROW)
    (tmp_path / "in").mkdir()
    for file in (f"{NAME}.jsonl", "b.jsonl"):
        lines(tmp_path / "in" / file, {**ROW, "instruction": f"Say {len(file)}.", "prompt": "Q?"})
    done = command(tmp_path, *WORDS[name])
    sound(done, ALLOWED)
    if done.returncode == 2:
        assert not (tmp_path / f"{NAME}.jsonl").exists()


# -- environment and streams ----------------------------------------------------------------

ENVIRONMENTS: dict[str, dict[str, str]] = {
    "a parent that is not a number": {"INSTRUCTGEN_PARENT": "abc"},
    "a proxy with half an address": {"HTTPS_PROXY": "http://user:password1@[bad"},
    "a proxy that is not UTF-8": {"HTTP_PROXY": os.fsdecode(b"http://user:p\xffssword1@host:1")},
    "a key that is a word of the manifest": {"OPENAI_API_KEY": "instructions"},
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_odd_variables_do_no_harm(tmp_path: Path, name: str) -> None:
    path = lines(tmp_path / "a.jsonl", ROW)
    words = ("import", path, "--out", tmp_path / "out", "--license", "MIT", "--language", "en")
    sound(installed(tmp_path, *words, **ENVIRONMENTS[name]), (0,))
    assert len(list(instructgen.open(tmp_path / "out").rows())) == 1


@pytest.mark.parametrize("more", [(), ("--json",)], ids=["text", "JSON"])
def test_a_terminal_without_unicode_gets_other_characters(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    data = dataset(tmp_path / "data", [sample(output="x − y")])
    (row,) = instructgen.open(data).rows()
    words = ("explain", data, row["id"], *more)
    sound(installed(tmp_path, *words, PYTHONIOENCODING="ascii"), (0,))


@pytest.mark.parametrize("shell", [">&-", ">/dev/full"], ids=["closed", "full"])
def test_an_output_that_cannot_be_written_is_one_error(tmp_path: Path, shell: str) -> None:
    path = lines(tmp_path / "a.jsonl", ROW)
    words = ("import", path, "--out", tmp_path / "out", "--license", "MIT", "--language", "en")
    done = installed(tmp_path, *words, "--json", shell=shell)
    sound(done, (0, 1))
    assert "Exception ignored" not in done.stderr
    assert len(list(instructgen.open(tmp_path / "out").rows())) == 1


# -- plug-ins of installed packages ---------------------------------------------------------

FILTER = "from instructgen.filters import Filter\nclass X(Filter):\n    name = {}\n" \
    "    def reason(self, sample): return None\n"  # fmt: skip
PLUGINS: dict[str, tuple[str, bytes]] = {
    "a class without a name": ("class X: pass\n", b""),
    "a module that exits": ("raise SystemExit(0)\n", b""),
    "metadata that is not text": (FILTER.format("'x'"), b"\xff\xfe\0"),
}


@pytest.mark.parametrize("name", PLUGINS)
def test_broken_plugins_are_named(tmp_path: Path, name: str) -> None:
    code, metadata = PLUGINS[name]
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (tmp_path / "broken_plugin.py").write_text(code)
    (info / "METADATA").write_bytes(metadata or b"Name: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[instructgen.filters]\nx = broken_plugin:X\n")
    done = installed(tmp_path, "filters", PYTHONPATH=f"{ROOT}:{tmp_path}")
    # A plug-in can be used without the name and the version of its package.
    sound(done, (0, 2) if metadata else (2,))
    assert done.returncode == 0 or "broken" in done.stderr


# -- recipes and pipelines ------------------------------------------------------------------

RECIPES = {
    "a number with 5,000 digits": "name = 'length'\nmax_words = " + "9" * 5000,
    "long n-grams of repetitions": "name = 'repetition'\nngram = 30000",
    "long n-grams of similar rows": "name = 'near_duplicate'\nngram = 30000",
}


@pytest.mark.parametrize("name", RECIPES)
def test_odd_recipes_are_used_within_limits_or_refused(tmp_path: Path, name: str) -> None:
    data = dataset(tmp_path / "data", [sample(), sample(instruction="word " * 60_000)])
    recipe(tmp_path, f"[[filters]]\n{RECIPES[name]}\n")
    sound(curate(tmp_path, data), (0, 2))


def test_long_ngrams_of_benchmarks_are_searched_in_time_or_refused(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", [sample(instruction="w " * 500_000)])
    prompts = lines(tmp_path / "b.jsonl", {"prompt": "What is it there? " * 3})
    recipe(tmp_path, "[[filters]]\nname = 'contamination'\nngram = 250000\n")
    sound(curate(tmp_path, data, "--against", prompts, seconds=2 * MOMENT), (0, 2))


PIPELINES = {
    "a zero byte in an option": ("a.jsonl", 'attribution = "a\\u0000b"'),
    "a zero byte in a path": ("a\\u0000b", ""),
    "an option that is too long": ("a.jsonl", f'attribution = "{"a" * 200_000}"'),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_odd_pipelines_are_refused(tmp_path: Path, name: str) -> None:
    file, option = PIPELINES[name]
    lines(tmp_path / "a.jsonl", ROW)
    step = f'[[steps]]\nname = "a"\nrun = "import @x"\nlicense = "MIT"\n{option}\n'
    (tmp_path / "p.toml").write_text(f'[inputs.x]\nfile = "{file}"\n{step}')
    sound(command(tmp_path, "run", tmp_path / "p.toml", "--out", tmp_path / "out"))


# -- verifiers ------------------------------------------------------------------------------


def _score(verifier: Verifier, row: Sample, answer: str, out: str) -> None:
    """Score an answer within the limits of memory, and write the score."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + EXTRA
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    task = verifier.task(row, random.Random(0))
    Path(out).write_text(str(0.0 if task is None else verifier.check(task, answer)))


def labeled(name: str, value: str) -> Sample:
    return sample(labels=(Label(name, value),))


SPACES = "```" + " " * 20_000 + "x"
CHECKS: dict[str, tuple[Verifier, Sample, str]] = {
    "a constraint with a list as name": (IfEval(), labeled("constraint", '{"name": []}'), "a"),
    "fewer than no words": (
        IfEval(), labeled("constraint", '{"name": "words_at_most", "count": -1}'), "a b c d",
    ),
    "spaces in an open fence": (IfEval(), labeled("constraint", '{"name": "json"}'), SPACES),
    "an open box": (Math(), sample(output="#### 5"), r"\boxed{" + "a{b}" * 200_000),
    "half a surrogate pair": (Math(seconds=1), sample(output="#### x"), "#### \ud800"),
    "a pattern of parentheses": (Regex(), labeled("pattern", "(" * 5000 + ")" * 5000), "a"),
    "a pattern in itself": (Regex(), labeled("pattern", "(?R)" * 5), "a" * 5000),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_odd_tasks_and_answers_get_a_score_in_time(tmp_path: Path, name: str) -> None:
    out = str(tmp_path / "score")
    assert forks.run(_score, *CHECKS[name], out, timeout_s=2 * MOMENT) == 0
    assert 0 <= float(Path(out).read_text()) <= 1


# -- answers of a server --------------------------------------------------------------------

ANSWERS: dict[str, tuple[int, object, dict[str, str]]] = {
    "an answer of empty lines": (200, "\n" * 100_000, {}),
    "control characters": (200, "1. Say\0the \x1b[2J word \u202e aloud now please.", {}),
    "a redirect to a file": (302, "x", {"location": "file:///etc/passwd"}),
    "a status with escapes": (401, "\x1b[2J" + SECRET, {"www-authenticate": 'Basic realm="x"'}),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_odd_answers_end_in_time_and_reveal_nothing(tmp_path: Path, name: str) -> None:
    status, text, headers = ANSWERS[name]
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 50, "completion_tokens": 50}
    body = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
    server = Server(reply(status, body, headers))
    done = command(
        tmp_path, "generate", "--seeds", GENERAL, "--target", 1, "--engine", "openai",
        "--model", "m", "--endpoint", server.url, "--set", "engine.max_retries=1",
        "--max-tokens-total", 2_000, "--out", tmp_path / "run", seconds=2 * MOMENT,
        OPENAI_API_KEY=SECRET,
    )  # fmt: skip
    sound(done, (0, 1, 3))
    assert SECRET not in done.stdout + done.stderr
    assert not [name for name, data in contents(tmp_path).items() if SECRET.encode() in data]
