"""The gate's decisions: exact, equal to rouge-score's, and right in every script."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import LCSseq
from rouge_score.rouge_scorer import RougeScorer, _score_lcs
from rouge_score.tokenizers import DefaultTokenizer

from instructgen.errors import InputError
from instructgen.similarity import Match, RougeLIndex, rouge_compiled, rouge_fallback, tokenize
from instructgen.similarity import blocks as blocks_module
from instructgen.similarity import matches as matches_module
from instructgen.similarity import rouge as rouge_module
from tests.conftest import real

SCORER = RougeScorer(["rougeL"], use_stemmer=False)
# Few words, so that matches are common.
TEXTS = st.lists(st.sampled_from("a b c d e f g h".split()), max_size=12).map(" ".join)
THRESHOLDS = st.sampled_from([0.1, 0.3, 0.5, 0.6, 0.7, 0.75, 0.9, 1.0])


def f_measure(a: str, b: str) -> float:
    return SCORER.score(a, b)["rougeL"].fmeasure


def exactly(a: str, b: str) -> Fraction:
    """The F-measure as a fraction, by the textbook table."""
    x, y = tokenize(a), tokenize(b)
    table = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i, p in enumerate(x):
        for j, q in enumerate(y):
            table[i + 1][j + 1] = (
                table[i][j] + 1 if p == q else max(table[i][j + 1], table[i + 1][j])
            )
    return Fraction(2 * table[-1][-1], len(x) + len(y)) if x and y else Fraction(0)


@given(st.lists(TEXTS | st.text(max_size=9), max_size=8), TEXTS | st.text(), THRESHOLDS)
def test_nearest_is_the_exact_maximum(rows: list[str], text: str, threshold: float) -> None:
    index = RougeLIndex(threshold)
    index.add(rows)
    (match,) = index.nearest([text])
    scores = [exactly(text, row) for row in rows]
    best = max(scores, default=Fraction(0))
    if best > Fraction(str(threshold)):
        assert match is not None
        assert match.row == scores.index(best)
        assert match.score == pytest.approx(float(best), abs=1e-12)
    else:
        assert match is None


@given(st.lists(TEXTS, max_size=12), THRESHOLDS)
def test_gate_is_the_sequential_rule(texts: list[str], threshold: float) -> None:
    kept: list[int] = []
    for i, text in enumerate(texts):
        if all(exactly(text, texts[k]) <= Fraction(str(threshold)) for k in kept):
            kept.append(i)
    index = RougeLIndex(threshold)
    got, rejected = index.gate(texts)
    assert got == kept
    assert sorted(got + [i for i, _ in rejected]) == list(range(len(texts)))
    for i, match in rejected:
        assert exactly(texts[i], texts[got[match.row]]) > Fraction(str(threshold))
    assert len(index) == len(kept)


@given(TEXTS, TEXTS, THRESHOLDS)
def test_compatible_mode_repeats_rouge_scores_floats(a: str, b: str, threshold: float) -> None:
    index = RougeLIndex(threshold, tokenizer="ascii", compatible="rouge-score")
    index.add([a])
    (match,) = index.nearest([b])
    assert (match is not None) == (f_measure(a, b) > threshold)


def test_exactly_seven_tenths_is_kept() -> None:
    # 2*7/(9+11): the float F-measure of rouge-score lies a hair above 0.7.
    a = "a b c d e f g h i"
    b = "a b c d e f g w x y z"
    assert exactly(a, b) == Fraction(7, 10)
    assert f_measure(a, b) > 0.7
    index = RougeLIndex(0.7)
    index.add([a])
    assert index.nearest([b]) == [None]
    compatible = RougeLIndex(0.7, compatible="rouge-score")
    compatible.add([a])
    assert compatible.nearest([b]) != [None]


def test_empty_texts_match_nothing() -> None:
    index = RougeLIndex(0.7)
    index.add(["", "a b c", "?!"])
    assert index.nearest(["", "..."]) == [None, None]


@pytest.mark.parametrize("threshold", [0, -1, 1.01])
def test_threshold_out_of_range(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        RougeLIndex(threshold)


@pytest.mark.parametrize(
    ("script", "first", "second"),
    [
        ("Persian", "یک شعر کوتاه درباره باران بنویس", "یک شعر کوتاه درباره‌ی باران بنویس."),
        ("Arabic", "اكتب قصيدة قصيرة عن المطر في الخريف", "اكتب قصيدة قصيرة عن المطر في الخريف!"),
        ("Chinese", "请写一首关于秋雨的短诗。", "请写一首关于秋雨的短诗"),
        ("Thai", "เขียนบทกวีสั้นเกี่ยวกับฝน", "เขียนบทกวีสั้น ๆ เกี่ยวกับฝน"),
        (
            "Russian",
            "Напиши короткое стихотворение о дожде",
            "Напиши короткое стихотворение о дожде.",
        ),
    ],
)
def test_duplicates_of_every_script_are_caught(script: str, first: str, second: str) -> None:
    index = RougeLIndex(0.7)
    index.add([first])
    (match,) = index.nearest([second])
    assert match is not None, script
    # What the paper's tokenizer makes of the same two: nothing at all.
    blind = RougeLIndex(0.7, tokenizer="ascii")
    blind.add([first])
    assert blind.nearest([second]) == [None]
    assert f_measure(first, second) == 0


_VERDICTS = {"too similar": True, "ok": False}


def test_alpaca_libre_similarities_are_reproduced() -> None:
    """A real Self-Instruct log: the published maximum over the batch, all 2,375 of them."""
    path = real("alpaca-libre/alpaca_libre_tasks_v1.jsonl")
    rows = [orjson.loads(line) for line in path.open("rb")]
    assert len(rows) == 2375
    agreed = decided = by_float = 0
    for start, end in ((0, 1165), (1165, 2279), (2279, 2375)):
        batch = rows[start:end]
        texts = [r["instruction"] for r in batch]
        score = _best_others(texts)
        agreed += sum(round(s, 3) == r["similarity"] for s, r in zip(score, batch, strict=True))
        # Its authors rounded before they compared, so that exactly 7/10 was "ok":
        # the exact rule decides alike, the float comparison of rouge-score not.
        judged = [(s, r) for s, r in zip(score, batch, strict=True) if r["status"] in _VERDICTS]
        decided += sum((s > 0.7 + 1e-9) == _VERDICTS[r["status"]] for s, r in judged)
        by_float += sum((s > 0.7) == _VERDICTS[r["status"]] for s, r in judged)
    assert agreed == 2375
    assert decided == 2050
    assert by_float == 2030


def _best_others(texts: list[str]) -> list[float]:
    """For each text its best match among all the others, through the index.

    The index finds the best row, which would be the text itself; so each is
    compared with those before it, and then with those after it.
    """
    best = [0.0] * len(texts)
    for order in (range(len(texts)), range(len(texts) - 1, -1, -1)):
        one_by_one = RougeLIndex(1e-6, tokenizer="ascii", compatible="rouge-score")
        for i in order:
            (match,) = one_by_one.nearest([texts[i]])
            best[i] = max(best[i], match.score if match else 0.0)
            one_by_one.add([texts[i]])
    return best


def test_decisions_equal_rouge_score_on_real_text() -> None:
    """The gate against the reference scorer, pair by pair, on a slice of the real log."""
    path = real("alpaca-libre/alpaca_libre_tasks_v1.jsonl")
    texts = [orjson.loads(line)["instruction"] for line in path.open("rb")][:400]
    tokens = [DefaultTokenizer(use_stemmer=False).tokenize(t) for t in texts]
    kept: list[int] = []
    for i in range(len(texts)):
        if all(_score_lcs(tokens[i], tokens[k]).fmeasure <= 0.7 for k in kept):
            kept.append(i)
    got, _ = RougeLIndex(0.7, tokenizer="ascii", compatible="rouge-score").gate(texts)
    assert got == kept


# -- the index itself: every kernel, every length, any number of threads ------------------


def corpus(rng: random.Random, count: int, words: int, lengths: range) -> list[str]:
    """Texts of these lengths, half of them an earlier one with some words changed."""
    vocabulary = [f"w{i}" for i in range(words)]
    texts: list[str] = []
    for _ in range(count):
        if texts and rng.random() < 0.5:
            text = rng.choice(texts).split()
            for _ in range(rng.randint(0, max(1, len(text) // 3))):
                if text and rng.random() < 0.5:
                    text.pop(rng.randrange(len(text)))
                else:
                    text.insert(rng.randint(0, len(text)), rng.choice(vocabulary))
        else:
            text = rng.choices(vocabulary, k=rng.choice(lengths))
        texts.append(" ".join(text))
    return texts


def best_of(text: str, rows: list[str], threshold: float, compatible: str | None) -> Match | None:
    """By comparing with every row. Of equal fractions the first row's."""
    found, most = None, Fraction(0)
    a = text.split()
    for i, row in enumerate(rows):
        b = row.split()
        lcs = LCSseq.similarity(a, b)
        if not lcs:
            continue
        exact = Fraction(2 * lcs, len(a) + len(b))
        precision, recall = lcs / len(a), lcs / len(b)
        score = 2 * precision * recall / (precision + recall)
        above = score > threshold if compatible else exact > Fraction(str(threshold))
        if above and exact > most:
            most = exact
            found = Match(score if compatible else 2 * lcs / (len(a) + len(b)), i)
    return found


CASES = [
    (words, lengths, threshold, compatible)
    for words in (1, 4, 30, 1000)
    for lengths in (range(12), range(70), range(60, 70), range(100, 300), range(0, 1500, 7))
    for threshold, compatible in ((0.7, None), (0.7, "rouge-score"), (1 / 3, None), (0.05, None))
]


@cache
def expected(number: int) -> tuple[list[str], list[str], Any, list[str], list[Match | None]]:
    """Rows, texts, what `gate` gives for them, and queries with their nearest rows."""
    words, lengths, threshold, compatible = CASES[number]
    rng = random.Random(number)
    count = 30 if lengths[-1] > 300 else 150
    texts = corpus(rng, count, words, lengths)
    before = texts[: rng.randint(0, count // 2)]
    rows, kept, rejected = list(before), [], []
    for i, text in enumerate(texts):
        match = best_of(text, rows, threshold, compatible)
        if match is None:
            kept.append(i)
            rows.append(text)
        else:
            rejected.append((i, match))
    queries = corpus(rng, 130, words, lengths)
    wanted = [best_of(q, rows, threshold, compatible) for q in queries]
    return before, texts, (kept, rejected), queries, wanted


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kernel", [rouge_compiled, rouge_fallback], ids=["compiled", "fallback"])
def test_every_decision_is_that_of_comparing_with_every_row(
    kernel: Any, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instructgen.similarity.rouge.kernels", lambda: kernel)
    monkeypatch.setattr("instructgen.similarity.blocks.kernels", lambda: kernel)
    matches = 0
    for number, (_, _, threshold, compatible) in enumerate(CASES):
        before, texts, gated, queries, wanted = expected(number)
        index = RougeLIndex(threshold, compatible=compatible, threads=threads)
        index.add(before)
        assert index.gate(texts) == gated
        assert index.nearest(queries) == wanted
        matches += sum(m is not None for m in wanted)
    assert matches > 1000


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kernel", [rouge_compiled, rouge_fallback])
@pytest.mark.parametrize("compatible", [None, "rouge-score"])
def test_every_pair_is_found(kernel, threads, compatible, monkeypatch) -> None:
    """More than fit into what is reserved at first, short and long texts."""
    monkeypatch.setattr(rouge_module, "kernels", lambda: kernel)
    monkeypatch.setattr(blocks_module, "kernels", lambda: kernel)
    monkeypatch.setattr(rouge_module, "_PAIRS_AT_FIRST", 16)
    rng = random.Random(5)
    texts = corpus(rng, 150, 12, range(12)) + corpus(rng, 20, 300, range(60, 200))
    texts += [texts[-1], texts[-1], ""]
    index = RougeLIndex(0.6, compatible=compatible, threads=threads)
    index.add(texts)
    found = index.pairs(texts)
    got = dict(
        zip(
            zip(found.text.tolist(), found.row.tolist(), strict=True),
            found.score.tolist(),
            strict=True,
        )
    )
    expected = {}
    for i, a in enumerate(texts):
        for j, b in enumerate(texts):
            match = best_of(a, [b], 0.6, compatible)
            if match is not None:
                expected[i, j] = match.score
    assert len(expected) > 200
    assert got == expected
    assert list(got) == sorted(got)


def test_too_many_pairs_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(matches_module, "_MOST_PAIRS", 5000)
    index = RougeLIndex()
    index.add(["one and the same text"] * 100)
    with pytest.raises(InputError, match="more than 5,000 pairs"):
        index.pairs(["one and the same text"] * 100)


def test_rows_added_one_by_one_are_found_as_those_added_together() -> None:
    texts = corpus(random.Random(1), 1500, 50, range(1, 14))
    together, one_by_one = RougeLIndex(), RougeLIndex()
    together.add(texts)
    for text in texts:
        one_by_one.add([text])
    queries = corpus(random.Random(2), 300, 50, range(1, 14))
    assert together.nearest(queries) == one_by_one.nearest(queries)
    assert len(together) == len(one_by_one) == 1500


def test_a_saved_index_is_opened_and_goes_on(tmp_path: Path) -> None:
    texts = [*corpus(random.Random(3), 700, 40, range(40)), "", "naïve 漢字 слово"]
    index = RougeLIndex(0.6, compatible="rouge-score")
    index.add(texts[:500])
    index.save(tmp_path / "index")
    before = (tmp_path / "index").read_bytes()
    again = RougeLIndex.open(tmp_path / "index")
    assert (again.threshold, again.tokenizer, again.compatible) == (0.6, "unicode", "rouge-score")
    assert again.nearest(texts) == index.nearest(texts)
    assert again.gate(texts) == index.gate(texts)
    again.save(tmp_path / "second")
    index.save(tmp_path / "first")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert (tmp_path / "index").read_bytes() == before
    RougeLIndex().save(tmp_path / "empty")
    assert RougeLIndex.open(tmp_path / "empty").nearest(["a"]) == [None]


def test_what_is_no_index_is_said(tmp_path: Path) -> None:
    index = RougeLIndex()
    index.add(["a b c"])
    path = tmp_path / "index"
    index.save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="cut off"):
        RougeLIndex.open(path)
    path.write_bytes(b"PK")
    with pytest.raises(InputError, match="no ROUGE-L index"):
        RougeLIndex.open(path)


HOSTILE = {
    "empty": "",
    "punctuation": "?! … -- ,,",
    "one word": "word " * 100_000,
    "marks": "\u0301\u0300 \u064b",
    "lone surrogate": "a \ud800 b",
    "long": " ".join(f"w{i}" for i in range(100_000)),
    "long, other": " ".join(f"w{i}" for i in range(40_000, 140_000)),
}


def test_hostile_texts() -> None:
    index = RougeLIndex()
    kept, rejected = index.gate(list(HOSTILE.values()))
    assert (kept, rejected) == (list(range(len(HOSTILE))), [])
    found = index.nearest(list(HOSTILE.values()))
    assert [m and m.row for m in found] == [None, None, 2, 3, 4, 5, 6]
    assert {m.score for m in found if m} == {1.0}
    # 60,000 words in a row are common: 0.6 is not above 0.7, but above 0.5.
    index = RougeLIndex(0.5)
    index.add([HOSTILE["long"]])
    assert index.nearest([HOSTILE["long, other"]]) == [Match(0.6, 0)]


def test_a_text_too_long_is_refused_and_nothing_is_added() -> None:
    index = RougeLIndex()
    with pytest.raises(InputError, match="text 1 has 100,001 words"):
        index.add(["fine", "word " * 100_001])
    assert len(index) == 0


def test_a_million_identical_texts() -> None:
    texts = ["Write a poem about the rain in spring."] * 1_000_000
    index = RougeLIndex()
    kept, rejected = index.gate(texts)
    assert kept == [0]
    assert {m for _, m in rejected} == {Match(1.0, 0)}
    index.add(texts)
    assert index.nearest(texts[:50]) == [Match(1.0, 0)] * 50
    (match,) = index.nearest(["Write a poem about the snow in spring."])
    assert match == Match(14 / 16, 0)


def test_without_numba_the_other_kernel_is_taken() -> None:
    code = (
        "from instructgen.similarity import RougeLIndex; from instructgen.similarity.blocks import "
        "kernels; i = RougeLIndex(); print(i.gate(['a b c', 'a b c'])[0], kernels().__name__)"
    )
    for hide, name in (
        ("", "rouge_compiled"),
        ("import sys; sys.modules['numba'] = None; ", "rouge_fallback"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", hide + code], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == f"[0] instructgen.similarity.{name}"
    env = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout.strip().endswith("fallback")


def test_where_nothing_can_be_written_the_kernels_are_compiled_anew() -> None:
    # numba looks for a folder to cache in, and raises when there is none.
    code = (
        "import numba.core.caching as c; c.CacheImpl._locator_classes = []; "
        "from instructgen.similarity import MinHashIndex, RougeLIndex, rouge_compiled as r; "
        "print(RougeLIndex().gate(['a b c', 'a b c'])[0], MinHashIndex().gate(['a', 'a'])[0], "
        "type(r.search._cache).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[0]", "[0]", "NullCache"]
