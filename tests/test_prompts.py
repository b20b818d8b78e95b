"""Tests of prompts and parsers: complete in every language, and safe with text from data."""

from __future__ import annotations

import tomllib
import unicodedata
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import instructgen.generation.prompts as prompts
from instructgen.generation.prompts import (
    Instance,
    Template,
    languages,
    one_line,
    parse_json,
    parse_numbered,
)
from instructgen.schema.sample import Sample
from instructgen.similarity.scripts import fits_language

TEMPLATES = Path(prompts.__file__).parent / "templates"
ALL = languages()
HOSTILE = "{count} {demonstrations} {{7*7}} ${HOME} {0.__class__} \\1 %s"


def texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in texts(v)]
    return [t for v in value for t in texts(v)] if isinstance(value, list) else []


def test_numbers_of_worked_examples_equal_the_paper() -> None:
    worked = tomllib.loads((TEMPLATES / "en.toml").read_text())["worked"]
    assert len(worked["classification"]) == 31
    assert sum(w["yes"] for w in worked["classification"]) == 12
    assert len(worked["input_first"]) == 11
    assert len(worked["output_first"]) == 16
    assert sum(len(w["examples"]) for w in worked["output_first"]) == 34


@pytest.mark.parametrize("language", ALL)
def test_each_template_is_complete(language: str) -> None:
    english = tomllib.loads((TEMPLATES / "en.toml").read_text())
    loaded = tomllib.loads((TEMPLATES / f"{language}.toml").read_text())
    for table in ("labels", "completion", "chat", "plain", "json"):
        assert loaded[table].keys() == english[table].keys()
    for key, value in english["chat"].items():
        find = prompts._PLACEHOLDER.findall
        assert sorted(find(loaded["chat"][key])) == sorted(find(value))
    labels = list(loaded["labels"].values())
    assert len(set(labels)) == len(labels)
    assert all(unicodedata.is_normalized("NFC", t) for t in texts(loaded))
    assert any(w["yes"] for w in loaded["worked"]["classification"])
    assert not all(w["yes"] for w in loaded["worked"]["classification"])


@pytest.mark.parametrize("language", ALL)
def test_prompts_are_in_their_language(language: str) -> None:
    t = Template(language)
    sample = Sample(t._texts["worked"]["input_first"][0]["instruction"], "", "1")
    rendered = [
        t.instructions_completion([sample.instruction]),
        t.classification_completion(sample.instruction),
        t.input_first_completion(sample.instruction),
        t.output_first_completion(sample.instruction),
        t.triples_completion([sample], 4),
        *(m.content for m in t.instructions_chat([sample.instruction], 7, True)),
        *(m.content for m in t.classification_chat(sample.instruction, False)),
        *(m.content for m in t.instances_chat(sample.instruction, 5, True, output_first=True)),
        *(m.content for m in t.triples_chat([sample], 4, False)),
    ]
    for prompt in rendered:
        assert fits_language(prompt, language)


@pytest.mark.parametrize("language", ALL)
def test_parsers_read_the_format_of_the_worked_examples(language: str) -> None:
    t = Template(language)
    for task in t._texts["worked"]["input_first"]:
        shown = t._examples(task["examples"])
        assert t.parse_input_first(shown) == [
            Instance(e["input"], e["output"].strip()) for e in task["examples"]
        ]
    label, input_ = t.labels["class_label"], t.labels["input"]
    for task in t._texts["worked"]["output_first"]:
        shown = "\n".join(
            f"{label}: {e['label']}\n{input_}: {e['input']}" for e in task["examples"]
        )
        assert t.parse_output_first(shown) == [
            Instance(e["input"], e["label"]) for e in task["examples"]
        ]
    samples = [Sample("Do a thing well", "", "Yes."), Sample("Do more", "a\nb", "c\n\nd")]
    shown = t._triples(samples).split(":", 1)[1]
    assert t.parse_triples(shown) == [
        ("Do a thing well", Instance("", "Yes.")),
        ("Do more", Instance("a\nb", "c\n\nd")),
    ]


@pytest.mark.parametrize("language", ALL)
def test_only_a_clear_yes_counts_as_yes(language: str) -> None:
    t = Template(language)
    yes, no = t.labels["yes"], t.labels["no"]
    assert t.is_yes(f" {yes}.")
    assert t.is_yes(yes.upper())
    for unclear in (no, "", "...", f"maybe {yes}", "\n"):
        assert not t.is_yes(unclear)


def test_prompts_name_a_language_that_has_no_template() -> None:
    t = Template("de")
    assert not t.native
    assert "de" in t.instructions_completion(["Schreibe ein Gedicht."])
    assert "de" in t.instructions_chat(["Schreibe ein Gedicht."], 7, False)[0].content


def test_placeholders_in_data_are_not_filled() -> None:
    t = Template("en")
    sample = Sample(HOSTILE, HOSTILE, HOSTILE)
    for prompt in (
        t.instructions_completion([HOSTILE]),
        t.instructions_chat([HOSTILE], 7, True)[0].content,
        t.classification_chat(HOSTILE, True)[0].content,
        t.instances_chat(HOSTILE, 5, False, output_first=False)[0].content,
        t.triples_completion([sample], 4),
        t.triples_chat([sample], 4, True)[0].content,
    ):
        assert HOSTILE in prompt


# -- numbered lists -------------------------------------------------------------------


def test_a_numbered_list_in_the_format_of_the_paper_is_parsed() -> None:
    text = " Write a haiku.\n10. Name  three\n   rivers:\n11. Explain NASA's Apollo in 2016.\n"
    assert parse_numbered(text, 15) == [
        "Write a haiku.",
        "Name three rivers",
        "Explain NASA's Apollo in 2016.",
    ]


def test_only_the_first_letter_becomes_a_capital() -> None:
    assert parse_numbered(" explain NASA's Apollo", 15) == ["Explain NASA's Apollo"]


def test_a_number_inside_a_sentence_does_not_end_the_list() -> None:
    text = " Say what happened in 2016. Be brief.\n10. Count to 16. Then stop.\n16. Not this."
    assert parse_numbered(text, 15) == [
        "Say what happened in 2016. Be brief.",
        "Count to 16. Then stop.",
    ]


@given(st.lists(st.text(alphabet="abcdef ghi,?", min_size=1), max_size=7))
def test_numbered_items_are_parsed_back(items: list[str]) -> None:
    expected = [one_line(i) for i in items if i.strip()]
    expected = [e[:1].upper() + e[1:] for e in expected if e]
    shown = "\n".join(f"{n}. {t}" for n, t in enumerate(items, start=9)).removeprefix("9.")
    assert parse_numbered(shown, 15) == expected


# -- instances --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "instances"),
    [
        ("Output: Paris.", [("", "Paris.")]),
        ("Input: France\nOutput: Paris.", [("France", "Paris.")]),
        ("Input: a\nOutput: b\nInput: c\nOutput: d", [("a", "b"), ("c", "d")]),
        (
            "Example 1\nInput: a\nOutput: b\n\nExample 2\nInput: c\nOutput: d",
            [("a", "b"), ("c", "d")],
        ),
        ("Passage: a\nb\nOutput: c", [("Passage: a\nb", "c")]),
        ("Output: b\nOutput: b\nOutput: b", [("", "b")]),
        ("Input: (none)\nOutput: x", [("", "x")]),
        ("Input: a\nOutput: b\n\nTask: Another.\nOutput: c", [("a", "b")]),
        ("Output:", [("", "")]),
        ("Input: only", [None]),
        ("", []),
        ("The output: is inside a line", [None]),
        ("Input: a\nOutput: b\n\nExample 2\nInput: cut he", [("a", "b"), None]),
    ],
)
def test_instances_with_input_before_output_are_parsed(
    text: str, instances: list[tuple[str, str]]
) -> None:
    assert Template("en").parse_input_first(text) == [i and Instance(*i) for i in instances]


@pytest.mark.parametrize(
    ("text", "instances"),
    [
        ("Class label: good\nInput: Fine.", [("Fine.", "good")]),
        ("Class label: a\nInput: x\ny\nClass label: b\nInput: z", [("x\ny", "a"), ("z", "b")]),
        ("Class label: alone", [("", "alone")]),
        ("Sentence first.\nClass label: a\nInput: x", [("x", "a")]),
        ("nothing", []),
        (
            "Example 1\nClass label: a\nInput: x\nExample 2\nClass label: b\nInput: y",
            [("x", "a"), ("y", "b")],
        ),
    ],
)
def test_instances_with_label_before_input_are_parsed(
    text: str, instances: list[tuple[str, str]]
) -> None:
    assert Template("en").parse_output_first(text) == [Instance(*i) for i in instances]


@given(
    st.text(alphabet=st.sampled_from("Task: Input:\nOutput: Example 12. Class label: ###(none)"))
)
def test_parsers_accept_any_text(text: str) -> None:
    t = Template("en")
    for instance in filter(None, (*t.parse_input_first(text), *t.parse_output_first(text))):
        assert instance.input == instance.input.strip()
        assert instance.output == instance.output.strip()
    t.parse_triples(text)
    parse_numbered(text, 15)


def test_only_a_list_under_the_key_is_parsed_from_json() -> None:
    assert parse_json('{"tasks": ["a"]}', "tasks") == ["a"]
    for bad in ('{"tasks": "a"}', '["a"]', '{"tasks": ["a"', "null", '{"task": []}', ""):
        assert parse_json(bad, "tasks") == []


ITEMS = st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3), max_size=4)


@given(ITEMS, st.data())
def test_complete_items_are_parsed_from_truncated_json(items: list, data: st.DataObject) -> None:
    text = orjson.dumps({"tasks": items}).decode()
    cut = text[: data.draw(st.integers(0, len(text)))]
    parsed = parse_json(cut, "tasks", cut=True)
    if not cut.startswith('{"tasks":['):
        assert parsed == []
        return
    assert parsed[-1] is None
    complete = parsed[:-1]
    assert complete == items[: len(complete)]
    # Every item that is followed by a comma is returned.
    assert len(complete) >= sum(
        cut.startswith('{"tasks":[' + ",".join(orjson.dumps(i).decode() for i in items[:n]) + ",")
        for n in range(1, len(items) + 1)
    )


def test_numbers_inside_an_output_are_kept() -> None:
    text = " cook pasta\n4. Input: (none)\n4. Output: 1. Boil water\n2. Add pasta\n3.14 is pi\n2020. was"
    (triple,) = Template("en").parse_triples(text)
    assert triple is not None
    assert triple[1].output == "1. Boil water\n2. Add pasta\n3.14 is pi\n2020. was"


@pytest.mark.parametrize("name", ["../../filters/default", "x" * 300, "", "EN", "en.toml"])
def test_a_language_name_from_data_is_not_used_as_a_path(name: str) -> None:
    assert not Template(name).native
