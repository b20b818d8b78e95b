"""The dataset as others open it: datasets, pandas, the Hub's card, the manifest."""

from __future__ import annotations

import hashlib
from pathlib import Path

import orjson
import pandas as pd
import pytest
import yaml

import instructgen
from instructgen.reports.cards import model_card
from instructgen.schema.sample import Sample
from instructgen.schema.statistics import Contents
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("card") / "mine | odd: name"
    seeds = [ROOT / "seeds" / "general.jsonl", ROOT / "seeds" / "multilingual.jsonl"]
    instructgen.generate(seeds, 25, out, engine="echo")
    return out


def test_front_matter_is_yaml_the_hub_reads(made: Path) -> None:
    text = (made / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "cc0-1.0"
    assert set(front["language"]) >= {"en"}
    assert front["size_categories"] == ["n<1K"]
    assert [c["config_name"] for c in front["configs"]] == ["default", "rejected"]
    huggingface_hub = pytest.importorskip("huggingface_hub")
    card = huggingface_hub.DatasetCard(text)
    assert card.data.license == "cc0-1.0"


def test_datasets_opens_it_as_it_is(made: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(made), split="train", cache_dir=str(tmp_path))
    assert loaded.num_rows == 25
    assert loaded[0]["messages"][0]["role"] == "user"
    assert {"id", "instruction", "input", "output", "license", "origin"} <= set(loaded.column_names)
    rejected = datasets.load_dataset(str(made), "rejected", split="train", cache_dir=str(tmp_path))
    assert rejected.num_rows > 0


def test_a_dataset_that_rejects_nothing_names_no_rejected_rows(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    file = tmp_path / "a.jsonl"
    file.write_text('{"instruction": "Say one.", "output": "One."}\n')
    instructgen.import_data(file, tmp_path / "d", license="MIT", language="en")
    text = (tmp_path / "d" / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert [c["config_name"] for c in front["configs"]] == ["default"]
    cache = str(tmp_path / "cache")
    assert datasets.get_dataset_config_names(str(tmp_path / "d")) == ["default"]
    assert datasets.load_dataset(str(tmp_path / "d"), split="train", cache_dir=cache).num_rows == 1
    assert len(pd.read_parquet(tmp_path / "d" / "rejected")) == 0


def test_pandas_opens_it(made: Path) -> None:
    frame = pd.read_parquet(made / "data")
    assert len(frame) == 25
    assert frame["id"].is_unique


def test_messages_hold_the_row(made: Path) -> None:
    for _, row in pd.read_parquet(made / "data").iterrows():
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert row["instruction"] in user["content"]
        assert row["input"] in user["content"]
        assert assistant["content"] == row["output"]


def test_the_manifest_tells_the_truth(made: Path) -> None:
    manifest = orjson.loads((made / "manifest.json").read_bytes())
    assert manifest["rows"] == 25
    for file in manifest["files"]:
        data = (made / file["path"]).read_bytes()
        assert len(data) == file["bytes"]
        assert hashlib.sha256(data).hexdigest() == file["sha256"]
        assert len(pd.read_parquet(made / file["path"])) == file["rows"]
    assert sum(manifest["licenses"].values()) == 25
    funnel = manifest["funnel"]
    lost = sum(r["count"] for r in funnel["rejected"])
    assert funnel["candidates"] == funnel["kept_instructions"] + funnel["kept_rows"] + lost
    assert manifest["rejected"] == lost + funnel["not_expanded"]
    assert funnel["kept_rows"] == manifest["rows"]
    frame = pd.read_parquet(made / "rejected")
    for r in funnel["rejected"]:
        rows = frame[(frame["stage"] == r["stage"]) & (frame["reason"] == r["reason"])]
        assert (rows["filter"] == r["filter"]).sum() == r["count"]


def test_parents_are_seeds_or_kept_instructions(made: Path) -> None:
    seeds = [orjson.loads(line) for line in (made / "seeds.jsonl").open("rb")]
    known = {s["id"] for s in seeds}
    frame = pd.read_parquet(made / "data")
    from instructgen.schema.sample import content_id

    known |= {content_id(i, "", "") for i in frame["instruction"]}
    rejected = pd.read_parquet(made / "rejected")
    known |= {content_id(i, "", "") for i in rejected["instruction"]}
    for _, row in frame.iterrows():
        assert set(row["origin"]["parents"]) <= known
        assert len(row["origin"]["parents"]) >= 8


def test_rows_carry_the_strictest_of_their_parents(tmp_path: Path, seeds_file: Path) -> None:
    """Two sources under two licences: a row carries those of the demonstrations it was shown."""
    rows = seeds_file.read_bytes().replace(b"CC0-1.0", b"CC-BY-4.0", 6)
    seeds_file.write_bytes(rows)
    out = tmp_path / "run"
    instructgen.generate(seeds_file, 8, out, engine="echo")
    seeds = [orjson.loads(line) for line in (out / "seeds.jsonl").open("rb")]
    attribution = {s["id"] for s in seeds if s["license"] == "CC-BY-4.0"}
    frame = pd.read_parquet(out / "data")
    for _, row in frame.iterrows():
        direct = bool(attribution & set(row["origin"]["parents"]))
        if direct:
            assert row["license"] == "CC-BY-4.0"
    assert "CC-BY-4.0" in set(frame["license"])


@pytest.mark.parametrize(
    ("root", "method", "base", "tag"),
    [
        ("HuggingFaceTB/SmolLM2-135M", "sft", "HuggingFaceTB/SmolLM2-135M", "text-generation"),
        ("smollm2", "dpo", None, "text-generation"),
        ("models/mine", "reward", None, "text-classification"),
        ("/data/mine", "sft", None, "text-generation"),
    ],
)
def test_a_models_card_names_a_base_that_others_can_find(
    root: str, method: str, base: str | None, tag: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    contents = Contents()
    contents.add([Sample("Say one.", output="One.", source="a", license="MIT")])
    facts = {
        "root": root, "base": "models/before", "method": method, "steps": 1, "options": {},
        "rows": {"train": 1, "left_out": {}, "sha256": "0" * 64}, "supervised_tokens": 3,
        "evaluation": {}, "versions": {},
    }  # fmt: skip
    front = yaml.safe_load(model_card("m: a", "d", contents, facts).split("---\n")[1])
    assert front.get("base_model") == base
    assert (front["pipeline_tag"], front["model_name"]) == (tag, "m: a")
