"""Datasets of other projects: counts that match the sources, every row accounted for."""

from __future__ import annotations

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
from instructgen.formats import BadRow, LeftOut, read
from instructgen.formats.hh_rlhf import HHRLHF
from instructgen.formats.oasst import OASST
from instructgen.schema.sample import Label, Message, Sample, Score
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


def test_dolly_comes_whole(tmp_path: Path) -> None:
    result = import_data(real("dolly/databricks-dolly-15k.rejoined.jsonl"), tmp_path / "d")
    assert (result.rows, result.rejected) == (15011, 0)
    assert (result.facts["read"], result.facts["used"]) == (15011, 15011)
    rows = list(read_samples(tmp_path / "d"))
    assert {r.license for r in rows} == {"CC-BY-SA-3.0"}
    assert all("Databricks" in r.attribution[0] for r in rows)
    assert len({r.category for r in rows}) == 8
    assert [r.origin.record for r in rows[:2]] == ["1", "2"]
    card = Path(result.card).read_text()
    assert "Share what you make of these rows under the same licence" in card


@pytest.mark.parametrize(
    ("take", "rows", "used", "others"),
    [
        ("best", 188, 554, {"not_best_path": 1105, "unanswered": 277}),
        ("all", 901, 1659, {"unanswered": 277}),
        ("first", 188, 376, {"not_first_turn": 1283, "unanswered": 277}),
    ],
)
def test_oasst_messages(take: str, rows: int, used: int, others: dict[str, int]) -> None:
    reading = read(real(MESSAGES), OASST(take=take))
    found = list(reading)
    samples = [r for r in found if isinstance(r, Sample)]
    codes = Counter(r.code for r in found if isinstance(r, LeftOut))
    assert (reading.units, reading.used, len(samples)) == (2022, used, rows)
    assert codes == {**others, "deleted": 40, "failed_review": 43, "orphan": 3}
    assert len({s.origin.group for s in samples}) == 188
    assert len({s.id for s in samples}) == len(samples)
    assert all(m.role in ("user", "assistant") for s in samples for m in s.messages)
    assert {s.language for s in samples} == {"en"}


def test_oasst_trees_give_what_messages_give() -> None:
    for options in ({}, {"take": "all"}, {"shape": "preferences"}):
        flat = [r for r in read(real(MESSAGES), OASST(**options)) if isinstance(r, Sample)]
        nested = read(real(TREES), OASST(**options))
        rows = [r for r in nested if isinstance(r, Sample)]
        assert nested.units == 2019
        assert {r.id for r in rows} == {r.id for r in flat}


def test_oasst_ranks_become_preferences() -> None:
    rows = [r for r in read(real(MESSAGES), OASST("preferences")) if isinstance(r, Sample)]
    # 1,026 ranked pairs less those with a deleted answer.
    assert len(rows) == 1021
    assert all(r.rejected_output and r.rejected_output != r.output for r in rows)
    assert all(r.shape == "preferences" for r in rows)


def test_the_best_path_is_the_best_ranked() -> None:
    import orjson

    by_id = {}
    children: dict[str, list[dict]] = {}
    for line in real(MESSAGES).open("rb"):
        message = orjson.loads(line)
        by_id[message["message_id"]] = message
        children.setdefault(message["parent_id"], []).append(message)
    for row in read(real(MESSAGES), OASST(take="first")):
        if isinstance(row, Sample):
            siblings = children[by_id[row.origin.record]["parent_id"]]
            sound = [m for m in siblings if m["review_result"] is not False and not m["deleted"]]
            ranks = [m["rank"] for m in sound if m["rank"] is not None]
            assert by_id[row.origin.record]["rank"] == (min(ranks) if ranks else None)


def test_alpaca_libre_keeps_what_its_filter_said(tmp_path: Path) -> None:
    result = import_data(
        real("alpaca-libre/alpaca_libre_tasks_v2.jsonl"), tmp_path / "d", on_bad_row="reject"
    )
    assert (result.rows, result.rejected, result.facts["read"]) == (2280, 14, 2294)
    frame = pq.read_table(tmp_path / "d" / "rejected").to_pylist()
    numbers = [int(row["origin"]["record"]) for row in frame]
    assert all(row["detail"].startswith(f"line {row['origin']['record']}: ") for row in frame)
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


def test_chinese_with_history() -> None:
    rows = list(read(real("oasst1-zh/oaast_sft_zh.json"), license="Apache-2.0"))
    assert len(rows) == 689
    assert Counter(len(r.history) // 2 for r in rows) == {0: 299, 1: 331, 2: 59}


# -- formats -----------------------------------------------------------------------------


def test_hh_rlhf(tmp_path: Path) -> None:
    said = "\n\nHuman: Hi, my name: Ada\n\nAssistant: Hello Ada\n\nHuman: Why?\n\nAssistant:"
    path = lines(tmp_path / "a.jsonl", {"chosen": f"{said} Because.", "rejected": f"{said} No."})
    row = one(path)
    assert (row.instruction, row.output, row.rejected_output) == ("Why?", "Because.", "No.")
    assert row.history == (Message("user", "Hi, my name: Ada"), Message("assistant", "Hello Ada"))
    assert (row.source, row.license, row.origin.method) == ("hh-rlhf", "MIT", "model")
    whole = one(path, HHRLHF("instructions"))
    assert whole.rejected_output is None
    first = one(path, HHRLHF("instructions", "first"))
    assert (first.instruction, first.output, first.history) == ("Hi, my name: Ada", "Hello Ada", ())


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: x\n\nAssistant: c", "differ before"),
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: b", "are the same"),
        ("no dialogue", "\n\nHuman: a\n\nAssistant: b", "no dialogue"),
        ("\n\nHuman: a", "\n\nHuman: a", "no question with an answer"),
    ],
)
def test_hh_rlhf_that_is_none(tmp_path: Path, chosen: str, rejected: str, reason: str) -> None:
    path = lines(tmp_path / "a.jsonl", {"chosen": chosen, "rejected": rejected})
    (row,) = read(path, on_bad_row="reject")
    assert isinstance(row, BadRow)
    assert reason in row.reason


def test_sharegpt_by_any_names(tmp_path: Path) -> None:
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


def test_openai_chat(tmp_path: Path) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Name a tree."}]},
        {"role": "assistant", "content": "Oak."},
    ]
    row = one(lines(tmp_path / "a.jsonl", {"messages": messages}))
    assert [m.role for m in row.messages] == ["system", "user", "assistant"]
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, messages[2]]
    (bad,) = read(lines(tmp_path / "b.jsonl", {"messages": image}), on_bad_row="reject")
    assert isinstance(bad, BadRow)
    assert "more than text" in bad.reason


def test_preferences_in_three_forms(tmp_path: Path) -> None:
    user, good, bad = (
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "good"},
        {"role": "assistant", "content": "bad"},
    )
    forms = [
        {"prompt": "Q", "chosen": "good", "rejected": "bad"},
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
        {"prompt": "Q", "chosen": [user, good], "rejected": [user, bad], "score_chosen": 8.0},
    ]
    rows = [one(lines(tmp_path / "a.jsonl", form)) for form in forms]
    assert {(r.instruction, r.output, r.rejected_output) for r in rows} == {("Q", "good", "bad")}
    assert rows[2].score("score_chosen") == Score("score_chosen", 8.0)


def test_ultrafeedback_knows_who_wrote(tmp_path: Path) -> None:
    completions = [
        {"model": "gpt-4", "response": "A", "overall_score": 8.5},
        {"model": "falcon-40b", "response": "B", "overall_score": 2.0},
        {"model": "bard", "response": "C", "overall_score": 10},
    ]
    row = one(lines(tmp_path / "a.jsonl", {"instruction": "Q", "completions": completions}))
    assert (row.output, row.rejected_output) == ("A", "B")
    assert row.generators == ("falcon-40b", "gpt-4")


def test_longform(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "a.jsonl",
        {"input": "Explain tides.", "output": "The moon", "source": "C4", "subset": "train"},
    )
    row = one(path)
    assert (row.instruction, row.output, row.category) == ("Explain tides.", "The moon", "C4/train")


def test_alpaca_is_named_or_needs_a_licence(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.json", [{"instruction": "a", "input": "", "output": "b"}])
    with pytest.raises(InputError, match="--license"):
        list(read(path))
    (named,) = read(path, "alpaca")
    assert isinstance(named, Sample)
    assert (named.license, named.generators) == ("CC-BY-NC-4.0", ("text-davinci-003",))
    (libre,) = read(path, "alpaca-libre")
    assert isinstance(libre, Sample)
    assert (libre.license, libre.generators) == ("MIT", ("gpt-3.5-turbo",))
    mine = one(path)
    assert (mine.license, mine.generators, mine.origin.method) == ("MIT", (), "human")
    theirs = one(path, model="claude-3-opus")
    assert (theirs.generators, theirs.origin.model) == (("claude-3-opus",), "claude-3-opus")


def test_a_mapped_table_with_a_kind(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"q": "Name a fruit.", "a": "Apple."})
    names = {"instruction": "q", "output": "a"}
    made = import_data(file, tmp_path / "d", mapping=names, shape="instructions", license="MIT")
    assert made.rows == 1


def test_a_mapped_table(tmp_path: Path) -> None:
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
        with pytest.raises(ConfigError, match="--map"):
            import_data(tmp_path / "a.jsonl", tmp_path / "e", mapping=bad)


def test_csv_parquet_zst_and_gz_read_alike(tmp_path: Path) -> None:
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
    read_rows = {
        p.name: [s.id for s in read(p, license="MIT") if isinstance(s, Sample)]
        for p in tmp_path.iterdir()
    }
    assert len(read_rows) == 6
    assert {tuple(ids) for ids in read_rows.values()} == {tuple(read_rows["a.jsonl"])}
    assert len(read_rows["a.csv"]) == 600


@given(st.lists(st.dictionaries(st.sampled_from(["instruction", "input", "output"]), st.text())))
def test_an_array_is_read_as_orjson_reads_it(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]
) -> None:
    from instructgen.formats.records import Record, read_records

    path = tmp_path_factory.mktemp("a") / "a.json"
    path.write_bytes(orjson.dumps(rows))
    if not rows:
        with pytest.raises(InputError, match="empty"):
            list(read_records(path))
        return
    assert list(read_records(path)) == [Record(i, row) for i, row in enumerate(rows, start=1)]


# Of CSV only an open quote shows: cut between two fields it is a short row.
CUTS = [*((k, c) for k in ("json", "jsonl.zst", "parquet") for c in (1, 20, 200)), ("csv", 1)]


@pytest.mark.parametrize(("kind", "cut"), CUTS)
def test_a_cut_file_is_noticed(tmp_path: Path, kind: str, cut: int) -> None:
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
    with pytest.raises(InputError, match=str(path)):
        list(read(path, license="MIT", on_bad_row="reject"))


def test_bad_bytes_in_csv_cost_their_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"instruction,output\na,b\n\xff,c\nd\ne,f\n")
    rows = list(read(path, license="MIT", on_bad_row="reject"))
    assert [(r.line, r.reason) for r in rows if isinstance(r, BadRow)] == [
        (3, "no valid UTF-8."),
        (4, "1 columns where the first row has 2."),
    ]
    assert sum(isinstance(r, Sample) for r in rows) == 2


# -- trees that are none ------------------------------------------------------------------


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
    found = list(reading)
    assert reading.units == len(path.read_bytes().splitlines())
    return Counter(
        r.code if isinstance(r, LeftOut) else "bad" if isinstance(r, BadRow) else "row"
        for r in found
    )


def test_wrong_trees(tmp_path: Path) -> None:
    good = [message("a", None, "prompter"), message("b", "a")]
    path = tmp_path / "a.jsonl"
    assert codes(lines(path, *good)) == {"row": 1}
    assert codes(lines(path, *good, message("c", "x"))) == {"row": 1, "orphan": 1}
    assert codes(lines(path, *good, message("b", "a"))) == {"row": 1, "doubled": 1}
    assert codes(lines(path, *good, message("c", "b"))) == {"row": 1, "wrong_role": 1}
    assert codes(lines(path, *good, message("r", None, "prompter"))) == {"row": 1, "wrong_tree": 1}
    loop = [message("x", "y", "prompter"), message("y", "x")]
    assert codes(lines(path, *good, *loop)) == {"row": 1, "parent_left_out": 2}
    gone = [message("c", "b", "prompter", deleted=True), message("d", "c")]
    assert codes(lines(path, *good, *gone)) == {"row": 1, "deleted": 1, "parent_left_out": 1}
    state = [
        message(*m, tree_state="halted_by_moderator") for m in (("a", None, "prompter"), ("b", "a"))
    ]
    assert codes(lines(path, *state)) == {"tree_not_ready": 2}
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


def test_a_tree_without_end_is_refused(tmp_path: Path) -> None:
    roles = ("prompter", "assistant")
    chain = [message(f"m{i}", f"m{i - 1}" if i else None, roles[i % 2]) for i in range(1_001)]
    assert codes(lines(tmp_path / "a.jsonl", *chain)) == {"bad": 1_001}
    assert codes(lines(tmp_path / "a.jsonl", *chain[:1_000])) == {"row": 1}


# -- the command ------------------------------------------------------------------------


def test_an_import_is_made_once(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"instruction": "a", "output": "b"})
    first = import_data(path, tmp_path / "d", license="MIT")
    stamp = Path(first.parts[0]).stat().st_mtime_ns
    again = import_data(path, tmp_path / "d", license="MIT")
    assert (again.unchanged, first.unchanged) == (True, False)
    assert replace(again, unchanged=False) == first
    assert Path(first.parts[0]).stat().st_mtime_ns == stamp
    with pytest.raises(RunError, match=r"changed: options\.license"):
        import_data(path, tmp_path / "d", license="CC-BY-4.0")
    with pytest.raises(ConfigError, match="gives no preferences"):
        import_data(path, tmp_path / "e", "dolly", shape="preferences")
    with pytest.raises(ConfigError, match="cannot take"):
        import_data(path, tmp_path / "e", "oasst", take="worst")


def test_the_hub_is_asked_for_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub here: what is passed on is recorded, and rows go through as from a file."""
    datasets = pytest.importorskip("datasets")
    asked = {}

    def load_dataset(name: str, **options: object) -> list[dict[str, str]]:
        asked[name] = options
        return [{"instruction": "a", "context": "", "response": "b", "category": "open_qa"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    result = import_data("databricks/databricks-dolly-15k", tmp_path / "d")
    assert result.rows == 1
    assert asked == {"databricks/databricks-dolly-15k": {"split": "train", "streaming": True}}
    monkeypatch.undo()
    with pytest.raises(InputError, match="cannot be read from the Hub"):
        import_data("nobody/nothing", tmp_path / "e")


def test_labels_and_edits_survive(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "a.jsonl",
        {"instruction": "a", "input": "<noinput>", "output": "b", "status": "ok"},
    )
    result = import_data(path, tmp_path / "d")
    (row,) = read_samples(result.out)
    assert row.labels == (Label("status", "ok"),)
    assert row.input == ""
