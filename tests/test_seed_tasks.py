"""Tests of the shipped seed tasks: number, format, and similarity to each other."""

from __future__ import annotations

import unicodedata
from collections import Counter

import orjson
import pytest

from instructgen.filters.chain import Chain
from instructgen.filters.control_tokens import ControlTokens
from instructgen.filters.instance import InstanceFilter
from instructgen.generation.seed_pool import load_seeds
from instructgen.licensing.licenses import check_license
from instructgen.similarity import RougeLIndex
from instructgen.similarity.scripts import fits_language
from tests.conftest import ROOT

GENERAL = ROOT / "seeds" / "general.jsonl"
MULTILINGUAL = ROOT / "seeds" / "multilingual.jsonl"
KEYS = ["id", "instruction", "input", "output", "kind", "category", "language", "license"]
ROWS = [orjson.loads(line) for path in (GENERAL, MULTILINGUAL) for line in path.open("rb")]


def test_numbers_of_seeds_per_kind_and_language() -> None:
    general, _ = load_seeds([GENERAL])
    assert len(general) >= 175
    share = sum(s.kind == "classification" for s in general) / len(general)
    assert 0.12 <= share <= 0.18
    multilingual, _ = load_seeds([MULTILINGUAL])
    per_language = Counter(s.language for s in multilingual)
    assert set(per_language) == {"fa", "ar", "id", "ms", "zh", "es", "fr"}
    assert min(per_language.values()) >= 15


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r["id"])
def test_each_seed_has_valid_fields(row: dict) -> None:
    assert list(row) == KEYS
    for value in row.values():
        assert unicodedata.is_normalized("NFC", value)
        assert value == value.strip()
        assert "http" not in value
    assert row["license"] == check_license(row["license"]) == "CC0-1.0"
    assert row["kind"] in ("generation", "classification")
    assert fits_language(row["instruction"], row["language"])


def test_ids_are_unique() -> None:
    assert len({r["id"] for r in ROWS}) == len(ROWS)


def test_no_two_seeds_are_similar() -> None:
    kept, rejected = RougeLIndex(0.7).gate([r["instruction"] for r in ROWS])
    assert rejected == []
    assert len(kept) == len(ROWS)


def test_seeds_pass_the_row_filters() -> None:
    seeds, _ = load_seeds([GENERAL, MULTILINGUAL])
    chain = Chain([ControlTokens(), InstanceFilter()])
    verdicts = chain.evaluate(seeds, ("row",))
    assert len(verdicts) == len(seeds)
    assert [v.rejection for v in verdicts if v.rejection is not None] == []


def test_the_similarity_check_detects_a_near_copy() -> None:
    _, rejected = RougeLIndex(0.7).gate([ROWS[0]["instruction"], ROWS[0]["instruction"] + " Now."])
    assert len(rejected) == 1
