"""Hostile files and options for the commands that make datasets: one clear line, nothing lost."""

from __future__ import annotations

import gzip
import resource
import subprocess
import sys
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructgen import curate, export, import_data, merge
from instructgen.errors import ConfigError, InputError, InstructgenError, RunError
from instructgen.filters.contamination import benchmark_prompts
from instructgen.formats import BadRow, read
from instructgen.schema.sample import Sample
from instructgen.store import read_samples, write_dataset


def lines(path: Path, *rows: object) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def dataset(folder: Path, rows: int = 3) -> Path:
    samples = [Sample(f"task {i}", output="x", source="s", license="MIT") for i in range(rows)]
    write_dataset(folder, samples, [], lambda _: "# card\n", {"funnel": []})
    return folder


def only_bad(path: Path, source: str | None = None) -> str:
    rows = list(read(path, source, license="MIT", on_bad_row="reject"))
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


@pytest.mark.parametrize("source", FIELDS)
def test_any_type_in_any_field_costs_only_the_row(tmp_path: Path, source: str) -> None:
    rows = [dict.fromkeys(FIELDS[source], odd) for odd in ODD]
    for field in FIELDS[source]:
        rows += [{**dict.fromkeys(FIELDS[source], "x"), field: odd} for odd in ODD]
        rows.append({f: "x" for f in FIELDS[source] if f != field})
    reading = read(lines(tmp_path / "a.jsonl", *rows), source, license="MIT", on_bad_row="reject")
    assert sum(1 for _ in reading) >= len(rows)
    assert reading.units == len(rows)


def test_text_before_a_dialogue_is_not_dropped(tmp_path: Path) -> None:
    row = {
        "chosen": "Lost?\n\nHuman: a\n\nAssistant: b",
        "rejected": "\n\nHuman: a\n\nAssistant: c",
    }
    assert "no dialogue" in only_bad(lines(tmp_path / "a.jsonl", row))


def test_content_parts_are_text(tmp_path: Path) -> None:
    for part in (None, {"k": 1}, 5):
        messages = [
            {"role": "user", "content": [{"type": "text", "text": part}]},
            {"role": "assistant", "content": "x"},
        ]
        assert "text" in only_bad(lines(tmp_path / "a.jsonl", {"messages": messages}))


def test_nan_is_no_score(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": float("nan")}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    (sample,) = read(tmp_path / "a.parquet", license="MIT")
    assert isinstance(sample, Sample)
    assert sample.scores == ()


def test_groups_of_a_mapped_table_are_kept(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"i": "a", "o": "b", "g": "family"})
    names = {"instruction": "i", "output": "o", "group": "g"}
    made = import_data(path, tmp_path / "d", mapping=names, license="MIT")
    (sample,) = read_samples(made.out)
    assert sample.origin.group == "family"


def test_no_dataset_is_written_over(tmp_path: Path) -> None:
    data = dataset(tmp_path / "d")
    before = {p: p.read_bytes() for p in data.rglob("*") if p.is_file()}
    for name in ("data/part-00000.parquet", "manifest.json", "new.jsonl"):
        with pytest.raises(InputError, match="holds a dataset"):
            export(data, data / name, format="alpaca", overwrite=True)
    with pytest.raises(InputError, match="given twice"):
        merge([data, data / ".." / "d"], tmp_path / "m")
    with pytest.raises(InputError, match="lies in an input"):
        merge([data], data / "m")
    with pytest.raises(InputError, match="lies in an input"):
        curate(data, data)
    assert before == {p: p.read_bytes() for p in data.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "change",
    [
        {"files": []},
        {"files": 3},
        {"files": [{}]},
        {"files": [{"path": "../x/data/part-00000.parquet", "rows": 1, "sha256": ""}]},
        {"files": [{"path": "/etc/passwd", "rows": 1, "sha256": ""}]},
        {"shape": "round"},
        {"rows": "many"},
        {"terms": None},
    ],
)
def test_a_manifest_that_lies(tmp_path: Path, change: dict[str, object]) -> None:
    data = dataset(tmp_path / "d")
    manifest = orjson.loads((data / "manifest.json").read_bytes())
    (data / "manifest.json").write_bytes(orjson.dumps({**manifest, **change}))
    with pytest.raises(RunError, match="damaged"):
        merge([data], tmp_path / "m")
    with pytest.raises(RunError, match="damaged"):
        export(data, tmp_path / "a.jsonl", format="alpaca")


def test_a_card_that_is_gone_is_made_again(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"instruction": "a", "output": "b"})
    made = import_data(path, tmp_path / "d", license="MIT")
    Path(made.card).unlink()
    import_data(path, tmp_path / "d", license="MIT")
    assert Path(made.card).is_file()


def test_benchmarks_are_read_whole_or_not(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"question": "what is it"}, {"foo": 3})
    with pytest.raises(InputError, match=r"a\.jsonl line 2: the row has no prompt"):
        benchmark_prompts(path)
    with pytest.raises(InputError, match="no such file"):
        benchmark_prompts(dataset(tmp_path / "d"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"\xef\xbb\xbf", "no row"),
        ("a.csv.gz", gzip.compress(b""), "no row"),
        ("a.csv", b"instruction,output,output\na,b,c\n", "two columns are called 'output'"),
        ("a.csv", b'instruction,output\na,"b\n', "quote that does not close"),
        ("d/a.jsonl", None, "no such file"),
        ("a.json", b"[] x", "empty"),
    ],
)
def test_files_that_are_none(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read(path, license="MIT", on_bad_row="reject"))


def test_one_bad_text_in_parquet_costs_its_row(tmp_path: Path) -> None:
    outputs = pa.array([b"a", b"\xff\xfe", b"c"], pa.binary()).cast(pa.string(), safe=False)
    table = pa.table({"instruction": ["x", "y", "z"], "output": outputs})
    pq.write_table(table, tmp_path / "a.parquet")
    rows = list(read(tmp_path / "a.parquet", license="MIT", on_bad_row="reject"))
    assert [type(r).__name__ for r in rows] == ["Sample", "BadRow", "Sample"] or [
        r.line for r in rows if isinstance(r, BadRow)
    ] == [2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv.gz", "jsonl.gz", "json.gz", "parquet"])
def test_bombs_are_bounded(tmp_path: Path, kind: str) -> None:
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
            for _ in range(1_200):
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
    "text",
    [
        "[mix]\ntemperature = inf\n",
        "[mix]\ntemperature = 1e-320\n",
        "[mix.weights]\ns = 1e308\n",
        "[mix.caps]\ns = 99999999999999999999999\n",
        "[split]\nvalidation = 0.9999999\n",
        "[mix]\nrows = 1\n[split]\ntest = 0.9\n",
    ],
)
def test_numbers_of_a_mix(tmp_path: Path, text: str) -> None:
    (tmp_path / "mix.toml").write_text(text)
    with pytest.raises(InstructgenError):
        merge([dataset(tmp_path / "d")], tmp_path / "m", recipe=tmp_path / "mix.toml")


@pytest.mark.parametrize(
    "keys",
    [
        'name = "score"\nof = "x"\nmin = nan\n',
        'name = "score"\nof = "x"\nmin = 5\nmax = 1\n',
        'name = "perplexity"\nmin = 5.0\nmax = 2.0\n',
        'name = "length"\nmax_words = 99999999999999999999999\n',
        'name = "language"\nallowed = ["english"]\n',
        'name = "refusal"\nphrases = [""]\n',
        'name = "control_tokens"\nwords = [""]\n',
        'name = "pii"\nregions = ["../"]\n',
    ],
)
def test_keys_of_a_recipe(tmp_path: Path, keys: str) -> None:
    (tmp_path / "r.toml").write_text(f"[[filters]]\n{keys}")
    with pytest.raises(ConfigError, match=r"r\.toml"):
        curate(dataset(tmp_path / "d"), tmp_path / "c", recipe=tmp_path / "r.toml")


def test_options_that_are_no_text(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"instruction": "a", "output": "b"})
    for options in ({"attribution": "\udcff"}, {"model": "\udcff"}):
        with pytest.raises(ConfigError, match="UTF-8"):
            import_data(path, tmp_path / "d", license="MIT", **options)  # type: ignore[arg-type]
