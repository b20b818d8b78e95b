"""Tests that commands that make datasets raise clear errors for hostile files and options."""

from __future__ import annotations

import gzip
import re
import resource
import subprocess
import sys
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructgen import curate, export, import_data, merge
from instructgen.errors import ConfigError, DamagedFileError, InputError
from instructgen.filters.contamination import benchmark_prompts
from instructgen.formats import BadRow, read
from instructgen.schema.sample import Sample
from instructgen.store import read_samples, write_dataset


def lines(path: Path, *rows: object) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def dataset(folder: Path, rows: int = 3) -> Path:
    samples = [Sample(f"task {i}", output="x", source="s", license="MIT") for i in range(rows)]
    write_dataset(folder, samples, [], lambda _: "# card\n")
    return folder


def only_bad(path: Path) -> str:
    """Return the reasons for which the rows of a file are rejected; all must be."""
    rows = list(read(path, license="MIT", on_bad_row="reject"))
    assert rows
    assert all(isinstance(row, BadRow) for row in rows)
    return " ".join(row.reason for row in rows if isinstance(row, BadRow))


ODD = [None, 5, True, [], {}, [1], [[]], [{}], "", " ", "\0", {"a": None}, [{"role": "user"}]]
FIELDS = {
    "alpaca": ("instruction", "output", "input", "history"),
    "alpaca-libre": ("instruction", "input", "output", "status", "other", "similarity"),
    "dolly": ("instruction", "context", "response", "category"),
    "hh-rlhf": ("chosen", "rejected"),
    "longform": ("input", "output", "source", "subset"),
    "openai-chat": ("messages", "language"),
    "preferences": ("prompt", "chosen", "rejected", "score_chosen"),
    "self-instruct": ("instruction", "instances", "is_classification"),
    "sharegpt": ("conversations", "system"),
    "ultrafeedback": ("instruction", "completions"),
    "oasst": ("message_tree_id", "tree_state", "message_id", "parent_id", "text", "role", "rank",
              "labels", "detoxify", "prompt", "lang"),
    "instructgen": ("instruction", "output", "kind", "license", "language"),
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_a_value_of_any_type_rejects_only_its_own_row(tmp_path: Path, name: str) -> None:
    rows = [dict.fromkeys(FIELDS[name], odd) for odd in ODD]
    for field in FIELDS[name]:
        rows += [{**dict.fromkeys(FIELDS[name], "x"), field: odd} for odd in ODD]
        rows.append({f: "x" for f in FIELDS[name] if f != field})
    reading = read(lines(tmp_path / "a.jsonl", *rows), name, license="MIT", on_bad_row="reject")
    assert sum(1 for _ in reading) >= len(rows)
    assert reading.units == len(rows)


def test_a_dialogue_with_text_before_its_first_turn_is_rejected(tmp_path: Path) -> None:
    row = {
        "chosen": "Lost?\n\nHuman: a\n\nAssistant: b",
        "rejected": "\n\nHuman: a\n\nAssistant: c",
    }
    reason = only_bad(lines(tmp_path / "a.jsonl", row))
    assert '"chosen"' in reason
    assert '"rejected"' not in reason
    valid = {**row, "chosen": row["chosen"].removeprefix("Lost?")}
    (sample,) = read(lines(tmp_path / "b.jsonl", valid))
    assert isinstance(sample, Sample)


def test_content_parts_without_text_are_rejected(tmp_path: Path) -> None:
    for part in (None, {"k": 1}, 5):
        messages = [
            {"role": "user", "content": [{"type": "text", "text": part}]},
            {"role": "assistant", "content": "x"},
        ]
        assert '"text"' in only_bad(lines(tmp_path / "a.jsonl", {"messages": messages}))


def test_nan_is_not_read_as_a_score(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": float("nan")}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    (sample,) = read(tmp_path / "a.parquet", license="MIT")
    assert isinstance(sample, Sample)
    assert sample.scores == ()


def test_groups_of_a_mapped_table_are_kept(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"i": "a", "o": "b", "g": "family"})
    names = {"instruction": "i", "output": "o", "group": "g"}
    result = import_data(path, tmp_path / "d", mapping=names, license="MIT")
    (sample,) = read_samples(result.out)
    assert sample.origin.group == "family"


def test_no_dataset_is_overwritten(tmp_path: Path) -> None:
    data = dataset(tmp_path / "d")
    before = {p: p.read_bytes() for p in data.rglob("*") if p.is_file()}
    for name in ("data/part-00000.parquet", "manifest.json", "new.jsonl"):
        with pytest.raises(InputError, match=rf": .*{re.escape(str(data))}\b") as caught:
            export(data, data / name, format="alpaca", overwrite=True)
        assert caught.value.path == data / name
    # The same dataset twice.
    with pytest.raises(InputError) as caught:
        merge([data, data / ".." / "d"], tmp_path / "m")
    assert caught.value.path == data / ".." / "d"
    # The output folder is inside an input, or is the input.
    with pytest.raises(InputError, match=rf": .*{re.escape(str(data / 'm'))} ") as caught:
        merge([data], data / "m")
    assert caught.value.path == data
    with pytest.raises(InputError, match=rf": .*{re.escape(str(data))} ") as caught:
        curate(data, data)
    assert caught.value.path == data
    assert before == {p: p.read_bytes() for p in data.rglob("*") if p.is_file()}


PART = {"rows": 1, "bytes": 1, "sha256": ""}


@pytest.mark.parametrize(
    "change",
    [
        {"files": []},
        {"files": 3},
        {"files": [{}]},
        {"files": [{"path": "../x/data/part-00000.parquet", **PART}]},
        {"files": [{"path": "/etc/passwd", **PART}]},
        {"shape": "round"},
        {"rows": "many"},
        {"terms": None},
    ],
)
def test_a_manifest_with_false_values_is_damaged(tmp_path: Path, change: dict[str, object]) -> None:
    data = dataset(tmp_path / "d")
    assert export(data, tmp_path / "valid.jsonl", format="alpaca").rows == 3
    path = data / "manifest.json"
    manifest = orjson.loads(path.read_bytes())
    path.write_bytes(orjson.dumps({**manifest, **change}))
    with pytest.raises(DamagedFileError) as caught:
        merge([data], tmp_path / "m")
    assert caught.value.path == path
    with pytest.raises(DamagedFileError) as caught:
        export(data, tmp_path / "a.jsonl", format="alpaca")
    assert caught.value.path == path


def test_a_deleted_card_is_written_again(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"instruction": "a", "output": "b"})
    result = import_data(path, tmp_path / "d", license="MIT")
    Path(result.card).unlink()
    import_data(path, tmp_path / "d", license="MIT")
    assert Path(result.card).is_file()


def test_a_benchmark_with_a_row_without_prompt_raises_an_error(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"question": "what is it"}, {"foo": 3})
    with pytest.raises(InputError, match=r"\bprompt\b") as caught:
        benchmark_prompts(path)
    assert (caught.value.path, caught.value.line) == (path, 2)
    data = dataset(tmp_path / "d")
    with pytest.raises(InputError) as caught:
        benchmark_prompts(data)
    assert caught.value.path == data


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        # Files without a row.
        ("a.csv", b"\xef\xbb\xbf", r"\brows?\b"),
        ("a.csv.gz", gzip.compress(b"", mtime=0), r"\brows?\b"),
        # Two columns with one name.
        ("a.csv", b"instruction,output,output\na,b,c\n", "'output'"),
        # A quote that is not closed.
        ("a.csv", b'instruction,output\na,"b\n', r"\bline 2\b.*\bquote\b"),
        # A missing file, and not a name on the Hub.
        ("d/a.jsonl", None, "ORG/NAME"),
        ("a.json", b"[] x", r"\bempty\b"),
    ],
)
def test_invalid_files_raise_an_error(
    tmp_path: Path, name: str, content: bytes | None, named: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=named) as caught:
        list(read(path, license="MIT", on_bad_row="reject"))
    assert caught.value.path == path


def test_an_invalid_text_in_parquet_rejects_only_its_row(tmp_path: Path) -> None:
    outputs = pa.array([b"a", b"\xff\xfe", b"c"], pa.binary()).cast(pa.string(), safe=False)
    table = pa.table({"instruction": ["x", "y", "z"], "output": outputs})
    pq.write_table(table, tmp_path / "a.parquet")
    rows = list(read(tmp_path / "a.parquet", license="MIT", on_bad_row="reject"))
    assert [isinstance(r, Sample) for r in rows] == [True, False, True]
    assert [r.line for r in rows if isinstance(r, BadRow)] == [2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv.gz", "jsonl.gz", "json.gz", "parquet"])
def test_memory_is_bounded_for_decompression_bombs(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"bomb.{kind}"
    if kind == "parquet":
        column = pa.array(["x" * 2**20]).dictionary_encode()
        long = pa.DictionaryArray.from_arrays(pa.array([0] * 5_000, pa.int32()), column.dictionary)
        names = ["instruction", "output", *(f"c{i}" for i in range(20))]
        pq.write_table(pa.table(dict.fromkeys(names, long)), path, compression="zstd")
    else:
        start = {"csv.gz": b"instruction,output\n", "jsonl.gz": b'{"a": "', "json.gz": b'[{"a": "'}
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(start[kind])
            for _ in range(900):
                file.write(b"x" * 2**20)
    assert path.stat().st_size < 40 * 2**20
    code = (
        "import sys; from pathlib import Path; from instructgen.formats import read\n"
        "from instructgen.errors import InputError\n"
        "try:\n"
        "    rows = read(Path(sys.argv[1]), 'alpaca', license='MIT', on_bad_row='reject')\n"
        "    print(sum(1 for _ in zip(rows, range(20))))\n"
        "except InputError as error: print(error)\n"
    )

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))

    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, preexec_fn=limited, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("text", "error", "named"),
    [
        ("[mix]\ntemperature = inf\n", ConfigError, r"mix\.temperature"),
        ("[mix]\ntemperature = 1e-320\n", ConfigError, r"mix\.temperature"),
        ("[mix.weights]\ns = 1e308\n", ConfigError, r"weights\.s"),
        ("[mix.caps]\ns = 99999999999999999999999\n", ConfigError, r"caps\.s"),
        # No training row would be left.
        ("[split]\nvalidation = 0.9999999\n", InputError, r"\[split\]"),
        ("[mix]\nrows = 1\n[split]\ntest = 0.9\n", InputError, r"\[split\]"),
    ],
)
def test_extreme_numbers_of_a_mix_raise_an_error(
    tmp_path: Path, text: str, error: type[Exception], named: str
) -> None:
    (tmp_path / "mix.toml").write_text(text)
    with pytest.raises(error, match=named):
        merge([dataset(tmp_path / "d")], tmp_path / "m", recipe=tmp_path / "mix.toml")


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ('name = "score"\nof = "x"\nmin = nan\n', r"score.*\bmin\b"),
        ('name = "score"\nof = "x"\nmin = 5\nmax = 1\n', r"score.*\bmin\b.*\bmax\b"),
        ('name = "perplexity"\nmin = 5.0\nmax = 2.0\n', r"perplexity.*\bmin\b.*\bmax\b"),
        ('name = "length"\nmax_words = 99999999999999999999999\n', r"length.*\bmax_words\b"),
        ('name = "language"\nallowed = ["english"]\n', r"language.*\ballowed\b"),
        ('name = "refusal"\nphrases = [""]\n', r"refusal.*\bphrases\b"),
        ('name = "control_tokens"\nwords = [""]\n', r"control_tokens.*\bwords\b"),
        ('name = "pii"\nregions = ["../"]\n', r"pii.*\bregions\b"),
    ],
)
def test_invalid_keys_of_a_filter_raise_an_error(tmp_path: Path, keys: str, named: str) -> None:
    (tmp_path / "r.toml").write_text(f"[[filters]]\n{keys}")
    with pytest.raises(ConfigError, match=rf"r\.toml: .*{named}"):
        curate(dataset(tmp_path / "d"), tmp_path / "c", recipe=tmp_path / "r.toml")


def test_options_that_are_not_utf_8_raise_an_error(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"instruction": "a", "output": "b"})
    for options in ({"attribution": "\udcff"}, {"model": "\udcff"}):
        with pytest.raises(ConfigError, match="UTF-8"):
            import_data(path, tmp_path / "d", license="MIT", **options)  # type: ignore[arg-type]
