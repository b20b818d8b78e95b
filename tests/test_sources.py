"""Readers: every row is kept or rejected with its line; damage is named, never a traceback."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgen.errors import InputError
from instructgen.formats import BadRow, read
from instructgen.schema.sample import Kind, Sample, Score
from tests.conftest import real

GOOD = {"instruction": "Say hello politely.", "context": "", "response": "Good day."}


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"".join(lines))
    return path


def good(n: int = 0) -> bytes:
    return orjson.dumps({**GOOD, "response": f"Good day {n}."}) + b"\n"


# -- formats ------------------------------------------------------------------------


def test_dolly_is_read_whole() -> None:
    rows = list(read(real("dolly/databricks-dolly-15k.rejoined.jsonl")))
    assert len(rows) == 15011
    assert all(isinstance(r, Sample) for r in rows)
    assert {r.license for r in rows} == {"CC-BY-SA-3.0"}
    assert {r.language for r in rows} == {"en"}
    assert sum(r.input == "" for r in rows) == 10544
    assert len({r.category for r in rows}) == 8
    assert len({r.instruction for r in rows}) == 14779
    assert len({(r.instruction, r.input) for r in rows}) == 14824


def test_self_instruct_seeds() -> None:
    rows = list(read(real("self-instruct/seed_tasks.jsonl")))
    assert len(rows) == 175
    assert sum(r.kind == Kind.CLASSIFICATION for r in rows) == 26
    assert {r.license for r in rows} == {"Apache-2.0"}


def test_alpaca_libre_is_known_by_its_log_alone() -> None:
    reading = read(real("alpaca-libre/alpaca_libre_tasks_v1.jsonl"))
    rows = list(reading)
    assert (len(rows), reading.units, reading.used) == (2375, 2375, 2375)
    assert {r.license for r in rows} == {"MIT"}
    assert {r.generators for r in rows} == {("gpt-3.5-turbo",)}
    status = Counter(r.labels[0].value for r in rows)
    assert status["ok"] == 1202
    assert status["too similar"] == 848
    assert rows[0].score("similarity") == Score("similarity", 0.909)


def test_really_malformed_lines_are_counted() -> None:
    path = real("alpaca-libre/alpaca_libre_tasks_v2.jsonl")
    rows = list(read(path, license="MIT", on_bad_row="reject"))
    bad = [r for r in rows if isinstance(r, BadRow)]
    assert len(rows) == 2294
    assert len(bad) == 14
    with pytest.raises(InputError, match=rf"line {bad[0].line}: "):
        list(read(path, license="MIT"))


def test_chinese_json_array() -> None:
    rows = list(read(real("oasst1-zh/oaast_sft_zh.json"), license="Apache-2.0"))
    assert len(rows) == 689
    assert sum(r.language == "zh" for r in rows) > 600


def test_language_of_rows_that_name_none(tmp_path: Path) -> None:
    texts = {
        "Write a poem.": "en",
        "写一首诗。": "zh",
        "یک شعر بنویس و گپ بزن": "fa",
        "اكتب قصيدة": "ar",
        "Напиши стих": "ru",
        "詩を書いてください": "ja",
        "123": "und",
    }
    lines = [orjson.dumps({"instruction": t, "output": "x"}) + b"\n" for t in texts]
    path = write(tmp_path / "a.jsonl", *lines)
    assert [r.language for r in read(path, license="MIT")] == list(texts.values())
    assert {r.language for r in read(path, license="MIT", language="eo")} == {"eo"}


def test_unknown_format_names_the_known_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"question": "x", "answer": "y"}\n')
    with pytest.raises(InputError, match=r"answer, question.*dolly: context"):
        list(read(path))


# -- damage: a table ------------------------------------------------------------------

BAD_LINES = {
    "cut": (b'{"instruction": "a", "con\n', "no valid JSON"),
    "no object": (b"[1, 2]\n", "no JSON object"),
    "number": (b"7\n", "no JSON object"),
    "invalid UTF-8": (
        b'{"instruction": "\xff", "context": "", "response": "x"}\n',
        "no valid JSON",
    ),
    "lone surrogate": (b'{"instruction": "\\ud800", "context": "", "response": "x"}\n', "JSON"),
    "NaN": (b'{"instruction": NaN, "context": "", "response": "x"}\n', "no valid JSON"),
    "depth": (b'{"instruction": ' + b"[" * 100_000 + b"\n", "no valid JSON"),
    "missing": (b'{"instruction": "a", "context": ""}\n', '"response" is missing'),
    "null": (
        b'{"instruction": null, "context": "", "response": "x"}\n',
        '"instruction" is missing',
    ),
    "empty": (b'{"instruction": "  ", "context": "", "response": "x"}\n', '"instruction" is empty'),
    "not text": (
        b'{"instruction": ["a"], "context": "", "response": "x"}\n',
        "is a list, not text",
    ),
    "NUL": (b'{"instruction": "a\\u0000b", "context": "", "response": "x"}\n', "NUL"),
    "10 MB": (b'{"instruction": "' + b"a" * 10_000_000 + b'"}\n', "longer than 8 MiB"),
}


@pytest.mark.parametrize("name", BAD_LINES)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_bad_line_costs_only_itself(tmp_path: Path, name: str, at: int) -> None:
    bad, reason = BAD_LINES[name]
    lines = [good(0), good(1)]
    lines.insert(at, bad)
    path = write(tmp_path / "a.jsonl", *lines)
    rows = list(read(path, on_bad_row="reject"))
    assert [r.output for r in rows if isinstance(r, Sample)] == ["Good day 0.", "Good day 1."]
    (rejected,) = [r for r in rows if isinstance(r, BadRow)]
    assert rejected.line == at + 1
    assert reason in rejected.reason
    with pytest.raises(InputError, match=rf"a\.jsonl line {at + 1}: ") as caught:
        list(read(path))
    assert "--on-bad-row reject" in caught.value.hint or "no known format" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "count"),
    [
        (b"\xef\xbb\xbf" + good(), 1),
        (good().replace(b"\n", b"\r\n") * 2, 2),
        (b"\n\n" + good() + b"\n" + good(), 2),
        (good() + good().rstrip(b"\n"), 2),
        ('{"instruction": "a\u2028b", "context": "", "response": "c\u0085d"}\n'.encode(), 1),
        (b'{"instruction": "first", "instruction": "last", "context": "", "response": "x"}\n', 1),
    ],
)
def test_oddities_that_are_read(tmp_path: Path, content: bytes, count: int) -> None:
    path = write(tmp_path / "a.jsonl", content)
    assert len(list(read(path))) == count


def test_line_numbers_count_empty_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b"\n", good(), b"\n", b"{\n")
    with pytest.raises(InputError, match="line 4"):
        list(read(path))


def test_of_a_doubled_key_the_last_counts(tmp_path: Path) -> None:
    text = b'{"instruction": "first", "instruction": "last", "context": "", "response": "x"}\n'
    (row,) = read(write(tmp_path / "a.jsonl", text))
    assert isinstance(row, Sample)
    assert row.instruction == "last"


FILES = {
    "no such file": ("none.jsonl", None, "no such file"),
    "empty": ("a.jsonl", b"", "the file is empty"),
    "only blank": ("a.jsonl", b"\n \n", "no row"),
    "extension": ("a.txt", b"x", "kind of file is not read.*jsonl"),
    "no extension": ("a", b"x", "kind of file is not read"),
    "bad gzip": ("a.jsonl.gz", b"not gzip", "gz data is damaged"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(good() * 1000)[:-20], "gz data is damaged"),
    "cut array": ("a.json", b"[" + good()[:-1] + b",", "no valid JSON array"),
    "nothing usable": ("a.jsonl", b"{\n{\n", "no row"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    file, content, message = FILES[name]
    path = tmp_path / file
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        list(read(path, on_bad_row="reject"))
    assert str(path) in str(caught.value)
    assert caught.value.hint


def test_a_row_with_an_unknown_licence_costs_only_itself(tmp_path: Path) -> None:
    row = {"instruction": "Say it", "output": "x", "license": "Foo-9"}
    lines = [
        orjson.dumps({**row, "license": name}) + b"\n" for name in ("MIT", "Foo-9", "CC-BY-NC-4.0")
    ]
    path = write(tmp_path / "a.jsonl", *lines)
    first, bad, last = read(path, license="CC0-1.0", on_bad_row="reject")
    assert isinstance(bad, BadRow)
    assert (bad.line, "Foo-9" in bad.reason) == (2, True)
    # What a row says of itself goes before what the user says of the rest.
    assert [first.license, last.license] == ["MIT", "CC-BY-NC-4.0"]
    with pytest.raises(InputError, match="line 2"):
        list(read(path))


@pytest.mark.parametrize("language", ["../../filters/default", "x" * 300, "english", "EN"])
def test_a_language_is_a_code(tmp_path: Path, language: str) -> None:
    row = {"instruction": "a", "output": "b", "license": "MIT", "language": language}
    path = write(tmp_path / "a.jsonl", orjson.dumps(row))
    with pytest.raises(InputError, match="no language code"):
        list(read(path))


def test_rows_before_the_first_of_a_known_format(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"note": "exported"}\n', good())
    bad, row = read(path, on_bad_row="reject")
    assert isinstance(bad, BadRow)
    assert isinstance(row, Sample)
    with pytest.raises(InputError, match=r"line 1: the row has the fields note"):
        list(read(path))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(InputError, match="a folder"):
        list(read(tmp_path / "d.jsonl"))


def test_gzip_and_array(tmp_path: Path) -> None:
    zipped = write(tmp_path / "a.jsonl.gz", gzip.compress(good(1) + good(2)))
    array = write(tmp_path / "b.json", b"\n[" + good(1) + b"," + good(2) + b"]")
    lines = write(tmp_path / "c.json", good(1) + good(2))
    assert list(read(zipped)) == list(read(array)) == list(read(lines))


ROW = st.one_of(
    st.just(good().rstrip(b"\n")),
    st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")),
    st.dictionaries(
        st.sampled_from(["instruction", "context", "response", "category"]),
        st.one_of(st.none(), st.text(max_size=5), st.integers(0, 9)),
    ).map(orjson.dumps),
)


@given(st.lists(ROW, max_size=12))
def test_every_row_is_kept_or_rejected(tmp_path: Path, rows: list[bytes]) -> None:
    first = good().rstrip(b"\n")
    path = write(tmp_path / "h.jsonl", b"\n".join([first, *rows]))
    expected = 1 + sum(bool(r.strip()) for r in rows)
    got = list(read(path, on_bad_row="reject"))
    assert len(got) == expected
    assert all(isinstance(r, Sample | BadRow) for r in got)


def test_text_is_data_not_template(tmp_path: Path) -> None:
    hostile = "{{7*7}} ${HOME} {0.__class__} {count} %s"
    path = write(
        tmp_path / "a.jsonl",
        orjson.dumps({"instruction": hostile, "context": hostile, "response": hostile}),
    )
    (row,) = read(path)
    assert isinstance(row, Sample)
    assert row.instruction == row.input == row.output == hostile
