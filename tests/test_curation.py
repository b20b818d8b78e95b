"""Tests of curation: filters by example, planted contamination, and the command `curate`."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgen import curate, dedup, explain, import_data, merge
from instructgen.errors import ConfigError, InputError, RunError
from instructgen.filters import Filter, evaluate_block
from instructgen.filters.clean import Clean
from instructgen.filters.contamination import Contamination, benchmark_prompts
from instructgen.filters.curation import Curation
from instructgen.filters.diversity import Diversity
from instructgen.filters.duplicate import Duplicate
from instructgen.filters.label import LabelFilter
from instructgen.filters.language import Language, identify
from instructgen.filters.length import Length
from instructgen.filters.novelty import Novelty
from instructgen.filters.pii import Pii
from instructgen.filters.recipe import load_filters
from instructgen.filters.repetition import Repetition
from instructgen.filters.score import ScoreFilter
from instructgen.filters.size import Size
from instructgen.filters.topic import Topic
from instructgen.formats import read
from instructgen.schema.arrow import samples_in, table_of
from instructgen.schema.messages import Message
from instructgen.schema.sample import Label, Sample, Score
from instructgen.similarity import tokenize
from instructgen.store import read_rows, read_samples, splits_of, write_dataset
from tests.conftest import ROOT, real


def reasons(f: Filter, *samples: Sample) -> list[str | None]:
    return [v.rejection and v.rejection.reason for v in f.evaluate(samples)]


def dataset(folder: Path, samples: list[Sample]) -> Path:
    write_dataset(folder, samples, [], lambda _: "")
    return folder


def recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


# -- transforms ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("He landed in 1969.[42] It is far.[3][a]", "He landed in 1969. It is far."),
        ("It is so [citation needed].", "It is so."),
        ("See [1] and [2] in the list.", "See [1] and [2] in the list."),
        ("x = a[0] + b[1]", "x = a[0] + b[1]"),
        ("```\nrow[12]\n```", "```\nrow[12]\n```"),
    ],
)
def test_clean_removes_citation_marks_but_not_code(before: str, after: str) -> None:
    (verdict,) = Clean().evaluate([Sample("Sum it up.", before, "Done.")])
    assert verdict.sample.input == after
    assert bool(verdict.sample.edits) == (before != after)


def test_clean_removes_chat_phrases_and_web_addresses() -> None:
    output = "Sure! Here is a list:\n\n- oak\n- elm\n\nI hope this helps!\nLet me know if not."
    (verdict,) = Clean(urls="remove").evaluate([Sample("List trees.", output=output)])
    assert verdict.sample.output == "- oak\n- elm"
    assert verdict.sample.edits[0].filter == "clean"
    text = "See [the docs](https://a.example/b_(c)) or www.x.example."
    assert Clean(urls="mask").change(text, "input")[0].startswith("See the docs")
    (only,) = Clean().evaluate([Sample("Greet.", output="Sure! Here you are.")])
    assert only.rejection is None


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to joe.b+x@mail.example.co.uk now", "Write to [EMAIL] now"),
        ("Call +44 20 7946 0958 today", "Call [PHONE] today"),
        ("Call (212) 555-2368 today", "Call [PHONE] today"),
        ("Pay with 4111 1111 1111 1111 now", "Pay with [CARD] now"),
        ("Pay with 4111 1111 1111 1112 now", "Pay with 4111 1111 1111 1112 now"),
        ("Ping 8.8.8.8 or 192.168.0.1", "Ping [IP] or 192.168.0.1"),
        ("Ping 2001:4860:4860::8888 at 12:30:45", "Ping [IP] at 12:30:45"),
        ("Use AKIAIOSFODNN7EXAMPLE", "Use [KEY]"),
        ("From 1939-1945 some 70,000,000 died; pi is 3.14159265358979", None),
        ("On 2023-01-15 at 10:20:30, version 1.2.3.4.5, ISBN 978-3-16-148410-0", None),
        ("a @ b, me@home", None),
    ],
)
def test_pii_masks_or_rejects(text: str, masked: str | None) -> None:
    (verdict,) = Pii().evaluate([Sample("Do it.", text, "Done.")])
    assert verdict.sample.input == (masked or text)
    assert reasons(Pii(action="reject"), Sample("Do it.", text, "x")) == [
        "personal_data" if masked and masked != text else None
    ]


@given(st.text(max_size=300))
def test_masking_twice_changes_nothing(text: str) -> None:
    once = Pii().change(text, "input")[0]
    assert Pii().change(once, "input")[0] == once


# -- row filters ----------------------------------------------------------------------


def test_language_of_instruction_and_output() -> None:
    german = "Schreibe bitte ein kurzes Gedicht über den Regen in der großen Stadt."
    english = "Write a short poem about the rain in the big city, please."
    rows = [
        Sample(german, language="en"),
        Sample(english, language="en"),
        Sample(english, output=german, language="en"),
        Sample("Ja", language="en"),
        Sample(german, language="und"),
    ]
    expected = ["wrong_language", None, "wrong_language", None, None]
    assert reasons(Language(), *rows) == expected
    assert reasons(Language(allowed=("de",)), rows[4], rows[1]) == [None, "wrong_language"]


def test_the_language_of_real_prompts_is_identified() -> None:
    correct = count = 0
    for code in ("en", "fr", "ja", "es"):
        lines = real(f"ifeval/{code}_input_data.jsonl").read_bytes().splitlines()
        guesses = identify([orjson.loads(line)["prompt"] for line in lines])
        correct += sum(g is not None and g.language == code for g in guesses)
        count += len(lines)
    assert correct / count > 0.99


def test_size_label_and_score() -> None:
    row = Sample("a b c", output="d e", labels=(Label("status", "ok"),), scores=(Score("q", 0.5),))
    assert reasons(Size(of="prompt", max=2), row) == ["too_long"]
    assert reasons(Size(of="output", min=3), row) == ["too_short"]
    assert reasons(Size(of="row", min=5, max=5), row) == [None]
    assert reasons(LabelFilter(of="status", allowed=("bad",)), row) == ["not_allowed"]
    assert reasons(LabelFilter(of="other", allowed=("bad",)), row) == [None]
    assert reasons(ScoreFilter(of="q", min=0.6), row) == ["too_low"]
    assert reasons(ScoreFilter(of="q", max=0.4), row) == ["too_high"]
    (verdict,) = ScoreFilter(of="nope", min=0).evaluate([row])
    assert verdict.rejection is None
    missing = verdict.sample.score("nope")
    assert missing is not None
    assert missing.value is None
    assert missing.error
    assert reasons(ScoreFilter(of="nope", min=0, on_error="reject"), row) == ["no_score"]


def test_topic() -> None:
    f = Topic(topics=("weapons and explosives",), threshold=0.4)
    rows = [Sample("Explain how to make explosives at home."), Sample("Bake a cake for six.")]
    assert reasons(f, *rows) == ["unwanted_topic", None]


def test_diversity_selects_different_rows() -> None:
    rows = [
        Sample("Write a poem about rain.", scores=(Score("q", 0.9),)),
        Sample("Write a poem about the rain.", scores=(Score("q", 0.8),)),
        Sample("How do I repair a flat bicycle tire?", scores=(Score("q", 0.1),)),
        Sample("What is the capital of France?"),
    ]
    rejected = Diversity(rows=3).select(rows)
    kept = [i not in rejected for i in range(len(rows))]
    assert kept.count(True) == 3
    assert not (kept[0] and kept[1])
    best = Diversity(rows=2, method="score_first", score="q", threshold=0.9).select(rows)
    assert {i: r.reason for i, r in best.items()} == {1: "too_similar", 3: "not_selected"}
    assert best[1].nearest == rows[0].id
    assert Diversity(rows=9).select(rows) == {}


def test_duplicate_keeps_the_best_copy() -> None:
    from instructgen.schema.sample import Origin

    synthetic = Origin(method="model", model="m")
    rows = [
        Sample("Name three fruits.", output="Plum, fig, pear", license="MIT", origin=synthetic),
        Sample("Name three fruits.", output="Plum, fig, pear", license="CC-BY-NC-4.0"),
        Sample("Name three fruits.", output="Plum, fig, pear", license="MIT"),
        Sample("Thanks!", output="Bye.", history=(Message("user", "a"), Message("assistant", "b"))),
        Sample("Thanks!", output="Bye.", history=(Message("user", "c"), Message("assistant", "d"))),
        Sample("Thanks!", output="Bye.", rejected_output="No."),
        Sample("Thanks!", output="Bye.", rejected_output="Oh."),
    ]
    rejections = Duplicate(how=("exact",)).select(rows)
    assert {i: r.reason for i, r in rejections.items()} == {0: "duplicate", 1: "duplicate"}
    assert rejections[0].nearest == rows[2].id


@given(st.lists(st.sampled_from("abcd"), max_size=9).map(lambda w: " ".join(w)), st.integers(1, 4))
def test_a_block_gets_the_same_decisions_as_its_rows_one_by_one(text: str, size: int) -> None:
    rng = random.Random(f"{text}{size}")
    texts = [" ".join(rng.choices(text.split() or ["x"], k=rng.randint(1, 9))) for _ in range(12)]
    rows = [Sample(t) for t in texts]

    def one_by_one() -> list[str | None]:
        filters = [Novelty(threshold=0.6), Novelty(threshold=0.9)]
        details: list[str | None] = []
        for row in rows:
            (rejection,) = evaluate_block(filters, [row])
            if rejection is None:
                for f in filters:
                    f.remember(row)
            details.append(None if rejection is None else rejection.detail)
        return details

    def in_blocks() -> list[str | None]:
        filters = [Novelty(threshold=0.6), Novelty(threshold=0.9)]
        details: list[str | None] = []
        for at in range(0, len(rows), size):
            block = rows[at : at + size]
            for row, rejection in zip(block, evaluate_block(filters, block), strict=True):
                if rejection is None:
                    for f in filters:
                        f.remember(row)
                details.append(None if rejection is None else rejection.detail)
        return details

    assert in_blocks() == one_by_one()


# -- contamination -----------------------------------------------------------------------


def test_contamination_rejects_prompts_but_not_shared_frames(tmp_path: Path) -> None:
    path = tmp_path / "bench.jsonl"
    prompts = [
        "What is a tortoise?",
        "Write a haiku about the first snow on a quiet mountain temple.",
        "Tom has 48 marbles and gives a third of them to his sister Ann. How many are left?",
    ]
    path.write_bytes(b"".join(orjson.dumps({"question": p}) + b"\n" for p in prompts))
    f = Contamination(against=(str(path),))
    rows = [
        Sample("WHAT IS A TORTOISE"),
        Sample("What is a lilium?"),
        Sample("Please write a haiku about the first snow on a quiet, old mountain temple!"),
        Sample("Write a haiku about the last train in a noisy city."),
        Sample("Solve it.", f"Here it comes. {prompts[2]} Think well.", "32"),
        Sample("Make up a puzzle.", output=prompts[2]),
        Sample("Tom has a sister. How many are left?"),
        Sample("Go on.", history=(Message("user", prompts[1]), Message("assistant", "ok"))),
        Sample(""),
    ]
    verdicts = f.evaluate(rows)
    assert [v.rejection and v.rejection.reason for v in verdicts] == [
        "equal_prompt",
        None,
        "prompt_words",
        None,
        "prompt_ngrams",
        "equal_prompt",
        None,
        "equal_prompt",
        None,
    ]
    assert verdicts[4].rejection is not None
    assert verdicts[4].rejection.nearest == "bench.jsonl row 3"
    only_prompt = Contamination(against=(str(path),), look_in="prompt")
    assert reasons(only_prompt, rows[5]) == [None]
    meaning = Contamination(against=(str(path),), cosine=0.6)
    assert reasons(meaning, Sample("Compose a haiku on early snowfall at a mountain shrine")) == [
        "prompt_meaning"
    ]


def test_benchmark_prompts_are_read_from_any_known_field() -> None:
    counts = {
        "mt-bench/question.jsonl": 160,
        "mt-bench/vicuna_question.jsonl": 80,
        "gsm8k/test.jsonl": 1319,
        "humaneval/HumanEval.jsonl.gz": 164,
        "ifeval/en_input_data.jsonl": 541,
        "self-instruct/user_oriented_instructions.jsonl": 252,
    }
    assert {name: len(benchmark_prompts(real(name))) for name in counts} == counts


@pytest.mark.slow
def test_planted_contamination_is_found() -> None:
    rng = random.Random(0)
    files = ("mt-bench/question.jsonl", "gsm8k/test.jsonl")
    f = Contamination(against=tuple(str(real(name)) for name in files))
    dolly = [
        s for s in read(real("dolly/databricks-dolly-15k.rejoined.jsonl")) if isinstance(s, Sample)
    ]
    texts = [p.text for path in f.files() for p in benchmark_prompts(path)]
    flagged = sum(v.rejection is not None for v in f.evaluate(dolly))
    outputs = [s.output for s in dolly if 60 < len(s.output.split()) < 200]
    kinds = {
        "verbatim": lambda t: t,
        "case": lambda t: t.upper() if rng.random() < 0.5 else t.swapcase(),
        "embedded": lambda t: f"{rng.choice(outputs)}\n\n{t}\n\n{rng.choice(outputs)}",
    }
    for plant in kinds.values():
        found = sum(v.rejection is not None for v in f.evaluate([Sample(plant(t)) for t in texts]))
        assert found / len(texts) >= 0.99
        assert found / (found + flagged) >= 0.99


def test_an_unusable_benchmark_file_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"color": "red"}\n')
    with pytest.raises(InputError) as caught:
        Contamination(against=(str(path),)).evaluate([Sample("x")])
    assert caught.value.path == path
    # The hint lists the known fields.
    assert "question" in caught.value.hint
    path.write_text('{"question": "Why?"}\n{"color": "red"}\n')
    with pytest.raises(InputError) as caught:
        Contamination(against=(str(path),)).evaluate([Sample("x")])
    assert (caught.value.path, caught.value.line) == (path, 2)
    missing = tmp_path / "b.jsonl"
    with pytest.raises(InputError) as caught:
        Contamination(against=(str(missing),)).evaluate([Sample("x")])
    assert caught.value.path == missing


# -- the command ------------------------------------------------------------------------


def test_functions_of_a_benchmark_are_found_by_name(tmp_path: Path) -> None:
    rows = [
        {"task_id": "a", "prompt": 'def halve(x):\n    """Return half of x."""\n'},
        {"task_id": "b", "prompt": "def inner(): ...\n\n\ndef outer(y):\n    pass\n"},
    ]
    path = tmp_path / "bench.jsonl"
    path.write_text("".join(f"{orjson.dumps(row).decode()}\n" for row in rows))
    named = Contamination(against=(str(path),), function_names=True)
    by_text = Contamination(against=(str(path),))
    code = "```python\ndef {name}(number):\n    return number / 2\n```"
    for name, found in (("halve", True), ("outer", True), ("halves", False)):
        sample = Sample("Write a function for a recipe.", output=code.format(name=name))
        reason = named.reason(sample)
        assert (reason is not None and reason.reason == "function_name") == found
        assert by_text.reason(sample) is None
    # To call a function is not to define it.
    assert named.reason(Sample("Call it.", output="Use halve(3).")) is None


def merged_real_data(tmp_path: Path) -> Path:
    """A fourth of Dolly, the best paths of OASST1, and Alpaca Libre v1."""
    lines = real("dolly/databricks-dolly-15k.rejoined.jsonl").read_bytes().splitlines(True)
    (tmp_path / "dolly.jsonl").write_bytes(b"".join(lines[::4]))
    folders = []
    for name, path in (
        ("dolly", tmp_path / "dolly.jsonl"),
        ("oasst", real("oasst1/oasst1-en-validation.messages.jsonl")),
        ("libre", real("alpaca-libre/alpaca_libre_tasks_v1.jsonl")),
    ):
        folders.append(import_data(path, tmp_path / name).out)
    return merge(folders, tmp_path / "mix").out


# The number of rows that each recipe keeps, by source.
KEPT = {
    "alpaca": {"alpaca-libre": 1313, "dolly": 3178, "oasst": 172},
    "default": {"alpaca-libre": 1320, "dolly": 3167, "oasst": 163},
    "multilingual": {"alpaca-libre": 1400, "dolly": 3340, "oasst": 180},
    "self_instruct": {"alpaca-libre": 1317, "dolly": 3212, "oasst": 173},
    "strict": {"alpaca-libre": 1144, "dolly": 3718, "oasst": 172},
}


@pytest.mark.slow
def test_recipes_keep_known_numbers_of_real_rows(tmp_path: Path) -> None:
    data = merged_real_data(tmp_path)
    kept = {}
    for name in KEPT:
        result = curate(data, tmp_path / name, recipe=name)
        assert result.rows + result.rejected == 6316
        kept[name] = dict(sorted(Counter(s.source for s in read_samples(result.out)).items()))
        assert sum(r.count for r in result.rejections) == result.rejected
    assert kept == KEPT
    prefs = import_data(
        real("oasst1/oasst1-en-validation.messages.jsonl"), tmp_path / "prefs", shape="preferences"
    )
    assert curate(prefs.out, tmp_path / "p", recipe="preference").rows == 995


def test_every_shipped_recipe_loads() -> None:
    names = {path.stem for path in (ROOT / "filters").glob("*.toml")}
    assert names >= {"self_instruct", "alpaca", "default", "strict", "preference", "multilingual"}
    for name in names:
        assert load_filters(name)


def rows_of(count: int) -> list[Sample]:
    verbs = "Describe Explain List Compare Translate Summarize".split()
    return [
        Sample(
            f"{verbs[i % 6]} the object number {i * 7919} in the old house by the sea.",
            output="An answer [3]. " * (1 + i % 3),
            source="ab"[i % 2],
            license="MIT",
            language="en",
            scores=(Score("quality", i / count),),
        )
        for i in range(count)
    ]


RECIPE = """
[[filters]]
name = "novelty"
[[filters]]
name = "clean"
[[filters]]
name = "score"
of = "quality"
min = 0.25
[[filters]]
name = "duplicate"
how = ["exact"]
[[filters]]
name = "length"
max_words = 13
"""


def test_curate_explains_every_row(tmp_path: Path) -> None:
    data = dataset(tmp_path / "d", rows_of(60))
    result = curate(data, tmp_path / "c", recipe=recipe(tmp_path, RECIPE))
    assert result.rows + result.rejected == 60 == result.facts.read
    assert result.facts.filters == ("clean", "score", "novelty", "duplicate", "length")
    assert sum(r.count for r in result.facts.by_source) == result.rejected
    ids = [s.id for s in read_samples(result.out)]
    rejected = list(read_rows(result.out, "rejected"))
    for row in rejected:
        if row["reason"] == "too_similar":
            assert row["nearest"] in ids
            assert row["score"] > 0.7
    low = next(row for row in rejected if row["reason"] == "too_low")
    rejected_row = explain(result.out, low["id"])
    assert rejected_row.passed == ("clean",)
    assert rejected_row.verdict == "rejected"
    assert rejected_row.row["edits"][0]["filter"] == "clean"
    kept = explain(result.out, ids[0])
    assert kept.verdict == "kept"
    assert kept.passed == ("clean", "score", "novelty", "duplicate", "length")
    assert any("MIT" in sentence for sentence in kept.obligations)
    with pytest.raises(InputError, match="0" * 16) as caught:
        explain(result.out, "0" * 16)
    assert caught.value.path == result.out
    card = (result.out / "README.md").read_text()
    assert "| score: too_low |" in card
    sides = {(row.filter, row.side) for row in result.facts.borderline}
    assert {("score", "kept"), ("score", "rejected"), ("novelty", "rejected")} <= sides
    values = [row.value for row in result.facts.borderline if row.filter == "score"]
    assert all(abs(v - 0.25) < 0.1 for v in values)


def test_rows_store_the_values_that_filters_compared(tmp_path: Path) -> None:
    data = dataset(tmp_path / "d", rows_of(60))
    filters = [
        {"name": "size", "of": "output", "max": 5},
        {"name": "repetition"},
        {"name": "length", "max_words": 13},
    ]
    result = curate(data, tmp_path / "c", recipe={"filters": filters})
    assert result.rows and result.rejected
    for row in read_rows(result.out):
        values = {v["filter"]: v["value"] for v in row["filter_values"]}
        assert values["size/output"] == len(tokenize(row["output"]))
        assert values["length"] == len(tokenize(row["instruction"]))
    # The filters after the one that rejects a row do not evaluate it.
    order = ("size", "repetition", "length")
    for row in read_rows(result.out, "rejected"):
        names = [v["filter"].partition("/")[0] for v in row["filter_values"]]
        assert not set(names) & set(order[order.index(row["filter"]) + 1 :])
        assert row["filter_values"][-1]["value"] == row["score"]
    # Another curation replaces a value of the same filter.
    again = curate(result.out, tmp_path / "again", recipe={"filters": filters[2:]})
    row = next(read_rows(again.out))
    assert [v["filter"] for v in row["filter_values"]].count("length") == 1
    lines = [*explain(again.out, row["id"]).lines()]
    assert any(line.startswith("values of filters  ") for line in lines)
    # Stored rows without the column, from an earlier version, have no values.
    batch = table_of([*read_samples(again.out)], "instructions").drop_columns(["filter_values"])
    assert {sample.filter_values for sample in samples_in(batch)} == {()}


def test_curating_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    data = dataset(tmp_path / "d", rows_of(60))
    path = recipe(tmp_path, RECIPE)
    first, second = (curate(data, tmp_path / n, recipe=path).out for n in ("c", "x/c"))
    for file in sorted(p for p in first.rglob("*") if p.is_file()):
        assert file.read_bytes() == (second / file.relative_to(first)).read_bytes()


def test_rows_stay_in_their_split(tmp_path: Path) -> None:
    data = dataset(tmp_path / "d", rows_of(60))
    mix = tmp_path / "mix.toml"
    mix.write_text("[split]\nvalidation = 0.2\ntest = 0.1\n")
    merged = merge([data], tmp_path / "m", recipe=mix)
    result = curate(merged.out, tmp_path / "c", recipe=recipe(tmp_path, RECIPE))
    splits = splits_of(merged.out)
    assert len(splits) > 1
    before = {s: [r.origin for r in read_samples(merged.out, split=s)] for s in splits}
    for split in splits_of(result.out):
        kept = list(read_samples(result.out, split=split))
        assert all(row.origin in before[split] for row in kept)
    assert sum(len(list(read_samples(result.out, split=s))) for s in splits_of(result.out)) == (
        result.rows
    )


def test_scores_are_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_sizes: list[int] = []

    def losses(self: object, questions: list[str], answers: list[str]) -> list[object]:
        from instructgen.models.likelihood import Loss

        batch_sizes.append(len(answers))
        return [Loss(float(len(a)) / 50) for a in answers]

    monkeypatch.setattr(
        "instructgen.filters.perplexity.language_model",
        lambda name: type("Model", (), {"losses": losses})(),
    )
    data = dataset(tmp_path / "d", rows_of(30))
    strict = '[[filters]]\nname = "clean"\n[[filters]]\nname = "perplexity"\nmax = 1.5\n'
    first = curate(data, tmp_path / "a", recipe=recipe(tmp_path, strict))
    assert sum(batch_sizes) == 30
    assert first.rejected > 0
    loose = strict.replace("1.5", "100.0")
    second = curate(data, tmp_path / "b", recipe=recipe(tmp_path, loose), scores_from=first.out)
    assert sum(batch_sizes) == 30
    assert (second.rows, second.rejected) == (30, 0)
    assert all(s.score("perplexity/smollm2") for s in read_samples(second.out))


def test_filters_after_a_selection_see_only_selected_rows() -> None:
    rows = rows_of(20)
    curation = Curation([Duplicate(how=("exact",)), Length(max_words=100), Repetition()])
    blocks = list(curation.blocks([*rows, *rows]))
    kept = [row.place for block in blocks for row in block.kept]
    rejected = [r for block in blocks for r in block.rejected]
    assert kept == sorted(kept)
    assert len(kept) + len(rejected) == 40
    assert sum(r.rejection.filter == "duplicate" for r in rejected) == 20


def test_borderline_rows_are_on_both_sides_of_a_similarity_threshold(tmp_path: Path) -> None:
    words = "one two three four five six seven eight nine ten".split()
    texts = [" ".join(words), " ".join([*words[:9], "x"]), " ".join([*words[:6], *"abcd"])]
    texts.append(" ".join([*words[:7], *"xyz"]))
    data = dataset(tmp_path / "d", [Sample(t, output="o", license="MIT") for t in texts])
    path = recipe(tmp_path, '[[filters]]\nname = "novelty"\nthreshold = 0.75\n')
    result = curate(data, tmp_path / "c", recipe=path)
    borderline = [(row.side, row.value) for row in result.facts.borderline]
    assert borderline == [("kept", 0.7), ("rejected", 0.9)]


def test_invalid_arguments_raise_errors(tmp_path: Path) -> None:
    data = dataset(tmp_path / "d", rows_of(3))
    with pytest.raises(ConfigError, match="nope"):
        curate(data, tmp_path / "c", recipe="nope")
    with pytest.raises(InputError) as caught:
        curate(tmp_path / "none", tmp_path / "c")
    assert caught.value.path == tmp_path / "none"
    with pytest.raises(ConfigError, match=r"\(score\).* min "):
        curate(data, tmp_path / "c", recipe=recipe(tmp_path, '[[filters]]\nname="score"\nof="x"\n'))
    # The error names the first file of a folder that is not an output folder of instructgen.
    with pytest.raises(RunError, match=min(path.name for path in (ROOT / "seeds").iterdir())):
        curate(data, ROOT / "seeds")
    with pytest.raises(ConfigError, match="duplicate"):
        from instructgen import generate

        path = recipe(tmp_path, '[[filters]]\nname = "duplicate"\n')
        generate(ROOT / "seeds" / "general.jsonl", 3, tmp_path / "r", engine="echo", recipe=path)
    assert dedup([data], tmp_path / "dd").rows <= 3


@pytest.mark.engine
def test_ifd_and_perplexity_of_a_real_model(tmp_path: Path) -> None:
    from instructgen.filters.ifd import IFD
    from instructgen.filters.perplexity import Perplexity

    rows = [
        Sample("What is the capital of France?", output="The capital of France is Paris."),
        Sample("What is the capital of France?", output="Paris capital of is France the."),
        Sample("What is the capital of France?"),
    ]
    ifd = [v.sample.scores[0] for v in IFD().evaluate(rows)]
    assert ifd[0].value is not None
    assert 0.2 < ifd[0].value < 1
    assert (ifd[2].name, ifd[2].value) == ("ifd/smollm2", None)
    assert ifd[2].error
    likely, unlikely, _ = (v.value for v in Perplexity().evaluate(rows))
    assert likely is not None
    assert unlikely is not None
    assert 4 * likely < unlikely
    assert likely < 30
    one_by_one = [IFD().evaluate([row])[0].sample.scores[0] for row in rows[:2]]
    assert [
        abs((a.value or 0) - (b.value or 0)) < 2e-3
        for a, b in zip(ifd[:2], one_by_one, strict=True)
    ]
    data = dataset(tmp_path / "d", rows[:2])
    path = recipe(tmp_path, '[[filters]]\nname = "perplexity"\nmax = 30\n')
    result = curate(data, tmp_path / "c", recipe=path)
    assert result.rows == 1


def test_dedup_keeps_splits(tmp_path: Path) -> None:
    texts = [f"Say {chr(97 + i) * 9} and {chr(98 + i) * 7}." for i in range(12)]
    data = dataset(tmp_path / "d", [Sample(t, output="Yes.") for t in [*texts, *texts[:3]]])
    mix = merge([data], tmp_path / "m", recipe=recipe(tmp_path, "[split]\ntest = 0.25\n")).out
    other = dataset(tmp_path / "o", [Sample("Count to ten.", output="1 2 3")])
    unique = dedup([mix, other], tmp_path / "dd", how=["exact"]).out
    tests = [s.id for s in read_samples(mix, split="test")]
    assert tests and [s.id for s in read_samples(unique, split="test")] == tests
    training = {s.instruction for s in read_samples(unique, split="train")}
    assert len(training) == 13 - len(tests) and "Count to ten." in training
    assert splits_of(dedup([data], tmp_path / "de", how=["exact"]).out) == {"part": 12}
    with pytest.raises(InputError) as caught:
        dedup([data, data], tmp_path / "df")
    assert caught.value.path == data


@pytest.mark.engine
def test_scores_of_a_reward_model(tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    from instructgen.filters.reward import RewardFilter
    from instructgen.models.folders import model_folder

    tokenizer = AutoTokenizer.from_pretrained(model_folder("smollm2"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=0,
        max_position_embeddings=256,
    )
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    f = RewardFilter(model=str(tmp_path / "rm"), min=-1e9)
    rows = [Sample("Hi", output="Hello"), Sample("Hi", output="word " * 400)]
    short, long = (v.sample.scores[0] for v in f.evaluate(rows))
    assert short.value is not None
    assert long.value is None
    # The error gives the limit of the model.
    assert "256" in (long.error or "")
