"""Deduplication: results against an exhaustive comparison, priorities, and the two_key stage."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgen.errors import ConfigError, InputError
from instructgen.formats import read
from instructgen.schema.sample import Origin, Sample, Score
from instructgen.similarity import (
    MinHashIndex,
    deduplicate,
    find_duplicates,
    rouge_l,
    tokenize,
)
from instructgen.similarity.minhash import jaccard
from instructgen.similarity.minhash_pairs import minhash_pairs
from tests.conftest import real

MEASURES = {
    "rouge_l": lambda a, b: rouge_l(tokenize(a), tokenize(b)),
    "minhash": lambda a, b: jaccard(set(tokenize(a)), set(tokenize(b))),
}
WORDS = "a list of many cold red apples with pears for the long winter".split()
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), max_size=25)


def _samples(texts: list[str]) -> list[Sample]:
    return [Sample(instruction=text) for text in texts]


def _components(count: int, pairs: list[tuple[int, int]]) -> Counter[int]:
    root = list(range(count))

    def find(i: int) -> int:
        while root[i] != i:
            i = root[i]
        return i

    for a, b in pairs:
        root[find(a)] = find(b)
    return Counter(find(i) for i in range(count))


@pytest.mark.parametrize("how", ["rouge_l", "minhash"])
@given(texts=TEXTS, threshold=st.sampled_from([0.6, 0.7, 0.75, 0.8]))
def test_results_equal_an_exhaustive_comparison(how, texts, threshold) -> None:
    result = deduplicate(_samples(texts), [how], threshold=threshold, priority=(), floor=0.4)
    plain = [" ".join(text.split()) for text in texts]

    def near(a: int, b: int) -> bool:
        return plain[a] == plain[b] or MEASURES[how](texts[a], texts[b]) > threshold

    def reordered(a: int, b: int) -> bool:
        return plain[a] != plain[b] and sorted(plain[a].split()) == sorted(plain[b].split())

    kept: list[int] = []
    for i in range(len(texts)):
        if not any(near(i, j) and not reordered(i, j) for j in kept):
            kept.append(i)
    rejected = {r.row: r for r in result.rejected}
    assert [i for i in range(len(texts)) if i not in rejected] == kept
    assert [s.instruction for s in result.kept] == [texts[i] for i in kept]
    for r in result.rejected:
        assert r.partner_row in kept
        assert near(r.row, r.partner_row) and not reordered(r.row, r.partner_row)
        assert r.partner.instruction == texts[r.partner_row]
        expected = 1.0 if r.stage == "exact" else MEASURES[how](texts[r.row], texts[r.partner_row])
        assert abs(r.score - expected) < 1e-12
    pairs = [(a, b) for a, b in combinations(range(len(texts)), 2) if near(a, b)]
    components = _components(len(texts), pairs)
    assert result.largest_component == max(components.values(), default=0)
    assert result.components_would_reject == len(texts) - len(components)


@pytest.mark.parametrize("how", ["rouge_l", "minhash"])
@given(texts=TEXTS, threshold=st.sampled_from([0.6, 0.75, 0.8, 0.9]))
def test_rethreshold_equals_a_new_search(how, texts, threshold) -> None:
    samples = _samples(texts)
    first = deduplicate(samples, [how], threshold=0.7, floor=0.4)
    repeated = deduplicate(samples, [how], threshold=threshold, floor=0.4)
    rethresholded = first.rethreshold(threshold)
    assert (rethresholded.kept, rethresholded.rejected, rethresholded.thresholds) == (
        repeated.kept,
        repeated.rejected,
        repeated.thresholds,
    )
    assert rethresholded.largest_component == repeated.largest_component


def test_a_threshold_below_the_floor_raises() -> None:
    result = deduplicate(_samples(["a b c"]), ["minhash"])
    with pytest.raises(ConfigError, match=r"floor=0\.5"):
        result.rethreshold(0.5)


def test_a_chain_of_similar_rows_does_not_reject_its_last_row() -> None:
    chain = ["a b c d e f", "b c d e f g", "c d e f g h"]
    result = deduplicate(_samples(chain), ["rouge_l"], threshold=0.75)
    assert [s.instruction for s in result.kept] == [chain[0], chain[2]]
    assert (result.largest_component, result.components_would_reject) == (3, 2)


def test_many_equal_texts_are_handled() -> None:
    """Equal texts are grouped first. Without this, 40,000 copies give 800 million pairs."""
    texts = ["Name three  fruits."] * 20_000 + ["name three\nfruits."] * 20_000 + ["Sort it."]
    result = deduplicate(_samples(texts), ["exact", "minhash", "rouge_l"])
    assert len(result.kept) == 2
    assert {(r.stage, r.partner_row) for r in result.rejected} == {("exact", 0)}
    assert result.largest_component == 40_000


def test_copies_of_a_rejected_text_have_the_kept_row_as_partner() -> None:
    texts = [
        "name three cold fruits",
        "name three cold sweet fruits",
        "NAME three cold sweet fruits",
    ]
    result = deduplicate(_samples(texts), ["minhash"])
    assert [(r.row, r.partner_row, r.stage) for r in result.rejected] == [
        (1, 0, "minhash"),
        (2, 0, "minhash"),
    ]


BASE = Sample(instruction="Name three cold fruits", output="One, two.", source="a", license="MIT")


@pytest.mark.parametrize(
    ("priority", "other"),
    [
        (["license"], replace(BASE, license="CC0-1.0")),
        (["human"], BASE),
        (
            ["quality"],
            replace(
                BASE, scores=(Score("judge", 4.0), Score("b", None, "no"), Score("c", float("nan")))
            ),
        ),
        (["length"], replace(BASE, output="One, two, three.")),
    ],
)
def test_the_better_copy_is_kept(priority, other) -> None:
    first = replace(
        BASE, license="CC-BY-NC-4.0", origin=Origin(method="alpaca"), scores=(Score("judge", 2.0),)
    )
    for samples in ([first, other], [other, first]):
        result = deduplicate(samples, ["exact"], priority=priority, compared="instruction")
        assert result.kept == [other]
    same = deduplicate([first, other], ["exact"], priority=[], compared="instruction")
    assert same.kept == [first]


def test_sources_named_first_are_kept() -> None:
    copies = [replace(BASE, source=name) for name in ("generated", "web", "human")]
    for sources, kept in (([], "generated"), (["human"], "human"), (["web", "human"], "web")):
        result = deduplicate(copies, ["exact"], priority=["source"], sources=sources)
        assert [s.source for s in result.kept] == [kept]


@given(texts=TEXTS)
def test_rows_that_are_read_once_give_the_same_result(texts) -> None:
    samples = _samples(texts)
    listed = deduplicate(samples, ["minhash"])
    streamed = find_duplicates(iter(samples), ["minhash"])
    assert [(d.row, d.partner_row, d.score) for d in streamed.rejected()] == [
        (r.row, r.partner_row, r.score) for r in listed.rejected
    ]
    assert [d.partner_id for d in streamed.rejected()] == [r.partner.id for r in listed.rejected]
    assert streamed.largest_component == listed.largest_component


@given(texts=TEXTS, threshold=st.sampled_from([0.3, 0.6, 0.8]))
def test_pairs_found_on_disk_are_those_of_the_index(texts, threshold) -> None:
    index = MinHashIndex(threshold)
    index.add(texts)
    expected = index.pairs(texts)
    earlier = expected.row < expected.text
    found = minhash_pairs([texts], threshold)
    assert [array.tolist() for array in found] == [array[earlier].tolist() for array in expected]


def test_priority_can_be_a_sort_key() -> None:
    samples = _samples(["name three fruits now", "Name three fruits"])
    result = deduplicate(samples, ["rouge_l"], priority=lambda s: len(s.instruction))
    assert [s.instruction for s in result.kept] == ["Name three fruits"]


TEXT = (
    "Where the sun shines behind you and rain falls ahead, light enters each drop, bends, "
    "turns back from its far side and leaves split into red, yellow, green and violet."
)


def test_rows_that_share_only_a_long_input_are_kept() -> None:
    samples = [
        Sample("Summarize the text in a sentence.", TEXT, "It is an arc of colors."),
        Sample("Which words of the text are nouns?", TEXT, "They are sun, rain, light, drop."),
        Sample("Summarize the text in one sentence.", TEXT, "It is an arc of bright colors."),
        # In these rows, the question is part of the input.
        Sample("Answer the question.", f"{TEXT} What is split?", "Light is."),
        Sample("Answer the question.", f"{TEXT} What bends?", "Every ray that enters."),
    ]
    rows = [f"{s.instruction} {s.input} {s.output}" for s in samples]
    assert MEASURES["minhash"](rows[0], rows[1]) > 0.6
    assert MEASURES["minhash"](rows[3], rows[4]) > 0.6
    result = deduplicate(samples, ["minhash"], priority=(), threshold=0.6)
    assert [(r.row, r.partner_row, r.score) for r in result.rejected] == [(2, 0, 5 / 7)]
    prompts = deduplicate(samples, ["minhash"], priority=(), threshold=0.6, compared="prompt")
    assert [r.row for r in prompts.rejected] == [2, 4]


def test_rows_that_share_only_a_long_beginning_are_kept() -> None:
    """MiniLM reads only 256 tokens, so both rows have the same vector."""
    pytest.importorskip("sentence_transformers")
    long = " ".join(f"{TEXT} {i}" for i in range(12))
    samples = [
        Sample(
            "Answer the question about the text.", f"{long} Who bends?", "Light, in every drop."
        ),
        Sample("Answer the question about the text.", f"{long} Where is rain?", "Ahead of you."),
    ]
    assert deduplicate(samples, ["semantic"]).kept == samples
    assert deduplicate(samples, ["two_key"]).kept == samples
    assert len(deduplicate(samples, ["semantic"], compared="prompt").kept) == 1


def test_fields_without_words_are_not_compared() -> None:
    answer = "It is an arc of colors that is seen in rain"
    samples = [Sample("😀", "", f"{answer}."), Sample("😎", "", f"{answer} too.")]
    assert len(deduplicate(samples, ["minhash"]).kept) == 1


def test_equal_text_in_another_field_is_not_a_duplicate() -> None:
    samples = [Sample("Say it", "again", ""), Sample("Say it", "", "again")]
    assert deduplicate(samples, ["exact"]).kept == samples


def test_the_error_for_a_long_text_names_its_row() -> None:
    samples = _samples(["a b c", *(f"row {i}" for i in range(3000)), "word " * 100_001])
    with pytest.raises(InputError, match="row 3001 "):
        deduplicate(samples, ["rouge_l"], priority=lambda s: -len(s.instruction))
    assert len(deduplicate(samples, ["minhash"]).kept) == len(samples)


def test_results_can_be_compared_and_printed() -> None:
    a, b = (deduplicate(_samples(["a b c d", "a b c e"]), ["minhash"]) for _ in range(2))
    assert a == b
    assert "array" not in repr(a)


def test_two_key_distinguishes_duplicate_paraphrase_and_same_frame() -> None:
    pytest.importorskip("sentence_transformers")
    texts = [
        "What is a Husky?",
        "What is a sitcom?",  # the same frame: one word of four differs
        "What is a mitochondrion?",
        "What is a vegan?",  # more rows of the frame than the quota
        "Who is the best golfer to ever play the game?",
        "Who is the greatest golfer ever?",  # a paraphrase
        "What is the largest employer in the world?",
        "Who is the largest employer in the world?",  # a duplicate
    ]
    result = deduplicate(_samples(texts), ["two_key"], frame_quota=3)
    assert {r.row: (r.reason, r.partner_row) for r in result.rejected} == {
        3: ("same_frame", 0),
        5: ("paraphrase", 4),
        7: ("duplicate", 6),
    }
    assert [r.metric for r in result.rejected] == ["rouge_l", "cosine", "cosine"]
    assert "ROUGE-L 0.750" in result.rejected[0].detail
    one = deduplicate(_samples(texts), ["two_key"], frame_quota=1)
    assert Counter(r.reason for r in one.rejected)["same_frame"] == 3


def test_short_texts_are_kept_or_rejected_as_expected() -> None:
    """The results of other tools for these texts are in benchmarks/short_texts.json."""
    import orjson

    from tests.conftest import ROOT

    committed = orjson.loads((ROOT / "benchmarks/short_texts.json").read_bytes())
    texts = [row["text"] for row in committed["rows"]]
    expected = [row["kept"] for row in committed["rows"]]
    for how in (["exact", "minhash"], ["minhash"], ["rouge_l"]):
        rejected = {r.row for r in deduplicate(_samples(texts), how).rejected}
        assert [i not in rejected for i in range(8)] == expected


def test_texts_that_the_model_cannot_read_are_counted() -> None:
    pytest.importorskip("sentence_transformers")
    result = deduplicate(_samples(["你吃什么", "你说得对", "What do you eat?"]), ["semantic"])
    assert (len(result.kept), result.uncompared) == (3, 2)
    half = [
        Sample("写一首诗", "", "A poem about rain."),
        Sample("写一首词", "", "A poem about rain!"),
    ]
    assert deduplicate(half, ["semantic"]).uncompared == 2


def test_empty_input_and_texts_without_words_are_handled() -> None:
    result = deduplicate([])
    assert (result.kept, result.rejected, result.largest_component) == ([], [], 0)
    one = deduplicate(_samples(["", "?!", "..."]), ["exact", "minhash", "rouge_l"])
    assert len(one.kept) == 3


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        # The name of the option, the invalid value, and the valid values or the limits.
        ({"how": ["minhas"]}, ["how", "'minhas'", "minhash, rouge_l"]),
        ({"threshold": {"semantic": 0.9}, "how": ["minhash"]}, ["threshold", "'semantic'"]),
        ({"threshold": 1.0}, ["threshold", "minhash", "1.0", "0 and 1"]),
        ({"threshold": 0}, ["threshold", "minhash", "0 and 1"]),
        ({"floor": 1}, ["floor", "0 and 1"]),
        ({"frame_quota": 0}, ["frame_quota", str(2**31 - 1)]),
        ({"frame_quota": 10**20}, ["frame_quota", str(10**20), str(2**31 - 1)]),
        ({"floor": 0.03}, ["floor", "0.03", "minhash", "0.05"]),
        ({"compared": "rows"}, ["compared", "'rows'", "instruction, prompt, row"]),
        ({"sources": ["nowhere"]}, ["source", "'nowhere'"]),
        ({"priority": ["lenght"]}, ["priority", "'lenght'", "human, length"]),
        ({"model": "./none", "how": ["semantic"]}, ["model", "./none"]),
    ],
)
def test_errors_name_the_invalid_option_in_one_line(options, facts) -> None:
    with pytest.raises(ConfigError) as caught:
        deduplicate(_samples(["a text"]), **options)
    message = str(caught.value)
    assert [fact for fact in facts if fact not in message] == []
    assert "\n" not in message


def test_components_do_not_depend_on_the_order_of_rows() -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=5)) for _ in range(200)]
    shuffled = rng.sample(texts, len(texts))
    a, b = (deduplicate(_samples(t), ["rouge_l"]) for t in (texts, shuffled))
    assert a.largest_component == b.largest_component
    assert a.components_would_reject == b.components_would_reject


def test_the_numbers_of_duplicates_in_dolly_are_known() -> None:
    path = real("dolly/databricks-dolly-15k.rejoined.jsonl")
    samples = [s for s in read(path) if isinstance(s, Sample)]
    exact = deduplicate(samples, ["exact"])
    assert (len(exact.kept), len(exact.rejected)) == (14_995, 16)
    near = deduplicate(samples, ["minhash"])
    assert (len(near.kept), near.components_would_reject) == (14_972, 41)
    prompts = deduplicate(samples, ["minhash"], compared="prompt")
    # Of 30 prompts with the same words, such as "What is C#?" and "What is C++?".
    assert (len(prompts.kept), prompts.components_would_reject) == (14_304, 811)
    words = deduplicate(samples, ["rouge_l"], compared="instruction")
    assert (len(words.kept), len(words.rejected)) == (12_613, 2_398)
    assert (words.largest_component, words.components_would_reject) == (592, 3_072)
    assert len(words.rethreshold(0.8).kept) == 14_140
