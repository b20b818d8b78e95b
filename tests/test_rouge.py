"""The gate's decisions: exact, equal to rouge-score's, and right in every script."""

from __future__ import annotations

from fractions import Fraction

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer, _score_lcs
from rouge_score.tokenizers import DefaultTokenizer

from instructgen.similarity import RougeLIndex, tokenize
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


@given(st.lists(TEXTS, max_size=8), TEXTS, THRESHOLDS)
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
