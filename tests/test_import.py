"""Tests of the import of other projects' datasets: row counts, formats, and rejected rows."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgen import import_data
from instructgen.errors import ConfigError, InputError, RunError
from instructgen.formats import BadRow, UnusedRow, read
from instructgen.formats.hh_rlhf import HHRLHF
from instructgen.formats.oasst import OASST
from instructgen.schema.messages import Message
from instructgen.schema.sample import Label, Sample, Score
from instructgen.store import read_samples
from tests.conftest import real

MESSAGES = "oasst1/oasst1-en-validation.messages.jsonl"
TREES = "oasst1/oasst1-en-validation.trees.derived.jsonl"


def lines(path: Path, *rows: object) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def one(path: Path, source: object = None, **options: str) -> Sample:
    (row,) = read(path, source, **{"license": "MIT", **options})  # type: ignore[arg-type]
    assert isinstance(row, Sample)
    return row


# -- real data ------------------------------------------------------------------------


def test_dolly_imports_every_row(tmp_path: Path) -> None:
    result = import_data(real("dolly/databricks-dolly-15k.rejoined.jsonl"), tmp_path / "d")
    assert (result.rows, result.rejected) == (15011, 0)
    assert (result.facts.read, result.facts.used) == (15011, 15011)
    rows = list(read_samples(tmp_path / "d"))
    assert {r.license for r in rows} == {"CC-BY-SA-3.0"}
    assert all("Databricks" in r.attribution[0] for r in rows)
    assert len({r.category for r in rows}) == 8
    assert [r.origin.record for r in rows[:2]] == ["1", "2"]
    # The card states the share-alike license and the attribution.
    card = Path(result.card).read_text()
    assert "CC-BY-SA-3.0" in card
    assert rows[0].attribution[0] in card


@pytest.mark.parametrize(
    ("take", "rows", "used", "others"),
    [
        ("best", 188, 554, {"not_best_path": 1105, "unanswered": 277}),
        ("all", 901, 1659, {"unanswered": 277}),
        ("first", 188, 376, {"not_first_turn": 1283, "unanswered": 277}),
    ],
)
def test_oasst_selections_account_for_every_message(
    take: str, rows: int, used: int, others: dict[str, int]
) -> None:
    reading = read(real(MESSAGES), OASST(take=take))
    results = list(reading)
    samples = [r for r in results if isinstance(r, Sample)]
    codes = Counter(r.code for r in results if isinstance(r, UnusedRow))
    assert (reading.units, reading.used, len(samples)) == (2022, used, rows)
    assert codes == {**others, "deleted": 40, "failed_review": 43, "orphan": 3}
    assert len({s.origin.group for s in samples}) == 188
    assert len({s.id for s in samples}) == len(samples)
    assert all(m.role in ("user", "assistant") for s in samples for m in s.messages)
    assert {s.language for s in samples} == {"en"}


def test_oasst_trees_and_messages_give_the_same_samples() -> None:
    for options in ({}, {"take": "all"}, {"shape": "preferences"}):
        flat = [r for r in read(real(MESSAGES), OASST(**options)) if isinstance(r, Sample)]
        nested = read(real(TREES), OASST(**options))
        rows = [r for r in nested if isinstance(r, Sample)]
        assert nested.units == 2019
        assert {r.id for r in rows} == {r.id for r in flat}


def test_oasst_ranked_answers_become_preferences() -> None:
    rows = [r for r in read(real(MESSAGES), OASST("preferences")) if isinstance(r, Sample)]
    # 1,026 ranked pairs, minus those with a deleted answer.
    assert len(rows) == 1021
    assert all(r.rejected_output and r.rejected_output != r.output for r in rows)
    assert all(r.shape == "preferences" for r in rows)


def test_oasst_first_selects_the_best_ranked_answer() -> None:
    by_id = {}
    children: dict[str, list[dict]] = {}
    for line in real(MESSAGES).open("rb"):
        message = orjson.loads(line)
        by_id[message["message_id"]] = message
        children.setdefault(message["parent_id"], []).append(message)
    for row in read(real(MESSAGES), OASST(take="first")):
        if isinstance(row, Sample):
            siblings = children[by_id[row.origin.record]["parent_id"]]
            usable = [m for m in siblings if m["review_result"] is not False and not m["deleted"]]
            ranks = [m["rank"] for m in usable if m["rank"] is not None]
            assert by_id[row.origin.record]["rank"] == (min(ranks) if ranks else None)


def test_alpaca_libre_keeps_status_and_similarity(tmp_path: Path) -> None:
    result = import_data(
        real("alpaca-libre/alpaca_libre_tasks_v2.jsonl"), tmp_path / "d", on_bad_row="reject"
    )
    assert (result.rows, result.rejected, result.facts.read) == (2280, 14, 2294)
    rejected = pq.read_table(tmp_path / "d" / "rejected").to_pylist()
    numbers = [int(row["origin"]["record"]) for row in rejected]
    assert all(f"line {row['origin']['record']}: " in row["detail"] for row in rejected)
    broken = []
    for number, line in enumerate(
        real("alpaca-libre/alpaca_libre_tasks_v2.jsonl").read_bytes().split(b"\n"), start=1
    ):
        try:
            orjson.loads(line or b"{}")
        except orjson.JSONDecodeError:
            broken.append(number)
    assert numbers == broken
    row = next(iter(read_samples(tmp_path / "d")))
    assert row.labels[0].name == "status"
    assert row.score("similarity") is not None
    assert row.generators == ("gpt-3.5-turbo",)


def test_chinese_conversations_keep_their_history() -> None:
    rows = list(read(real("oasst1-zh/oaast_sft_zh.json"), license="Apache-2.0"))
    assert len(rows) == 689
    assert Counter(len(r.history) // 2 for r in rows) == {0: 299, 1: 331, 2: 59}


# -- formats -----------------------------------------------------------------------------


def test_hh_rlhf_dialogues_and_first_exchanges(tmp_path: Path) -> None:
    start = "\n\nHuman: Hi, my name: Ada\n\nAssistant: Hello Ada\n\nHuman: Why?\n\nAssistant:"
    path = lines(tmp_path / "a.jsonl", {"chosen": f"{start} Because.", "rejected": f"{start} No."})
    row = one(path)
    assert (row.instruction, row.output, row.rejected_output) == ("Why?", "Because.", "No.")
    assert row.history == (Message("user", "Hi, my name: Ada"), Message("assistant", "Hello Ada"))
    assert (row.source, row.license, row.origin.method) == ("hh-rlhf", "MIT", "model")
    whole = one(path, HHRLHF("instructions"))
    assert whole.rejected_output is None
    first = one(path, HHRLHF("instructions", "first"))
    assert (first.instruction, first.output, first.history) == ("Hi, my name: Ada", "Hello Ada", ())


VALID_PAIR = {
    "chosen": "\n\nHuman: a\n\nAssistant: b",
    "rejected": "\n\nHuman: a\n\nAssistant: c",
}


@pytest.mark.parametrize(
    ("changes", "named_fields"),
    [
        # The prompts differ.
        ({"rejected": "\n\nHuman: x\n\nAssistant: c"}, ["chosen", "rejected"]),
        # The answers are identical.
        ({"rejected": VALID_PAIR["chosen"]}, ["chosen", "rejected"]),
        # A text without turns.
        ({"chosen": "plain text"}, ["chosen"]),
        # Questions without an answer.
        ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a"}, []),
    ],
)
def test_hh_rlhf_rejects_invalid_pairs(
    tmp_path: Path, changes: dict[str, str], named_fields: list[str]
) -> None:
    """Each case differs from a valid pair only in the changed fields."""
    path = lines(tmp_path / "a.jsonl", VALID_PAIR, VALID_PAIR | changes)
    valid, bad = read(path, on_bad_row="reject")
    assert isinstance(valid, Sample)
    assert isinstance(bad, BadRow)
    assert bad.line == 2
    assert [name for name in VALID_PAIR if f'"{name}"' in bad.reason] == named_fields


def test_sharegpt_accepts_common_role_names(tmp_path: Path) -> None:
    for human, gpt in (("human", "gpt"), ("user", "assistant"), ("Human", "ChatGPT")):
        turns = [
            {"from": gpt, "value": "Welcome."},
            {"from": human, "value": "First"},
            {"from": human, "value": "question"},
            {"from": gpt, "value": "Answer"},
            {"from": human, "value": "Bye"},
        ]
        row = one(lines(tmp_path / "a.jsonl", {"conversations": turns, "system": "Be kind."}))
        assert (row.instruction, row.output) == ("First\n\nquestion", "Answer")
        assert row.history == (Message("system", "Be kind."),)
        assert len(row.edits) == 3


def test_openai_chat_accepts_only_text_parts(tmp_path: Path) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Name a tree."}]},
        {"role": "assistant", "content": "Oak."},
    ]
    row = one(lines(tmp_path / "a.jsonl", {"messages": messages}))
    assert [m.role for m in row.messages] == ["system", "user", "assistant"]
    # The same messages with an image instead of the text.
    image = {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}
    path = lines(tmp_path / "b.jsonl", {"messages": [messages[0], image, messages[2]]})
    (bad,) = read(path, on_bad_row="reject")
    assert isinstance(bad, BadRow)
    assert bad.line == 1


def test_preferences_are_read_in_three_layouts(tmp_path: Path) -> None:
    user, good, bad = (
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "good"},
        {"role": "assistant", "content": "bad"},
    )
    layouts = [
        {"prompt": "Q", "chosen": "good", "rejected": "bad"},
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
        {"prompt": "Q", "chosen": [user, good], "rejected": [user, bad], "score_chosen": 8.0},
    ]
    rows = [one(lines(tmp_path / "a.jsonl", layout)) for layout in layouts]
    assert {(r.instruction, r.output, r.rejected_output) for r in rows} == {("Q", "good", "bad")}
    assert rows[2].score("score_chosen") == Score("score_chosen", 8.0)


def test_ultrafeedback_records_the_models_of_both_answers(tmp_path: Path) -> None:
    completions = [
        {"model": "gpt-4", "response": "A", "overall_score": 8.5},
        {"model": "falcon-40b", "response": "B", "overall_score": 2.0},
        {"model": "bard", "response": "C", "overall_score": 10},
    ]
    row = one(lines(tmp_path / "a.jsonl", {"instruction": "Q", "completions": completions}))
    assert (row.output, row.rejected_output) == ("A", "B")
    assert row.generators == ("falcon-40b", "gpt-4")


def test_longform_category_is_source_and_subset(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "a.jsonl",
        {"input": "Explain tides.", "output": "The moon", "source": "C4", "subset": "train"},
    )
    row = one(path)
    assert (row.instruction, row.output, row.category) == ("Explain tides.", "The moon", "C4/train")


def test_alpaca_needs_a_license_unless_the_format_is_named(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.json", [{"instruction": "a", "input": "", "output": "b"}])
    with pytest.raises(InputError, match="--license"):
        list(read(path))
    (named,) = read(path, "alpaca")
    assert isinstance(named, Sample)
    assert (named.license, named.generators) == ("CC-BY-NC-4.0", ("text-davinci-003",))
    (libre,) = read(path, "alpaca-libre")
    assert isinstance(libre, Sample)
    assert (libre.license, libre.generators) == ("MIT", ("gpt-3.5-turbo",))
    human = one(path)
    assert (human.license, human.generators, human.origin.method) == ("MIT", (), "human")
    generated = one(path, model="claude-3-opus")
    assert (generated.generators, generated.origin.model) == (("claude-3-opus",), "claude-3-opus")


def test_mapped_table_accepts_the_matching_shape(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"q": "Name a fruit.", "a": "Apple."})
    names = {"instruction": "q", "output": "a"}
    result = import_data(file, tmp_path / "d", mapping=names, shape="instructions", license="MIT")
    assert result.rows == 1


def test_mapped_table_reads_nested_fields_and_labels(tmp_path: Path) -> None:
    row = {"q": {"text": "Why?"}, "a": "So.", "spdx": "mit", "who": "Ada", "rate": 3, "why": "x"}
    names = {
        "instruction": "q.text",
        "output": "a",
        "license": "spdx",
        "attribution": "who",
        "score": "rate",
        "label.rationale": "why",
    }
    result = import_data(lines(tmp_path / "a.jsonl", row), tmp_path / "d", mapping=names)
    (sample,) = read_samples(result.out)
    assert (sample.instruction, sample.license, sample.attribution) == ("Why?", "MIT", ("Ada",))
    assert sample.score("score") == Score("score", 3.0)
    assert sample.labels == (Label("rationale", "x"),)
    for bad in ({"output": "a"}, {**names, "nope": "a"}, {**names, "label.": "a"}):
        with pytest.raises(ConfigError, match="map"):
            import_data(tmp_path / "a.jsonl", tmp_path / "e", mapping=bad)


def test_all_file_types_give_the_same_rows(tmp_path: Path) -> None:
    import gzip

    import zstandard

    rows = [{"instruction": f"Do\n{i}", "input": "", "output": 'x, "y"'} for i in range(600)]
    table = pa.Table.from_pylist(rows)
    pa.csv.write_csv(table, tmp_path / "a.csv")
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    plain = lines(tmp_path / "a.jsonl", *rows).read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(plain))
    (tmp_path / "a.json").write_bytes(orjson.dumps(rows, option=orjson.OPT_INDENT_2))
    ids_by_file = {
        p.name: [s.id for s in read(p, license="MIT") if isinstance(s, Sample)]
        for p in tmp_path.iterdir()
    }
    assert len(ids_by_file) == 6
    assert {tuple(ids) for ids in ids_by_file.values()} == {tuple(ids_by_file["a.jsonl"])}
    assert len(ids_by_file["a.csv"]) == 600


@given(st.lists(st.dictionaries(st.sampled_from(["instruction", "input", "output"]), st.text())))
def test_json_array_gives_the_same_rows_as_orjson(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]
) -> None:
    from instructgen.formats.records import Record, read_records

    path = tmp_path_factory.mktemp("a") / "a.json"
    path.write_bytes(orjson.dumps(rows))
    if not rows:
        with pytest.raises(InputError, match="empty") as caught:
            list(read_records(path))
        assert caught.value.path == path
        return
    assert list(read_records(path)) == [Record(i, row) for i, row in enumerate(rows, start=1)]


# A CSV file that is cut between two fields has only a short row. Therefore only a cut that leaves
# a quote open is tested.
CUTS = [*((k, c) for k in ("json", "jsonl.zst", "parquet") for c in (1, 20, 200)), ("csv", 1)]


@pytest.mark.parametrize(("kind", "cut"), CUTS)
def test_a_truncated_file_raises_an_error(tmp_path: Path, kind: str, cut: int) -> None:
    import zstandard

    rows = [{"instruction": f"Do {i}", "input": "", "output": 'x "y"'} for i in range(500)]
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "csv":
        pa.csv.write_csv(pa.Table.from_pylist(rows), path)
        path.write_bytes(path.read_bytes()[:-1])
    else:
        data = orjson.dumps(rows)
        if kind == "jsonl.zst":
            data = zstandard.compress(b"\n".join(orjson.dumps(r) for r in rows))
        path.write_bytes(data)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(InputError) as caught:
        list(read(path, license="MIT", on_bad_row="reject"))
    assert caught.value.path == path


def test_csv_rejects_only_rows_with_bad_bytes_or_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"instruction,output\na,b\n\xff,c\nd\ne,f\n")
    rows = list(read(path, license="MIT", on_bad_row="reject"))
    encoding, columns = [r for r in rows if isinstance(r, BadRow)]
    assert (encoding.line, "UTF-8" in encoding.reason) == (3, True)
    # The reason gives the number of columns and the expected number.
    assert (columns.line, re.findall(r"\d+", columns.reason)) == (4, ["1", "2"])
    assert sum(isinstance(r, Sample) for r in rows) == 2


# -- invalid trees ------------------------------------------------------------------------


def message(name: str, parent: str | None, role: str = "assistant", **more: object) -> dict:
    return {
        "message_id": name,
        "parent_id": parent,
        "text": f"text {name}",
        "role": role,
        "message_tree_id": "t",
        "tree_state": "ready_for_export",
        **more,
    }


def codes(path: Path) -> Counter[str]:
    reading = read(path, license="MIT", on_bad_row="reject")
    results = list(reading)
    assert reading.units == len(path.read_bytes().splitlines())
    return Counter(
        r.code if isinstance(r, UnusedRow) else "bad" if isinstance(r, BadRow) else "row"
        for r in results
    )


def test_invalid_trees_are_rejected_with_a_code(tmp_path: Path) -> None:
    good = [message("a", None, "prompter"), message("b", "a")]
    path = tmp_path / "a.jsonl"
    assert codes(lines(path, *good)) == {"row": 1}
    assert codes(lines(path, *good, message("c", "x"))) == {"row": 1, "orphan": 1}
    assert codes(lines(path, *good, message("b", "a"))) == {"row": 1, "duplicate_id": 1}
    assert codes(lines(path, *good, message("c", "b"))) == {"row": 1, "wrong_role": 1}
    assert codes(lines(path, *good, message("r", None, "prompter"))) == {"row": 1, "wrong_tree": 1}
    loop = [message("x", "y", "prompter"), message("y", "x")]
    assert codes(lines(path, *good, *loop)) == {"row": 1, "parent_rejected": 2}
    deleted = [message("c", "b", "prompter", deleted=True), message("d", "c")]
    assert codes(lines(path, *good, *deleted)) == {"row": 1, "deleted": 1, "parent_rejected": 1}
    halted = [
        message(*m, tree_state="halted_by_moderator") for m in (("a", None, "prompter"), ("b", "a"))
    ]
    assert codes(lines(path, *halted)) == {"tree_not_ready": 2}
    other = {**message("o", None, "prompter"), "message_tree_id": "u"}
    assert codes(lines(path, *good, other, message("c", "b", "prompter"))) == {
        "row": 1,
        "unanswered": 1,
        "bad": 1,
    }
    assert codes(lines(path, *good, message("c", "b", "robot"), message("d", 7))) == {
        "row": 1,
        "bad": 2,
    }


def test_a_tree_with_too_many_messages_is_rejected(tmp_path: Path) -> None:
    roles = ("prompter", "assistant")
    chain = [message(f"m{i}", f"m{i - 1}" if i else None, roles[i % 2]) for i in range(1_001)]
    assert codes(lines(tmp_path / "a.jsonl", *chain)) == {"bad": 1_001}
    assert codes(lines(tmp_path / "a.jsonl", *chain[:1_000])) == {"row": 1}


# -- the command ------------------------------------------------------------------------


def test_repeating_an_import_does_not_rewrite_it(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"instruction": "a", "output": "b"})
    first = import_data(path, tmp_path / "d", license="MIT")
    modified_ns = Path(first.parts[0]).stat().st_mtime_ns
    again = import_data(path, tmp_path / "d", license="MIT")
    assert (again.unchanged, first.unchanged) == (True, False)
    assert replace(again, unchanged=False) == first
    assert Path(first.parts[0]).stat().st_mtime_ns == modified_ns
    with pytest.raises(RunError, match=r"options\.license"):
        import_data(path, tmp_path / "d", license="CC-BY-4.0")
    with pytest.raises(ConfigError, match=r"dolly.*preferences"):
        import_data(path, tmp_path / "e", "dolly", shape="preferences")
    with pytest.raises(ConfigError, match=r"oasst.*worst"):
        import_data(path, tmp_path / "e", "oasst", take="worst")


def test_hub_datasets_are_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub is replaced by a function that records its arguments and returns rows."""
    datasets = pytest.importorskip("datasets")
    calls = {}

    def load_dataset(name: str, **options: object) -> list[dict[str, str]]:
        calls[name] = options
        return [{"instruction": "a", "context": "", "response": "b", "category": "open_qa"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    result = import_data("databricks/databricks-dolly-15k", tmp_path / "d")
    assert result.rows == 1
    assert calls == {"databricks/databricks-dolly-15k": {"split": "train", "streaming": True}}
    monkeypatch.undo()
    # An error of the Hub client, and not of a local file, which would have a path.
    with pytest.raises(InputError, match="nobody/nothing") as caught:
        import_data("nobody/nothing", tmp_path / "e")
    assert caught.value.path is None
    assert caught.value.__cause__ is not None


def test_labels_are_stored_and_a_noinput_marker_is_read_as_empty(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "a.jsonl",
        {"instruction": "a", "input": "<noinput>", "output": "b", "status": "ok"},
    )
    result = import_data(path, tmp_path / "d")
    (row,) = read_samples(result.out)
    assert row.labels == (Label("status", "ok"),)
    assert row.input == ""
