"""Tests of reading dataset files: every row is kept or rejected, and damage raises InputError."""

from __future__ import annotations

import gzip
import re
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


def test_dolly_is_read_completely() -> None:
    rows = list(read(real("dolly/databricks-dolly-15k.rejoined.jsonl")))
    assert len(rows) == 15011
    assert all(isinstance(r, Sample) for r in rows)
    assert {r.license for r in rows} == {"CC-BY-SA-3.0"}
    assert {r.language for r in rows} == {"en"}
    assert sum(r.input == "" for r in rows) == 10544
    assert len({r.category for r in rows}) == 8
    assert len({r.instruction for r in rows}) == 14779
    assert len({(r.instruction, r.input) for r in rows}) == 14824


def test_self_instruct_seed_tasks_have_kind_and_license() -> None:
    rows = list(read(real("self-instruct/seed_tasks.jsonl")))
    assert len(rows) == 175
    assert sum(r.kind == Kind.CLASSIFICATION for r in rows) == 26
    assert {r.license for r in rows} == {"Apache-2.0"}


def test_alpaca_libre_log_is_detected_by_its_fields() -> None:
    reading = read(real("alpaca-libre/alpaca_libre_tasks_v1.jsonl"))
    rows = list(reading)
    assert (len(rows), reading.units, reading.used) == (2375, 2375, 2375)
    assert {r.license for r in rows} == {"MIT"}
    assert {r.generators for r in rows} == {("gpt-3.5-turbo",)}
    status = Counter(r.labels[0].value for r in rows)
    assert status["ok"] == 1202
    assert status["too similar"] == 848
    assert rows[0].score("similarity") == Score("similarity", 0.909)


def test_malformed_lines_in_a_published_file_are_counted() -> None:
    path = real("alpaca-libre/alpaca_libre_tasks_v2.jsonl")
    rows = list(read(path, license="MIT", on_bad_row="reject"))
    bad = [r for r in rows if isinstance(r, BadRow)]
    assert len(rows) == 2294
    assert len(bad) == 14
    with pytest.raises(InputError) as caught:
        list(read(path, license="MIT"))
    assert (caught.value.path, caught.value.line) == (path, bad[0].line)


def test_chinese_json_array_is_read_with_its_language() -> None:
    rows = list(read(real("oasst1-zh/oaast_sft_zh.json"), license="Apache-2.0"))
    assert len(rows) == 689
    assert sum(r.language == "zh" for r in rows) > 600


def test_language_is_detected_for_rows_that_do_not_specify_one(tmp_path: Path) -> None:
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


def test_unknown_format_error_lists_the_fields_and_the_known_formats(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"question": "x", "answer": "y"}\n')
    with pytest.raises(InputError, match=r"answer, question.*dolly: context") as caught:
        list(read(path))
    assert (caught.value.path, caught.value.line) == (path, 1)


# -- damaged lines --------------------------------------------------------------------

# The position that orjson reports is present only if the line cannot be parsed.
POSITION = r"JSON .*\bchar \d+"
# By name: a line, and a pattern of the facts in its reason.
BAD_LINES = {
    "truncated": (b'{"instruction": "a", "con\n', POSITION),
    "array": (b"[1, 2]\n", "JSON object"),
    "number": (b"7\n", "JSON object"),
    "invalid UTF-8": (
        b'{"instruction": "\xff", "context": "", "response": "x"}\n',
        POSITION,
    ),
    "lone surrogate": (b'{"instruction": "\\ud800", "context": "", "response": "x"}\n', POSITION),
    "NaN": (b'{"instruction": NaN, "context": "", "response": "x"}\n', POSITION),
    "deeply nested": (b'{"instruction": ' + b"[" * 100_000 + b"\n", POSITION),
    "missing": (b'{"instruction": "a", "context": ""}\n', '"response".* missing'),
    "null": (
        b'{"instruction": null, "context": "", "response": "x"}\n',
        '"instruction".* missing',
    ),
    "empty": (b'{"instruction": "  ", "context": "", "response": "x"}\n', '"instruction".* empty'),
    "not text": (
        b'{"instruction": ["a"], "context": "", "response": "x"}\n',
        '"instruction".* list',
    ),
    "NUL": (
        b'{"instruction": "a\\u0000b", "context": "", "response": "x"}\n',
        '"instruction".* NUL',
    ),
    "10 MB": (b'{"instruction": "' + b"a" * 10_000_000 + b'"}\n', "8 MiB"),
}


@pytest.mark.parametrize("name", BAD_LINES)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_bad_line_is_rejected_and_the_others_are_kept(tmp_path: Path, name: str, at: int) -> None:
    bad, facts = BAD_LINES[name]
    lines = [good(0), good(1)]
    lines.insert(at, bad)
    path = write(tmp_path / "a.jsonl", *lines)
    rows = list(read(path, on_bad_row="reject"))
    assert [r.output for r in rows if isinstance(r, Sample)] == ["Good day 0.", "Good day 1."]
    (rejected,) = [r for r in rows if isinstance(r, BadRow)]
    assert rejected.line == at + 1
    assert re.search(facts, rejected.reason)
    with pytest.raises(InputError) as caught:
        list(read(path))
    assert (caught.value.path, caught.value.line) == (path, at + 1)
    # The hint of the unknown format, if the bad line is the first, names --map instead.
    assert "--on-bad-row" in caught.value.hint or "--map" in caught.value.hint


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
def test_unusual_but_valid_files_are_read(tmp_path: Path, content: bytes, count: int) -> None:
    path = write(tmp_path / "a.jsonl", content)
    assert len(list(read(path))) == count


def test_line_numbers_count_empty_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b"\n", good(), b"\n", b"{\n")
    with pytest.raises(InputError) as caught:
        list(read(path))
    assert caught.value.line == 4


def test_the_last_value_of_a_repeated_key_is_used(tmp_path: Path) -> None:
    text = b'{"instruction": "first", "instruction": "last", "context": "", "response": "x"}\n'
    (row,) = read(write(tmp_path / "a.jsonl", text))
    assert isinstance(row, Sample)
    assert row.instruction == "last"


# By name: a file, its content, and a pattern of the facts in the error.
FILES = {
    "missing": ("none.jsonl", None, "exist"),
    "empty": ("a.jsonl", b"", "empty"),
    "only blank lines": ("a.jsonl", b"\n \n", r"no .*row"),
    "wrong extension": ("a.txt", b"x", r"\.jsonl.*\.parquet"),
    "no extension": ("a", b"x", r"\.jsonl.*\.parquet"),
    "bad gzip": ("a.jsonl.gz", b"not gzip", r"gz data"),
    "truncated gzip": ("a.jsonl.gz", gzip.compress(good() * 1000)[:-20], r"gz data"),
    "truncated array": ("a.json", b"[" + good()[:-1] + b",", "JSON array.*row 2"),
    "no valid row": ("a.jsonl", b"{\n{\n", r"no .*row"),
}


@pytest.mark.parametrize("name", FILES)
def test_unreadable_files_raise_an_error_with_path_and_hint(tmp_path: Path, name: str) -> None:
    file, content, facts = FILES[name]
    path = tmp_path / file
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=facts) as caught:
        list(read(path, on_bad_row="reject"))
    assert caught.value.path == path
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_row_with_an_unknown_license_is_rejected_and_the_others_are_kept(tmp_path: Path) -> None:
    row = {"instruction": "Say it", "output": "x", "license": "Foo-9"}
    lines = [
        orjson.dumps({**row, "license": name}) + b"\n" for name in ("MIT", "Foo-9", "CC-BY-NC-4.0")
    ]
    path = write(tmp_path / "a.jsonl", *lines)
    first, bad, last = read(path, license="CC0-1.0", on_bad_row="reject")
    assert isinstance(bad, BadRow)
    assert (bad.line, "Foo-9" in bad.reason) == (2, True)
    # The license of a row has priority over the license option.
    assert [first.license, last.license] == ["MIT", "CC-BY-NC-4.0"]
    with pytest.raises(InputError) as caught:
        list(read(path))
    assert caught.value.line == 2


@pytest.mark.parametrize("language", ["../../filters/default", "x" * 300, "english", "EN"])
def test_a_language_that_is_not_a_code_raises_an_error(tmp_path: Path, language: str) -> None:
    row = {"instruction": "a", "output": "b", "license": "MIT", "language": "en"}
    path = write(
        tmp_path / "a.jsonl",
        orjson.dumps(row) + b"\n",
        orjson.dumps({**row, "language": language}),
    )
    with pytest.raises(InputError, match=re.escape(language[:40])) as caught:
        list(read(path))
    assert caught.value.line == 2


def test_a_row_of_an_unknown_format_before_the_first_known_one_is_rejected(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"note": "exported"}\n', good())
    bad, row = read(path, on_bad_row="reject")
    assert isinstance(bad, BadRow)
    assert isinstance(row, Sample)
    with pytest.raises(InputError, match=r"\bnote\b") as caught:
        list(read(path))
    assert caught.value.line == 1


def test_a_folder_instead_of_a_file_raises_an_error(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(InputError, match="folder") as caught:
        list(read(tmp_path / "d.jsonl"))
    assert caught.value.path == tmp_path / "d.jsonl"


def test_gzip_array_and_lines_give_the_same_rows(tmp_path: Path) -> None:
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
    results = list(read(path, on_bad_row="reject"))
    assert len(results) == expected
    assert all(isinstance(r, Sample | BadRow) for r in results)


def test_template_syntax_in_text_is_kept_unchanged(tmp_path: Path) -> None:
    hostile = "{{7*7}} ${HOME} {0.__class__} {count} %s"
    path = write(
        tmp_path / "a.jsonl",
        orjson.dumps({"instruction": hostile, "context": hostile, "response": hostile}),
    )
    (row,) = read(path)
    assert isinstance(row, Sample)
    assert row.instruction == row.input == row.output == hostile
