"""MinHash index: signatures equal datasketch's, matches are exact, the stated recall is reached."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH
from hypothesis import given
from hypothesis import strategies as st

from instructgen.errors import InputError
from instructgen.similarity import Match, MinHashIndex, RougeLIndex, minhash_kernels, tokenize
from instructgen.similarity import minhash as minhash_module
from instructgen.similarity.minhash import bands_for

TEXTS = st.lists(st.sampled_from("a b c d e f g h".split()), max_size=9).map(" ".join)


def jaccard(a: str, b: str, ngram: int = 1) -> Fraction:
    x, y = runs(a, ngram), runs(b, ngram)
    return Fraction(len(x & y), len(x | y)) if x | y else Fraction(0)


@cache
def runs(text: str, ngram: int) -> frozenset[tuple[str, ...]]:
    words = tokenize(text)
    if not words:
        return frozenset()
    last = max(1, len(words) - ngram + 1)
    return frozenset(tuple(words[i : i + ngram]) for i in range(last))


def nearest(text: str, rows: list[str], threshold: float, ngram: int = 1) -> Match | None:
    near = [i for i, row in enumerate(rows) if runs(text, ngram) & runs(row, ngram)]
    best = max(near, key=lambda i: (jaccard(text, rows[i], ngram), -i), default=None)
    score = Fraction(0) if best is None else jaccard(text, rows[best], ngram)
    return Match(float(score), best) if score > Fraction(str(threshold)) else None


def near_duplicates(count: int, rng: random.Random) -> list[str]:
    """Return texts of 3 to 60 words; about half are earlier texts with some words replaced."""
    texts: list[str] = []
    while len(texts) < count:
        if texts and rng.random() < 0.5:
            words = rng.choice(texts).split()
            for i in range(len(words)):
                if rng.random() < 0.12:
                    words[i] = f"w{rng.randrange(5000)}"
        else:
            words = [f"w{rng.randrange(5000)}" for _ in range(rng.randint(3, 60))]
        texts.append(" ".join(words))
    return texts


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_signatures_equal_those_of_datasketch(texts: list[str]) -> None:
    index = MinHashIndex()
    signatures = index.signatures(texts)
    for text, signature in zip(texts, signatures, strict=True):
        reference = MinHash(num_perm=128, scheme="affine32")
        reference.update_batch([w.encode("utf-8", "surrogatepass") for w in tokenize(text)])
        assert (signature == reference.hashvalues).all()
        assert index.minhash(text).jaccard(reference) == 1.0


def test_signatures_do_not_depend_on_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*near_duplicates(50, random.Random(0)), ""]
    compiled = MinHashIndex().signatures(texts)
    monkeypatch.setattr(minhash_kernels, "COMPILED", False)
    assert (MinHashIndex().signatures(texts) == compiled).all()


@given(st.lists(TEXTS, max_size=8), TEXTS, st.sampled_from([0.1, 0.5, 0.7, 0.9]))
def test_matches_have_exact_scores_above_the_threshold(
    rows: list[str], text: str, threshold: float
) -> None:
    index = MinHashIndex(threshold)
    index.add(rows)
    (match,) = index.nearest([text])
    if match is not None:
        exact = jaccard(text, rows[match.row])
        assert exact > Fraction(str(threshold))
        assert match.score == float(exact)
    if text in rows and text:
        # Equal texts share every band, so they are always found.
        assert match == Match(1.0, [set(r.split()) for r in rows].index(set(text.split())))


@pytest.mark.parametrize(("threshold", "ngram"), [(0.7, 1), (0.5, 1), (0.7, 3), (0.9, 1)])
def test_the_stated_recall_is_reached(threshold: float, ngram: int) -> None:
    texts = near_duplicates(1500, random.Random(4))
    rows, queries = texts[:1000], texts[1000:]
    index = MinHashIndex(threshold, ngram=ngram)
    index.add(rows)
    expected = [nearest(q, rows, threshold, ngram) for q in queries]
    matches = index.nearest(queries)
    pairs = [(w, f) for w, f in zip(expected, matches, strict=True) if w is not None]
    assert len(pairs) > 30
    assert sum(w == f for w, f in pairs) >= 0.99 * len(pairs)
    assert all(f is None for w, f in zip(expected, matches, strict=True) if w is None)


def test_gate_keeps_a_text_unless_a_kept_text_matches() -> None:
    texts = near_duplicates(3000, random.Random(5))
    index = MinHashIndex()
    kept, rejected = index.gate(texts)
    assert sorted([*kept, *(i for i, _ in rejected)]) == list(range(len(texts)))
    assert len(index) == len(kept)
    for i, match in rejected:
        assert kept[match.row] < i
        assert match.score == float(jaccard(texts[i], texts[kept[match.row]]))
        assert match.score > 0.7
    one_at_a_time = MinHashIndex()
    one_by_one = [i for i, text in enumerate(texts) if one_at_a_time.gate([text])[0]]
    assert one_by_one == kept
    # Both indexes hold the same rows, so they find the same matches.
    assert one_at_a_time.nearest(texts) == index.nearest(texts)


def test_different_short_texts_are_kept() -> None:
    texts = ["Hi", "Hello", "What?", "Why not?", "Tell a joke.", "Tell a story.", "Hi!", "why NOT"]
    for ngram in (1, 3):
        kept, rejected = MinHashIndex(ngram=ngram).gate(texts)
        assert kept == [0, 1, 2, 3, 4, 5]
        assert [(i, m.row) for i, m in rejected] == [(6, 0), (7, 3)]


@pytest.mark.parametrize("threshold", [0.1 * 7, 2 / 3, 0.7999999999999999, 1 / 3, 0.123456789])
def test_thresholds_with_many_digits_are_exact(threshold: float) -> None:
    texts = [" ".join(f"w{i}" for i in range(n)) for n in (1, 580, 1200, 5000)]
    index = MinHashIndex(threshold)
    index.add(texts)
    assert index.nearest(texts) == [Match(1.0, i) for i in range(4)]
    for both in range(1, 400):
        for either in range(both, 400, 7):
            above = Fraction(both, either) > Fraction(str(threshold))
            assert (Fraction(both, either) > index._signer.exact) == above


def test_bands_reach_the_recall_within_the_permutations() -> None:
    assert bands_for(0.7, 0.99, 128) == (32, 4)
    for threshold in np.arange(0.1, 1, 0.1):
        bands, rows = bands_for(float(threshold), 0.99, 128)
        assert 1 - (1 - threshold**rows) ** bands >= 0.99
        assert bands * rows <= 128
    with pytest.raises(ValueError, match=r"0\.001"):
        bands_for(0.001, 0.99, 128)


@pytest.mark.parametrize("bad", [{"threshold": 0}, {"threshold": 1}, {"ngram": 0}])
def test_arguments_out_of_range_raise(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        MinHashIndex(**bad)


def test_empty_and_identical_texts() -> None:
    index = MinHashIndex()
    kept, rejected = index.gate(["", "?!", "a b c"] + ["c b a"] * 50_000)
    assert kept == [0, 1, 2]
    assert {m for _, m in rejected} == {Match(1.0, 2)}


def test_results_do_not_depend_on_numba() -> None:
    code = (
        "import random; from tests.test_minhash import near_duplicates; "
        "from instructgen.similarity import MinHashIndex, minhash_kernels as k; "
        "i = MinHashIndex(); print(k.COMPILED, i.gate(near_duplicates(300, random.Random(6))))"
    )
    outputs = []
    for disable in ("0", "1"):
        env = {**os.environ, "NUMBA_DISABLE_JIT": disable}
        process = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
        )
        outputs.append(process.stdout.split(" ", 1))
    assert [o[0] for o in outputs] == ["True", "False"]
    assert outputs[0][1] == outputs[1][1]


@pytest.mark.parametrize("ngram", [1, 3])
def test_nearest_returns_the_best_of_all_pairs(ngram: int, monkeypatch) -> None:
    monkeypatch.setattr(minhash_module, "_PAIRS_AT_FIRST", 4)
    texts = near_duplicates(400, random.Random(4))
    index = MinHashIndex(0.5, ngram)
    index.add(texts)
    text, row, score = index.pairs(texts)
    best = {}
    for i, j, s in zip(text.tolist(), row.tolist(), score.tolist(), strict=True):
        assert s == float(jaccard(texts[i], texts[j], ngram)) > 0.5
        if i not in best or s > best[i].score:
            best[i] = Match(s, j)
    assert [best.get(i) for i in range(len(texts))] == index.nearest(texts)
    close = [
        (i, j)
        for i in range(len(texts))
        for j in range(len(texts))
        if jaccard(texts[i], texts[j], ngram) > Fraction(1, 2)
    ]
    assert len(text) >= 0.99 * len(close)
    # A search does not change the index.
    assert index.pairs(texts).text.tolist() == text.tolist()


@pytest.mark.parametrize("ngram", [1, 2])
def test_an_opened_index_can_be_extended_without_changing_its_file(tmp_path, ngram: int) -> None:
    texts = [*near_duplicates(300, random.Random(6)), "", "نان تازه را ببُر", "切面包"]
    index = MinHashIndex(0.6, ngram, recall=0.95, permutations=64)
    index.add(texts[:200])
    path = tmp_path / "an.index"
    index.save(path)
    opened = MinHashIndex.open(path)
    assert (len(opened), opened.bands) == (200, index.bands)
    assert opened.nearest(texts) == index.nearest(texts)
    before = path.read_bytes()
    assert opened.gate(texts[200:]) == index.gate(texts[200:])
    assert opened.nearest(texts) == index.nearest(texts)
    assert path.read_bytes() == before
    with pytest.raises(InputError, match="ROUGE-L index 1") as other_kind:
        RougeLIndex.open(path)
    path.write_bytes(before[:-10])
    with pytest.raises(InputError) as truncated:
        MinHashIndex.open(path)
    assert truncated.value.path == other_kind.value.path == path
    assert "MinHash index 1" not in str(truncated.value)


def test_datasketch_lsh_finds_the_same_matches() -> None:
    texts = near_duplicates(300, random.Random(8))
    index = MinHashIndex(0.6)
    index.add(texts)
    lsh = index.lsh()
    assert isinstance(lsh, MinHashLSH)
    for i, match in enumerate(index.nearest(texts)):
        candidates = lsh.query(index.minhash(texts[i]))
        assert str(i) in candidates
        assert match is not None
        assert str(match.row) in candidates
