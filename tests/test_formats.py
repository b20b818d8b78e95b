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
        "Write a long poem about the sea and the wind.": "en",
        "写一首关于大海和风的长诗，并解释每一行的意思。": "zh",
        "یک شعر بلند دربارهٔ دریا و باد بنویس و گپ بزن": "fa",
        "اكتب قصيدة طويلة عن البحر والريح في الصيف": "ar",
        "Напиши длинный стих о море и ветре для детей": "ru",
        "海と風についての長い詩を書いてください": "ja",
        "Nenne bitte drei große Flüsse in Europa.": "de",
        "Name it.": "und",
        "123": "und",
    }
    lines = [orjson.dumps({"instruction": t, "output": "x"}) + b"\n" for t in texts]
    path = write(tmp_path / "a.jsonl", *lines)
    rows = list(read(path, license="MIT"))
    assert [r.language for r in rows] == list(texts.values())
    assert all((r.language_confidence or 0) >= 0.8 for r in rows if r.language != "und")
    assert {r.language_confidence for r in rows if r.language == "und"} == {None}
    assert {r.language for r in read(path, license="MIT", language="eo")} == {"eo"}


def test_unknown_format_error_lists_the_fields_and_the_known_formats(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"question": "x", "answer": "y"}\n')
    with pytest.raises(InputError, match=r"'question' \(text\), 'answer' \(text\)") as caught:
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
    "lone surrogate": (
        b'{"instruction": "\\ud800", "context": "", "response": "x"}\n',
        '"instruction".* surrogate',
    ),
    "NaN": (
        b'{"instruction": NaN, "context": "", "response": "x"}\n',
        '"instruction".* missing',
    ),
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
    "wrong extension": ("a.doc", b"x", r"\.jsonl.*\.parquet"),
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


def test_a_license_that_spdx_does_not_define_is_kept_by_its_name(tmp_path: Path) -> None:
    row = {"instruction": "Say it", "output": "x"}
    names = ("MIT", "Foo-9", "odc-by", ["mit", "cc-by-4.0"], "gpl", None)
    lines = [orjson.dumps({**row, "license": name}) + b"\n" for name in names]
    rows = read(write(tmp_path / "a.jsonl", *lines), license="CC0-1.0")
    # The license of a row has priority over the license option.
    assert [row.license for row in rows] == [
        "MIT",
        "LicenseRef-Foo-9",
        "ODC-By-1.0",
        "CC-BY-4.0 AND MIT",
        "LicenseRef-gpl-unversioned",
        "CC0-1.0",
    ]


@pytest.mark.parametrize(
    ("value", "language"),
    [("../../filters/default", "und"), ("x" * 300, "und"), ("EN", "en"), ("pt_BR", "pt-BR")],
)
def test_a_language_that_is_not_a_code_does_not_cost_the_row(
    tmp_path: Path, value: str, language: str
) -> None:
    row = {"instruction": "a", "output": "b", "license": "MIT", "language": value}
    (sample,) = read(write(tmp_path / "a.jsonl", orjson.dumps(row)))
    assert sample.language == language
    assert [e.field for e in sample.edits] == (["language"] if language == "und" else [])


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
    # The byte 0x1A ends a text file in DOS.
    expected = 1 + sum(bool(r.strip(b" \t\r\n\v\f\x1a")) for r in rows)
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
