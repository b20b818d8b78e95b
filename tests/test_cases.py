"""Files as they occur in the wild, by kind: each is read, or rejected with a reason."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

import instructgen
from instructgen.commands.curate import curate
from instructgen.commands.dedup import dedup
from instructgen.commands.export import export
from instructgen.commands.import_data import import_data
from instructgen.commands.merge import merge
from instructgen.errors import ConfigError, InputError
from instructgen.filters.contamination import Contamination
from instructgen.filters.pii import Pii
from instructgen.formats import BadRow, read
from instructgen.formats.records import Record, read_records
from instructgen.licensing.licenses import Requirement, check_license, spdx_of
from instructgen.licensing.model_terms import UNNAMED_MODEL
from instructgen.schema.sample import Sample
from instructgen.similarity import deduplicate
from instructgen.similarity.distinctions import distinctions, fold, may_be_duplicates
from instructgen.store import read_rows, read_samples, splits_of
from instructgen.training.rows import rows_for
from tests.conftest import ROOT

RIVERS = {"instruction": "Name two rivers.", "output": "Nile, Rhine."}


def lines(path: Path, *rows: object) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def rows_of(path: Path, **options) -> list[Sample]:
    rows = list(read(path, license="MIT", **options))
    assert all(isinstance(r, Sample) for r in rows), rows
    return rows


# -- authors and models -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "generators", "model"),
    [
        ({**RIVERS, "generators": ["gpt-4"]}, ("gpt-4",), "gpt-4"),
        ({**RIVERS, "model": "my/own"}, ("my/own",), "my/own"),
        ({**RIVERS, "generator": "human"}, (), None),
        ({"conversations": [("human", "A?"), ("gpt", "B.")]}, (UNNAMED_MODEL,), None),
        ({"conversations": [("human", "A?"), ("claude", "B.")]}, ("claude",), None),
        (
            {"conversations": [("human", "A?"), ("gpt", "B.")], "model": "gpt-4"},
            ("gpt-4",),
            "gpt-4",
        ),
        ({"conversations": [("user", "A?"), ("assistant", "B.")]}, (), None),
    ],
)
def test_a_row_states_the_model_that_wrote_it(tmp_path: Path, row, generators, model) -> None:
    if "conversations" in row:
        row = {**row, "conversations": [{"from": f, "value": v} for f, v in row["conversations"]]}
    (sample,) = rows_of(lines(tmp_path / "a.jsonl", row))
    assert (sample.generators, sample.origin.model) == (generators, model)
    # A row of an unknown model is not human-written, and its terms are unknown.
    assert (sample.origin.method == "human") == (generators == ())
    objection = Requirement.of("permissive").objection("MIT", sample.generators)
    assert (objection is None) == (generators == ())
    (people,) = rows_of(lines(tmp_path / "b.jsonl", row), model="human")
    assert (people.generators, people.origin.method) == ((), "human")


def test_an_attribution_and_a_source_in_the_row_are_read(tmp_path: Path) -> None:
    row = {**RIVERS, "attribution": ["Field Team 2026"], "source": "mixset", "category": 7}
    (sample,) = rows_of(lines(tmp_path / "a.jsonl", row))
    assert (sample.attribution, sample.source, sample.category) == (
        ("Field Team 2026",),
        "mixset",
        "7",
    )
    (named,) = rows_of(lines(tmp_path / "a.jsonl", row), source="other")
    assert named.source == "other"


def test_a_side_column_of_an_odd_type_does_not_cost_the_row(tmp_path: Path) -> None:
    odd = {"license": {"a": 1}, "language": [3], "category": {"x": []}, "source": 1.5}
    rows = rows_of(lines(tmp_path / "a.jsonl", {**RIVERS, **odd}))
    assert [s.instruction for s in rows] == ["Name two rivers."]
    assert {e.field for e in rows[0].edits} == set(odd)


def test_exported_columns_are_read_again(tmp_path: Path) -> None:
    row = {**RIVERS, "model": "gpt-4", "attribution": "Team", "source": "mixset", "language": "en"}
    first = import_data(lines(tmp_path / "a.jsonl", row), tmp_path / "a", license="CC-BY-4.0")
    columns = ("license", "attribution", "generators", "source", "language")
    for name in ("alpaca", "openai", "sharegpt", "trl"):
        file = tmp_path / f"{name}.jsonl"
        export(first.out, file, format=name, columns=columns)
        (again,) = read(file)
        assert (again.license, again.attribution, again.generators, again.source) == (
            "CC-BY-4.0",
            ("Team",),
            ("gpt-4",),
            "mixset",
        )


def test_the_system_column_of_alpaca_is_the_system_message(tmp_path: Path) -> None:
    row = {**RIVERS, "system": "Be brief.", "history": [["Hi?", "Yes."]]}
    (sample,) = rows_of(lines(tmp_path / "a.jsonl", row))
    assert [(m.role, m.content) for m in sample.history] == [
        ("system", "Be brief."),
        ("user", "Hi?"),
        ("assistant", "Yes."),
    ]


# -- languages ----------------------------------------------------------------------------

SENTENCES = {
    "de": ("Nenne bitte drei große Flüsse in Europa und ihre Länge.", "Wolga, Donau und Ural."),
    "ja": ("東京都の人口と面積を簡単に説明してください。詳細は不要です。", "約千四百万人です。"),
    "uk": ("Назвіть, будь ласка, три великі річки Європи та їхню довжину.", "Волга, Дунай і Урал."),
    "ur": ("یورپ کے تین بڑے دریاؤں کے نام اور ان کی لمبائی بتائیں۔", "وولگا اور ڈینیوب۔"),
    # A translation has two languages.
    "und": (
        "Translate into German: good morning, my dear friend from the far north.",
        "Guten Morgen, mein lieber Freund aus dem Norden, wie geht es dir?",
    ),
}


def test_our_recipes_keep_rows_whose_language_was_identified(tmp_path: Path) -> None:
    rows = [{"instruction": q, "output": a} for q, a in SENTENCES.values()]
    data = import_data(lines(tmp_path / "a.jsonl", *rows), tmp_path / "a", license="MIT")
    assert [s.language for s in read_samples(data.out)] == list(SENTENCES)
    recipe = {"filters": [{"name": "language"}, {"name": "script"}]}
    assert curate(data.out, tmp_path / "clean", recipe=recipe).rejected == 0


# -- duplicates and contamination ---------------------------------------------------------

DISTINCT = [
    ("Evaluate 3 - 5 now.", "Evaluate 5 - 3 now."),
    ("What is -5 times 2 exactly?", "What is 5 times 2 exactly?"),
    ("Which language is older, C++ or Rust?", "Which language is older, C# or Rust?"),
    (
        "Explain in one sentence why the sky is blue.",
        "Explain in one sentence why the sky is not blue.",
    ),
    ("Is Ali taller than Bea, or not as tall?", "Is Bea taller than Ali, or not as tall?"),
    ("Is it true that a <= b always holds?", "Is it true that a >= b always holds?"),
    ("Solve x² + 1 = 5 for me please.", "Solve x2 + 1 = 5 for me please."),
    ("Nenne Tiere, die Eier legen.", "Nenne Tiere, die keine Eier legen."),
    ("你喜欢吃苹果吗？请回答。", "你不喜欢吃苹果吗？请回答。"),
    ("Who won the 2004 World Series?", "Who won the 2000 World Series?"),
]
SAME = [
    ("Name two rivers of Asia, please!", "name two  rivers of asia please"),
    ("Explain why you can't divide by zero.", "Explain why you can not divide by zero."),
    ("Explain:\n- rivers\n- lakes", "Explain: rivers lakes"),
    ("این کتاب را می‌خوانم یا نه؟", "اين كتاب را میخوانم یا نه؟"),
    ("اُكْتُبْ قَصِيدَةً عَنِ البَحْرِ", "اكتب قصيدة عن البحر"),
    ("Ｎａｍｅ two ﬁelds of study today.", "Name two fields of study today."),
]


@pytest.mark.parametrize(("a", "b"), DISTINCT)
def test_texts_that_differ_in_what_words_do_not_show_are_kept(a: str, b: str) -> None:
    assert not may_be_duplicates(distinctions(a), distinctions(b), ordered=True)
    samples = [Sample(a, output="x"), Sample(b, output="x")]
    assert len(deduplicate(samples, ["exact", "minhash", "rouge_l"], threshold=0.3).kept) == 2


@pytest.mark.parametrize(("a", "b"), SAME)
def test_texts_that_differ_only_in_form_are_duplicates(a: str, b: str) -> None:
    assert may_be_duplicates(distinctions(a), distinctions(b), ordered=True)
    samples = [Sample(a, output="x"), Sample(b, output="x")]
    assert len(deduplicate(samples, ["exact", "minhash"], threshold=0.6).kept) == 1


def test_folding_is_stable() -> None:
    for pair in (*SAME, *DISTINCT):
        for text in pair:
            assert fold(fold(text)) == fold(text)


def test_protected_labels_keep_rows_apart(tmp_path: Path) -> None:
    rows = [
        {"q": "How do I reset the device?", "a": "Hold the button.", "product": p}
        for p in ("A1", "B2", "A1")
    ]
    file = lines(tmp_path / "faq.jsonl", *rows)
    mapping = {"instruction": "q", "output": "a", "label.product": "product"}
    data = import_data(file, tmp_path / "faq", license="MIT", mapping=mapping)
    assert dedup(data.out, tmp_path / "all").rows == 1
    kept = dedup(data.out, tmp_path / "apart", same_if_equal="product")
    assert [s.labels[0].value for s in read_samples(kept.out)] == ["A1", "B2"]
    recipe = {"filters": [{"name": "duplicate", "same_if_equal": ["product"]}]}
    assert curate(data.out, tmp_path / "clean", recipe=recipe).rows == 2


def test_another_question_in_the_frame_of_a_benchmark_is_kept(tmp_path: Path) -> None:
    countries = ("France", "Peru", "Kenya", "Japan", "Norway", "Chile", "Ghana", "Nepal")
    prompts = [{"question": f"What is the capital of {c}?"} for c in countries]
    prompts += [{"question": "Compute 12 + 5."}, {"question": "What is the value of 12 + 5 today?"}]
    bench = Contamination(against=(str(lines(tmp_path / "bench.jsonl", *prompts)),))

    def reason(text: str) -> str | None:
        rejection = bench.reason(Sample(text, output="x"))
        return None if rejection is None else rejection.reason

    for text in ("What is the capital of Spain?", "Compute 12 * 5.", "What is 12 * 5 today?"):
        assert reason(text) is None, text
    assert reason("What is the value of 12 * 5 today?") is None
    assert reason("what is the CAPITAL of peru") == "equal_prompt"
    assert reason("Compute 12 + 5") == "equal_prompt"
    assert reason("Tell me: what is the capital of Japan? Thanks.") == "prompt_words"


def test_a_held_out_question_is_not_in_the_training_rows(tmp_path: Path) -> None:
    rows = [{"instruction": f"Name river {i}.", "output": f"{i}"} for i in range(40)]
    rows += [{"instruction": f"name  RIVER {i}. ", "output": f"{i}!"} for i in range(40)]
    data = import_data(lines(tmp_path / "a.jsonl", *rows), tmp_path / "a", license="MIT")
    chosen = rows_for(data.out, None, 8, lambda _: True)
    questions = {" ".join(s.instruction.lower().split()) for s in chosen.held_out}
    trained = {" ".join(s.instruction.lower().split()) for s in chosen.train}
    assert questions and not questions & trained


@pytest.mark.slow
def test_paraphrases_can_be_kept_in_the_same_split(tmp_path: Path) -> None:
    pairs = [
        ("How can I bake bread at home?", "What is a way to make homemade bread?"),
        ("Why is the sea salty?", "What makes ocean water taste of salt?"),
        ("How do birds fly?", "What lets a bird stay in the air?"),
        ("Who wrote the play Hamlet?", "Name the author of the play Hamlet."),
    ]
    rows = [{"instruction": q, "output": "x"} for pair in pairs for q in pair]
    data = import_data(lines(tmp_path / "a.jsonl", *rows), tmp_path / "a", license="MIT")
    split = {"validation": 0.25, "test": 0.25, "near_meaning": 0.5}
    mixed = merge(data.out, tmp_path / "mix", recipe={"split": split})
    sides = {
        s.instruction: name
        for name in splits_of(mixed.out)
        for s in read_samples(mixed.out, split=name)
    }
    assert len(set(sides.values())) > 1
    assert all(sides[a] == sides[b] for a, b in pairs)


# -- texts and files ----------------------------------------------------------------------


def test_the_indentation_of_code_is_kept(tmp_path: Path) -> None:
    code = "\n\n    c = a + b\n    return c\n\n"
    asked = "Complete the body:\ndef add(a, b):"
    rows = [
        {"instruction": asked, "output": code},
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": code}]},
        {"prompt": asked, "completion": code},
    ]
    for row in rows:
        (sample,) = rows_of(lines(tmp_path / "a.jsonl", row))
        assert sample.output == "    c = a + b\n    return c"


TABLE = "instruction,input,output\nName a café drink.,,Crème\nAdd 2 and 3.,,5\n"
TABLES = {
    "semicolon": TABLE.replace(",", ";").encode(),
    "tab": TABLE.replace(",", "\t").encode(),
    "pipe": TABLE.replace(",", "|").encode(),
    "utf-16": TABLE.encode("utf-16"),
    "utf-16-le without mark": TABLE.encode("utf-16-le"),
    "utf-8 with mark": TABLE.encode("utf-8-sig"),
    "capitals": TABLE.replace("instruction", "Instruction").replace("output", "OUTPUT").encode(),
    "spaces": TABLE.replace("instruction,input,output", "instruction, input, output ").encode(),
    "trailing delimiter": TABLE.replace(",,Crème", ",,Crème,").replace(",,5", ",,5,").encode(),
    "blank lines": b"\n\n" + TABLE.encode(),
    "carriage returns": TABLE.replace("\n", "\r\n").encode(),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("extension", ["csv", "txt"])
def test_a_table_of_any_dialect_is_read(tmp_path: Path, name: str, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    path.write_bytes(TABLES[name])
    assert [(s.instruction, s.output) for s in rows_of(path)] == [
        ("Name a café drink.", "Crème"),
        ("Add 2 and 3.", "5"),
    ]


def test_an_encoding_that_is_not_utf_8_must_be_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(TABLE.encode("cp1252"))
    bad, good = read(path, license="MIT", on_bad_row="reject")
    assert isinstance(bad, BadRow) and "cp1252" in bad.reason
    assert isinstance(good, Sample)
    assert len(rows_of(path, encoding="cp1252")) == 2
    assert rows_of(path, encoding="cp1252")[0].output == "Crème"
    with pytest.raises(ConfigError, match="nope"):
        rows_of(path, encoding="nope")


def test_a_quoted_delimiter_is_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('instruction;output\n"Name; two";"a;b\nc"\n')
    (sample,) = rows_of(path)
    assert (sample.instruction, sample.output) == ("Name; two", "a;b\nc")


OBJECT = json.dumps(RIVERS)
SHAPES = {
    "lines": OBJECT,
    "array": f"[{OBJECT}]",
    "indented array": json.dumps([RIVERS], indent=1),
    "one indented object": json.dumps(RIVERS, indent=1),
    "indented objects": json.dumps(RIVERS, indent=1)
    + "\n"
    + json.dumps({**RIVERS, "x": 1}, indent=1),
    "rows under a key": json.dumps({"version": 1, "data": [RIVERS]}),
    "indented rows under a key": json.dumps({"version": 1, "data": [RIVERS]}, indent=1),
    "rows of the dataset viewer": json.dumps({"rows": [{"row_idx": 0, "row": RIVERS}]}),
    "splits": json.dumps({"train": [RIVERS], "test": []}),
    "columns": json.dumps({name: [value] for name, value in RIVERS.items()}),
    "columns of pandas": json.dumps({name: {"0": value} for name, value in RIVERS.items()}),
    "NaN in another column": OBJECT.replace("}", ', "score": NaN}'),
    "end of file of DOS": OBJECT + "\r\n\x1a",
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("extension", ["json", "jsonl"])
def test_json_of_any_usual_shape_is_read(tmp_path: Path, name: str, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    path.write_text(SHAPES[name])
    assert {(s.instruction, s.output) for s in rows_of(path)} == {tuple(RIVERS.values())}


def test_a_list_in_a_row_is_not_a_list_of_rows(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}]}
    for text in (json.dumps(row), json.dumps(row, indent=1)):
        (tmp_path / "a.json").write_text(text)
        (sample,) = rows_of(tmp_path / "a.json")
        assert sample.output == "B."


def test_a_long_line_with_rows_under_a_key_is_read(tmp_path: Path) -> None:
    rows = [{**RIVERS, "output": "x" * 1000} for _ in range(9_000)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"data": rows}))
    assert path.stat().st_size > 8 * 2**20
    assert sum(isinstance(r, Record) for r in read_records(path)) == len(rows)


def test_several_lists_of_rows_ask_for_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"first": [RIVERS], "second": [RIVERS, RIVERS]}))
    with pytest.raises(InputError, match=r"first, second") as caught:
        rows_of(path)
    assert "--split" in caught.value.hint
    assert len(rows_of(path, split="second")) == 2


def test_a_conversation_in_a_csv_cell_is_read(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "A?"}, {"from": "gpt", "value": "B."}]
    cell = json.dumps(turns).replace('"', '""')
    (tmp_path / "a.csv").write_text(f'id,conversations\n1,"{cell}"\n')
    (sample,) = rows_of(tmp_path / "a.csv")
    assert (sample.instruction, sample.output, sample.origin.record) == ("A?", "B.", "1")


# -- preferences and feedback -------------------------------------------------------------

USER, YES, NO = (
    {"role": "user", "content": "Two rivers?"},
    {"role": "assistant", "content": "Nile, Rhine."},
    {"role": "assistant", "content": "No."},
)
SYSTEM = {"role": "system", "content": "Be brief."}
PAIRS = {
    "implicit prompt": {"chosen": [USER, YES], "rejected": [USER, NO]},
    "explicit prompt": {"prompt": "Two rivers?", "chosen": "Nile, Rhine.", "rejected": "No."},
    "prompt as messages": {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
    "repeated prompt": {"prompt": "Two  rivers? ", "chosen": [USER, YES], "rejected": [USER, NO]},
    "llama-factory": {
        "conversations": [{"from": "human", "value": "Two rivers?"}],
        "chosen": {"from": "gpt", "value": "Nile, Rhine."},
        "rejected": {"from": "gpt", "value": "No."},
    },
    "llama-factory, alpaca": {
        "instruction": "Two rivers?",
        "input": "",
        "chosen": "Nile, Rhine.",
        "rejected": "No.",
    },
    "orca": {"system": "", "question": "Two rivers?", "chosen": "Nile, Rhine.", "rejected": "No."},
    "two lists of messages": {"chosen_messages": [USER, YES], "rejected_messages": [USER, NO]},
    "transcripts": {
        "chosen": "\n\nHuman: Two rivers?\n\nAssistant: Nile, Rhine.",
        "rejected": "\n\nHuman: Two rivers?\n\nAssistant: No.",
    },
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_preference_in_any_layout_is_read(tmp_path: Path, name: str) -> None:
    (sample,) = rows_of(lines(tmp_path / "a.jsonl", PAIRS[name]))
    assert (sample.instruction, sample.output, sample.rejected_output) == (
        "Two rivers?",
        "Nile, Rhine.",
        "No.",
    )
    assert sample.history == ()


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Two rivers?", "chosen": [SYSTEM, USER, YES], "rejected": [SYSTEM, USER, NO]},
        {"system": "Be brief.", "question": "Two rivers?", "chosen": "Nile.", "rejected": "No."},
        {"prompt": [SYSTEM, USER], "chosen": [YES], "rejected": [NO]},
    ],
)
def test_a_preference_with_a_system_message_keeps_it(tmp_path: Path, row) -> None:
    (sample,) = rows_of(lines(tmp_path / "a.jsonl", row))
    assert [(m.role, m.content) for m in sample.history] == [("system", "Be brief.")]


FEEDBACK = {
    "prompt and completion": {"prompt": "Two rivers?", "completion": "Nile, Rhine."},
    "messages": {"prompt": [USER], "completion": [YES]},
    "conversation": {"messages": [USER, YES]},
    "alpaca": {"instruction": "Two rivers?", "output": "Nile, Rhine."},
}


@pytest.mark.parametrize("name", FEEDBACK)
def test_feedback_is_read_with_its_label(tmp_path: Path, name: str) -> None:
    labels = {"label": [True, False, "True", 0], "kto_tag": ["false"]}
    rows = [{**FEEDBACK[name], key: value} for key, values in labels.items() for value in values]
    path = lines(tmp_path / "a.jsonl", *rows)
    samples = rows_of(path, shape="feedback")
    assert [s.label for s in samples] == [True, False, True, False, False]
    assert {(s.shape, s.instruction, s.output) for s in samples} == {
        ("feedback", "Two rivers?", "Nile, Rhine.")
    }
    # An answer with a negative label never becomes a row to learn.
    learned = import_data(path, tmp_path / "data", license="MIT", shape="instructions")
    assert (learned.rows, learned.rejected) == (2, 3)
    assert {r["reason"] for r in read_rows(learned.out, "rejected")} == {"negative_label"}
    assert all(r["output"] for r in read_rows(learned.out, "rejected"))


# -- folders, patterns and home -----------------------------------------------------------


def test_folders_of_datasets_and_clones_of_the_hub_are_read(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    three = Dataset.from_list([RIVERS] * 3)
    three.save_to_disk(tmp_path / "saved")
    DatasetDict({"train": three, "test": three.select([0])}).save_to_disk(tmp_path / "dict")
    clone = tmp_path / "clone"
    (clone / "data").mkdir(parents=True)
    (clone / "README.md").write_text("---\nlicense: odc-by\nlanguage: en\n---\n\n# Rivers\n")
    for part in range(2):
        three.to_parquet(clone / "data" / f"train-0000{part}-of-00002.parquet")
    three.select([0]).to_parquet(clone / "data" / "validation-00000-of-00001.parquet")
    counts = {"saved": 3, "dict": 3, "clone": 6}
    for name, rows in counts.items():
        result = import_data(tmp_path / name, tmp_path / "out" / name, license="MIT")
        assert result.rows == rows
    assert len(rows_of(tmp_path / "dict", split="test")) == 1
    # The license of the card applies if no other is given.
    assert {s.license for s in read(clone)} == {"ODC-By-1.0"}
    records = {s.origin.record for s in read(clone)}
    assert len(records) == 6 and "train-00001-of-00002.parquet:1" in records
    with pytest.raises(InputError) as caught:
        rows_of(clone, split="test")
    assert "validation" in caught.value.hint


def test_a_pattern_reads_all_matching_files(tmp_path: Path) -> None:
    for name in ("b", "a"):
        lines(tmp_path / f"{name}.jsonl", {**RIVERS, "id": name}, {"instruction": "no output"})
    reading = read(tmp_path / "*.jsonl", license="MIT", on_bad_row="reject")
    rows = list(reading)
    assert [r.origin.record for r in rows if isinstance(r, Sample)] == ["a", "b"]
    assert [r.file for r in rows if isinstance(r, BadRow)] == ["a.jsonl", "b.jsonl"]
    with pytest.raises(InputError):
        rows_of(tmp_path / "*.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError):
        rows_of(tmp_path / "empty")


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "a.jsonl", RIVERS)
    result = import_data("~/a.jsonl", "~/data", license="MIT")
    assert result.out == tmp_path / "data"
    assert not (tmp_path / "~").exists()


# -- licenses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "license"),
    [
        ("apache-2.0", "Apache-2.0"),
        ("Apache License 2.0", "Apache-2.0"),
        ("CC BY 4.0", "CC-BY-4.0"),
        ("cc0", "CC0-1.0"),
        ("odc-by", "ODC-By-1.0"),
        ("odbl", "ODbL-1.0"),
        ("afl-3.0", "AFL-3.0"),
        ("other", "LicenseRef-other"),
        ("llama3.1", "LicenseRef-llama3.1"),
        ("openrail", "LicenseRef-openrail"),
        ("gpl", "LicenseRef-gpl-unversioned"),
        ("gpl-3.0", "GPL-3.0-only"),
        ("mit, cc-by-4.0", "CC-BY-4.0 AND MIT"),
        (["mit", "cc-by-4.0"], "CC-BY-4.0 AND MIT"),
        ([], ""),
        (None, ""),
        (7, ""),
    ],
)
def test_licenses_as_the_hub_writes_them(written: object, license: str) -> None:
    assert spdx_of(written) == license
    assert not license or check_license(license) == license


def test_a_family_of_licenses_without_a_version_is_asked_about() -> None:
    with pytest.raises(ConfigError, match="gpl"):
        check_license("gpl")


# -- empty answers, splits, empty results -------------------------------------------------


def test_rows_without_an_answer_are_counted_and_read_again(tmp_path: Path) -> None:
    rows = [RIVERS, {"instruction": "Say it.", "output": ""}]
    data = import_data(lines(tmp_path / "a.jsonl", *rows), tmp_path / "a", license="MIT")
    assert data.facts.without_answer == 1
    for name in ("openai", "sharegpt", "trl", "alpaca"):
        file = tmp_path / f"{name}.jsonl"
        export(data.out, file, format=name)
        again = import_data(file, tmp_path / name, license="MIT")
        assert (again.rows, again.facts.without_answer) == (2, 1)


def test_a_dataset_with_splits_is_exported_to_one_file_per_split(tmp_path: Path) -> None:
    rows = [{"instruction": f"Name item {w}.", "output": "x"} for w in "abcdefghij"]
    data = import_data(lines(tmp_path / "a.jsonl", *rows), tmp_path / "a", license="MIT")
    mixed = merge(data.out, tmp_path / "mix", recipe={"split": {"test": 0.3, "near": 0.99}})
    result = export(mixed.out, tmp_path / "x.jsonl", format="openai")
    assert [f.name for f in result.files] == ["x-train.jsonl", "x-test.jsonl"]
    assert [len(f.read_text().splitlines()) for f in result.files] == [7, 3]
    assert {r["split"] for r in read_rows(mixed.out)} == {"train", "test"}
    one = export(mixed.out, tmp_path / "y.jsonl", format="openai", split="test")
    assert (one.rows, [f.name for f in one.files]) == (3, ["y.jsonl"])


def test_a_result_without_rows_ends_with_exit_code_3(tmp_path: Path) -> None:
    data = import_data(lines(tmp_path / "a.jsonl", RIVERS), tmp_path / "a", license="MIT")
    command = [sys.executable, "-m", "instructgen", "merge", str(data.out), "-q"]
    for extra in ([], ["--json"]):
        out = tmp_path / f"mix{len(extra)}"
        done = subprocess.run(
            [*command, "--require", "CC0-1.0", "--out", str(out), *extra],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 3, done.stderr
        assert done.stderr.strip().count("\n") == 0
        assert len(list(read_rows(out, "rejected"))) == 1


def test_a_filter_that_reads_a_score_of_no_row_names_those_there_are(tmp_path: Path) -> None:
    row = {"q": "Name two rivers.", "a": "Nile.", "stars": 4, "state": "ok"}
    mapping = {"instruction": "q", "output": "a", "score.quality": "stars", "label.state": "state"}
    data = import_data(
        lines(tmp_path / "a.jsonl", row), tmp_path / "a", license="MIT", mapping=mapping
    )

    def clean(name: str, **options) -> int:
        recipe = {"filters": [{"name": name, **options}]}
        return curate(data.out, tmp_path / f"{name}{options['of']}", recipe=recipe).rows

    assert clean("score", of="quality", min=4) == 1
    assert clean("label", of="state", allowed=["ok"]) == 1
    with pytest.raises(InputError, match=r"quality"):
        clean("score", of="qualty", min=4)
    with pytest.raises(InputError, match=r"state"):
        clean("label", of="status", allowed=["ok"])
    assert clean("label", of="other", allowed=["ok"], required=False) == 1


def test_seeds_come_from_any_table(tmp_path: Path) -> None:
    seeds = [json.loads(line) for line in (ROOT / "seeds" / "general.jsonl").open()]
    with (tmp_path / "support.csv").open("w", newline="") as file:
        table = csv.writer(file, delimiter=";")
        table.writerow(["Question", "Answer"])
        table.writerows([seed["instruction"], seed["output"]] for seed in seeds)
    result = instructgen.generate(
        tmp_path / "support.csv",
        3,
        tmp_path / "run",
        engine="echo",
        mapping={"instruction": "question", "output": "answer"},
        license="CC0-1.0",
    )
    assert result.facts.kept_rows == 3


# -- what an attack on the import found ---------------------------------------------------


@pytest.mark.parametrize(
    ("good", "bad"),
    [(1.0, 0.0), ("1.0", "0.0"), (1, -1), ("good", "bad"), ("desirable", "undesirable")],
)
def test_labels_in_any_spelling_are_labels(tmp_path: Path, good: object, bad: object) -> None:
    rows = [{"prompt": "A?", "completion": "B.", "label": label} for label in (good, bad)]
    assert [s.label for s in rows_of(lines(tmp_path / "a.jsonl", *rows))] == [True, False]


def test_a_label_that_cannot_be_read_never_makes_its_answer_a_row_to_learn(tmp_path: Path) -> None:
    rows = [{"prompt": "A?", "completion": "B.", "label": v} for v in (None, "maybe", False)]
    reading = read(lines(tmp_path / "a.jsonl", *rows), license="MIT", on_bad_row="reject")
    assert [isinstance(r, BadRow) or r.label for r in reading] == [True, True, False]


ASSISTANT = {"role": "assistant", "content": "B."}
WITH_SYSTEM = [
    {"system": "Be brief.", "messages": [{"role": "user", "content": "A?"}, ASSISTANT]},
    {
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "A?"}, ASSISTANT],
        "label": True,
    },
    {"system": "Be brief.", "prompt": "A?", "completion": "B.", "label": True},
    {"system_prompt": "Be brief.", "instruction": "A?", "output": "B."},
    {"system_prompt": "Be brief.", "question": "A?", "chosen": "B.", "rejected": "C."},
    {
        "prompt": [SYSTEM, {"role": "user", "content": "A?"}],
        "chosen": [{"role": "user", "content": "A?"}, ASSISTANT],
        "rejected": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "C."}],
    },
]


@pytest.mark.parametrize("row", WITH_SYSTEM)
def test_a_system_column_is_the_system_message_in_every_layout(tmp_path: Path, row) -> None:
    (sample,) = rows_of(lines(tmp_path / "a.jsonl", row))
    assert [(m.role, m.content) for m in sample.prompt] == [("system", "Be brief."), ("user", "A?")]


def test_passages_and_earlier_turns_are_not_lost(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Q?", "response": "R.", "history": [["Q1?", "R1."]]},
        {"prompt": "Q?", "input": "Passage.", "response": "R."},
        {"prompt": "Q?", "context": "Passage.", "completion": "R."},
        {"instruction": "Q?", "context": "Passage.", "output": "R."},
        {"instruction": "Q?", "input": "Passage.", "output": "R.", "source": "x", "subset": "y"},
    ]
    samples = [rows_of(lines(tmp_path / "a.jsonl", row))[0] for row in rows]
    assert [m.content for m in samples[0].history] == ["Q1?", "R1."]
    assert [s.input for s in samples[1:]] == ["Passage."] * 4
    assert {s.instruction for s in samples} == {"Q?"}


def test_arguments_under_any_usual_key_are_read_and_others_are_rejected(tmp_path: Path) -> None:
    for key in ("arguments", "parameters", "args", "input"):
        value = json.dumps({"name": "get", key: {"city": "Rome"}})
        turns = [{"from": "human", "value": "A?"}, {"from": "function_call", "value": value}]
        (sample,) = rows_of(lines(tmp_path / "a.jsonl", {"conversations": turns}))
        assert sample.tool_calls[0].arguments == '{"city":"Rome"}'
    turns[1]["value"] = '{"name": "get", "inputs": {"city": "Rome"}}'
    (bad,) = read(
        lines(tmp_path / "a.jsonl", {"conversations": turns}), license="MIT", on_bad_row="reject"
    )
    assert isinstance(bad, BadRow) and "get" in bad.reason


def test_tools_in_any_column_and_in_the_prompt_of_qwen_are_read(tmp_path: Path) -> None:
    tool = {"name": "get", "parameters": {}}
    call = '<tool_call>\n{"name": "get", "arguments": {}}\n</tool_call>'
    rows = [
        {"instruction": "A?", "output": call, "tools": [tool]},
        {"prompt": "A?", "completion": call, "functions": json.dumps([tool])},
        {
            "messages": [
                {
                    "role": "system",
                    "content": f"# Tools\n\n<tools>\n{json.dumps(tool)}\n</tools>\n\n{call}",
                },
                {"role": "user", "content": "A?"},
                {"role": "assistant", "content": call},
                {"role": "user", "content": "<tool_response>\n5\n</tool_response>"},
                {"role": "assistant", "content": "Five."},
            ]
        },
    ]
    samples = [rows_of(lines(tmp_path / "a.jsonl", row))[0] for row in rows]
    assert {s.instruction for s in samples} == {"A?"}
    assert all(json.loads(s.tools)[0]["function"]["name"] == "get" for s in samples)
    calls = [c.name for s in samples for m in s.messages for c in m.tool_calls]
    assert calls == ["get"] * 3
    assert [m.content for m in samples[2].steps] == ["", "5"]


def test_arguments_of_other_calls_in_a_parquet_column_are_not_arguments(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def row(**arguments: str) -> dict:
        call = {"function": {"name": "get", "arguments": arguments}}
        user = {"role": "user", "content": "A?", "tool_calls": None}
        return {"messages": [user, {"role": "assistant", "content": "", "tool_calls": [call]}]}

    pq.write_table(
        pa.Table.from_pylist([row(city="Rome"), row(zone="UTC")]), tmp_path / "a.parquet"
    )
    samples = rows_of(tmp_path / "a.parquet")
    assert [s.tool_calls[0].arguments for s in samples] == ['{"city":"Rome"}', '{"zone":"UTC"}']


@pytest.mark.parametrize(
    "flag", [{"loss": False}, {"loss_mask": 0}, {"weight": "0"}, {"train": "false"}]
)
def test_every_usual_flag_excludes_a_message_from_the_loss(tmp_path: Path, flag) -> None:
    messages = [{"role": "user", "content": "A?"}, {**ASSISTANT, **flag}]
    (sample,) = rows_of(lines(tmp_path / "a.jsonl", {"messages": messages}))
    assert not sample.train


def test_reasoning_beside_and_inside_of_answers(tmp_path: Path) -> None:
    thought = "<think>2+2</think>4"
    rows = [
        {"instruction": "Sum?", "output": "4", "reasoning": "2+2"},
        {"prompt": "Sum?", "completion": thought, "label": True},
        {"prompt": "Sum?", "chosen": thought, "rejected": "5"},
    ]
    for row in rows:
        (sample,) = rows_of(lines(tmp_path / "a.jsonl", row))
        assert (sample.output, sample.reasoning_content) == ("4", "2+2")


def test_messages_in_the_cells_of_a_table_are_messages(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "chosen", "rejected", "score_chosen"])
        table.writerow(["Two rivers?", json.dumps([USER, YES]), json.dumps([USER, NO]), "8.5"])
    (sample,) = rows_of(tmp_path / "a.csv")
    assert (sample.output, sample.rejected_output) == ("Nile, Rhine.", "No.")
    assert sample.scores[0].value == 8.5


def test_other_encodings_of_indented_json_are_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    text = json.dumps({"data": [{**RIVERS, "output": "Crème"}]}, indent=1, ensure_ascii=False)
    path.write_bytes(text.encode("cp1252"))
    with pytest.raises(InputError) as caught:
        rows_of(path)
    assert "--encoding" in caught.value.hint
    assert rows_of(path, encoding="cp1252")[0].output == "Crème"


def test_caches_and_empty_shards_are_not_rows(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict, load_from_disk

    four = Dataset.from_list([{**RIVERS, "n": i} for i in range(4)])
    DatasetDict({"train": four}).save_to_disk(tmp_path / "dict")
    load_from_disk(tmp_path / "dict")["train"].map(lambda row: {"n": row["n"] + 1})
    assert list((tmp_path / "dict" / "train").glob("cache-*"))
    assert len(rows_of(tmp_path / "dict")) == 4
    folder = tmp_path / "shards"
    folder.mkdir()
    four.select([]).to_parquet(folder / "train-00000-of-00003.parquet")
    four.to_parquet(folder / "train-00001-of-00003.parquet")
    four.select([]).to_parquet(folder / "train-00002-of-00003.parquet")
    assert len(rows_of(folder)) == 4
    (folder / "LICENSE.txt").write_text("MIT")
    assert len(rows_of(folder)) == 4
    four.to_parquet(folder / "more.parquet")
    with pytest.raises(InputError, match=r"more\.parquet"):
        rows_of(folder)


def test_own_rows_in_the_layout_of_a_known_dataset_keep_their_license(tmp_path: Path) -> None:
    row = {"instruction": "Was ist das?", "context": "", "response": "Ein Test, denke ich."}
    path = lines(tmp_path / "a.jsonl", {**row, "category": "qa"})
    (published,) = read(path)
    assert (published.license, bool(published.attribution)) == ("CC-BY-SA-3.0", True)
    (own,) = read(path, license="CC-BY-NC-4.0")
    assert (own.license, own.attribution) == ("CC-BY-NC-4.0", ())
    (stated,) = read(lines(tmp_path / "a.jsonl", {**row, "license": "MIT", "language": "de"}))
    assert (stated.license, stated.language) == ("MIT", "de")


def test_a_list_in_the_only_row_of_a_file_is_not_the_file(tmp_path: Path) -> None:
    extra = {"examples": [RIVERS], "sources": [{"url": "x"}]}
    for name, value in extra.items():
        row = {"instruction": "Q", "output": "R", name: value}
        (sample,) = rows_of(lines(tmp_path / "a.json", row))
        assert sample.output == "R"


def test_a_delimiter_is_not_found_inside_of_quotes_and_excel_may_state_it(tmp_path: Path) -> None:
    for text in (
        'instruction;output;"notes, by A, B"\nA?;B.;x\n',
        "sep=;\ninstruction;output\nA?;B.\n",
    ):
        (tmp_path / "a.csv").write_text(text)
        assert [(s.instruction, s.output) for s in rows_of(tmp_path / "a.csv")] == [("A?", "B.")]


def test_a_model_that_the_user_names_replaces_an_unnamed_one(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "A?"}, {"from": "gpt", "value": "B."}]
    path = lines(tmp_path / "a.jsonl", {"conversations": turns})
    (sample,) = rows_of(path, model="gpt-4")
    assert (sample.generators, sample.origin.model) == (("gpt-4",), "gpt-4")


def test_the_license_of_a_card_with_a_comment_or_without_a_value(tmp_path: Path) -> None:
    lines(tmp_path / "train.jsonl", RIVERS)
    for text, license in (("mit  # see LICENSE", "MIT"), ("null", None), ("[mit, cc0-1.0]", "MIT")):
        (tmp_path / "README.md").write_text(f"\ufeff---\nlicense: {text}\n---\n", encoding="utf-8")
        if license is None:
            with pytest.raises(InputError):
                list(read(tmp_path))
        else:
            assert [s.license for s in read(tmp_path)] == [license]


MORE_DISTINCT = [
    ("Write A ∪ B as a set of numbers.", "Write A ∩ B as a set of numbers."),
    ("Complete: return first + second here", "Complete: return first - second here"),
    ("Explain what 5! means in this text.", "Explain what 5 means in this text."),
    ("Loop while count < limit and print it.", "Loop while count > limit and print it."),
    ("Is it True that water is wet here?", "Is it False that water is wet here?"),
    ("What is three times seven in total?", "What is three times eight in total?"),
    ("Γιατί ο ουρανός είναι μπλε σήμερα;", "Γιατί ο ουρανός δεν είναι μπλε σήμερα;"),
    ("Apakah langit biru hari ini di sana?", "Apakah langit tidak biru hari ini di sana?"),
]
MORE_SAME = [
    ("Name 1,000 words of this text now.", "Name 1000 words of this text now."),
    ("Compute 3 × 5 and then add 7 to it.", "Compute 3 * 5 and then add 7 to it."),
    ("Compute 12 − 5 and then add 7 to it.", "Compute 12 – 5 and then add 7 to it."),
    ("Name १० animals that live in a forest.", "Name 10 animals that live in a forest."),
]


@pytest.mark.parametrize(("a", "b"), MORE_DISTINCT)
def test_operators_between_words_and_negations_of_more_languages(a: str, b: str) -> None:
    assert not may_be_duplicates(distinctions(a), distinctions(b), ordered=True)


@pytest.mark.parametrize(("a", "b"), MORE_SAME)
def test_numbers_and_operators_in_other_forms_are_equal(a: str, b: str) -> None:
    assert may_be_duplicates(distinctions(a), distinctions(b), ordered=True)


@pytest.mark.timeout(60)
def test_a_long_line_of_signs_is_read_once() -> None:
    """It took hours when every run of signs was tried from each of its places."""
    for text in ("=" * 400_000, "|-" * 200_000, "x\n" + "-+" * 200_000):
        assert distinctions(text).negations == 0


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "tag", ["<tool_call>", "<tool_response>", "<tools>", "# Tools ", "<think>"]
)
def test_many_tags_that_are_not_closed_are_read_once(tmp_path: Path, tag: str) -> None:
    text = tag * (900_000 // len(tag))
    messages = [{"role": r, "content": text} for r in ("system", "user", "assistant")]
    (sample,) = rows_of(lines(tmp_path / "a.jsonl", {"messages": messages}))
    assert sample.output == text.rstrip() or tag == "# Tools "


def test_frames_in_scripts_without_spaces(tmp_path: Path) -> None:
    prompts = ("法国的首都是哪里？", "フランスの首都はどこですか？")
    bench = lines(tmp_path / "b.jsonl", *({"question": p} for p in prompts))
    contamination = Contamination(against=(str(bench),))
    for text in ("德国的首都是哪里？", "イタリアの首都はどこですか？"):
        assert contamination.reason(Sample(text, output="x")) is None
    for text in prompts:
        assert contamination.reason(Sample(text, output="x")) is not None


def test_feedback_rows_with_opposite_labels_are_not_duplicates() -> None:
    rows = [Sample("A?", output="B.", label=label) for label in (True, False, True)]
    assert [s.label for s in deduplicate(rows, ["exact"]).kept] == [True, False]


def test_feedback_is_not_evaluated_and_not_a_seed(tmp_path: Path) -> None:
    row = {"prompt": "A?", "completion": "B.", "label": False}
    path = lines(tmp_path / "a.jsonl", row)
    with pytest.raises(InputError, match="feedback"):
        instructgen.generate(path, 1, tmp_path / "run", engine="echo", license="MIT")
    data = import_data(path, tmp_path / "data", license="MIT")
    with pytest.raises(InputError, match="feedback"):
        instructgen.evaluate("smollm2", data=data.out)


def test_a_report_on_preferences_with_tool_calls(tmp_path: Path) -> None:
    call = {"function": {"name": "get", "arguments": "{}"}}
    better = {"role": "assistant", "content": "B.", "tool_calls": [call]}
    row = {"prompt": [USER], "chosen": [better], "rejected": [NO]}
    data = import_data(lines(tmp_path / "a.jsonl", row), tmp_path / "data", license="MIT")
    assert instructgen.report(data.out, tmp_path / "r.html").bytes > 1_000


def test_large_integers_in_arguments_are_exported(tmp_path: Path) -> None:
    call = {"function": {"name": "get", "arguments": '{"x": 123456789012345678901234567890}'}}
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
    data = import_data(
        lines(tmp_path / "a.jsonl", {"messages": messages}), tmp_path / "d", license="MIT"
    )
    for name in ("trl", "openai"):
        export(data.out, tmp_path / f"{name}.jsonl", format=name)
        assert "123456789012345678901234567890" in (tmp_path / f"{name}.jsonl").read_text()


# -- personal data (K25) ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("the sequence 1 1 2 3 5 8 13 21 34", None),
        ("pi is 3.14159265358979", None),
        ("years 1914-1918 and 1939-1945", None),
        ("sum 1234567890 + 9876543210", None),
        ("git@github.com:me/repo.git", None),
        ("ISBN 978-3-16-148410-0", None),
        ("mac 00:1B:44:11:3A:B7", None),
        # A number that was printed in advertisements; it is nobody's.
        ("SSN 078-05-1120", None),
        ("SSN 219-09-9998", "SSN [SSN]"),
        ("IBAN DE89370400440532013000", "IBAN [IBAN]"),
        ("تلفن ۰۹۱۲۳۴۵۶۷۸۹", "تلفن [PHONE]"),
        ("call +1 (415) 555-2671 now", "call [PHONE] now"),
    ],
)
def test_only_personal_data_is_masked(text: str, masked: str | None) -> None:
    assert Pii().change(text, "output")[0] == (masked or text)
