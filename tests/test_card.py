"""A dataset folder read with other tools: datasets, pandas, huggingface_hub; and its card."""

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
from instructgen.schema.statistics import RowCounts
from instructgen.store import LicenseCounts, TrainedRows, TrainingFacts
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("card") / "mine | odd: name"
    seeds = [ROOT / "seeds" / "general.jsonl", ROOT / "seeds" / "multilingual.jsonl"]
    instructgen.generate(seeds, 25, out, engine="echo")
    return out


def test_front_matter_is_yaml_that_the_hub_reads(generated: Path) -> None:
    text = (generated / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "cc0-1.0"
    assert set(front["language"]) >= {"en"}
    assert front["size_categories"] == ["n<1K"]
    assert [c["config_name"] for c in front["configs"]] == ["default", "rejected"]
    huggingface_hub = pytest.importorskip("huggingface_hub")
    card = huggingface_hub.DatasetCard(text)
    assert card.data.license == "cc0-1.0"


def test_package_datasets_loads_the_folder(generated: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(generated), split="train", cache_dir=str(tmp_path))
    assert loaded.num_rows == 25
    assert loaded[0]["messages"][0]["role"] == "user"
    assert {"id", "instruction", "input", "output", "license", "origin"} <= set(loaded.column_names)
    rejected = datasets.load_dataset(
        str(generated), "rejected", split="train", cache_dir=str(tmp_path)
    )
    assert rejected.num_rows > 0


def test_card_has_no_config_rejected_without_rejected_rows(tmp_path: Path) -> None:
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


def test_pandas_reads_the_folder(generated: Path) -> None:
    frame = pd.read_parquet(generated / "data")
    assert len(frame) == 25
    assert frame["id"].is_unique


def test_messages_contain_the_fields_of_the_row(generated: Path) -> None:
    for _, row in pd.read_parquet(generated / "data").iterrows():
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert row["instruction"] in user["content"]
        assert row["input"] in user["content"]
        assert assistant["content"] == row["output"]


def test_manifest_matches_the_files(generated: Path) -> None:
    manifest = orjson.loads((generated / "manifest.json").read_bytes())
    assert manifest["rows"] == 25
    for file in manifest["files"]:
        data = (generated / file["path"]).read_bytes()
        assert len(data) == file["bytes"]
        assert hashlib.sha256(data).hexdigest() == file["sha256"]
        assert len(pd.read_parquet(generated / file["path"])) == file["rows"]
    assert sum(manifest["terms"]["licenses"].values()) == 25
    facts = manifest["facts"]
    rejected = sum(r["count"] for r in manifest["rejections"])
    assert facts["candidates"] == facts["kept_instructions"] + facts["kept_rows"] + rejected
    assert manifest["rejected"] == rejected + facts["not_expanded"]
    assert facts["kept_rows"] == manifest["rows"]
    frame = pd.read_parquet(generated / "rejected")
    for r in manifest["rejections"]:
        rows = frame[(frame["stage"] == r["stage"]) & (frame["reason"] == r["reason"])]
        assert (rows["filter"] == r["filter"]).sum() == r["count"]


def test_parents_are_seeds_or_other_instructions_of_the_run(generated: Path) -> None:
    seeds = [orjson.loads(line) for line in (generated / "seeds.jsonl").open("rb")]
    known = {s["id"] for s in seeds}
    frame = pd.read_parquet(generated / "data")
    from instructgen.schema.sample import content_id

    known |= {content_id(i, "", "") for i in frame["instruction"]}
    rejected = pd.read_parquet(generated / "rejected")
    known |= {content_id(i, "", "") for i in rejected["instruction"]}
    for _, row in frame.iterrows():
        assert set(row["origin"]["parents"]) <= known
        assert len(row["origin"]["parents"]) >= 8


def test_rows_have_the_strictest_license_of_their_parents(tmp_path: Path, seeds_file: Path) -> None:
    """With two licenses among the seeds, a row has the license of its demonstrations."""
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


def training_facts(root: str, trainer: str, base: str = "models/before") -> TrainingFacts:
    return TrainingFacts(
        base=base,
        root=root,
        trainer=trainer,
        rows=TrainedRows(1, 1, "0" * 64, {}, 0, ""),
        steps=1,
        supervised_tokens=3,
        seconds=1.0,
        total_seconds=1.0,
        tokens_per_s=3.0,
        resumed=False,
        reload={},
        evaluation=(),
        terms=LicenseCounts({"MIT": 1}, {}, {}),
        versions={},
    )


@pytest.mark.parametrize(
    ("root", "trainer", "base", "tag"),
    [
        ("HuggingFaceTB/SmolLM2-135M", "sft", "HuggingFaceTB/SmolLM2-135M", "text-generation"),
        ("smollm2", "dpo", None, "text-generation"),
        ("models/mine", "reward", None, "text-classification"),
        ("/data/mine", "sft", None, "text-generation"),
    ],
)
def test_model_card_names_the_base_model_only_if_it_is_on_the_hub(
    root: str,
    trainer: str,
    base: str | None,
    tag: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    contents = RowCounts()
    contents.add([Sample("Say one.", output="One.", source="a", license="MIT")])
    card = model_card("m: a", "d", contents, training_facts(root, trainer), {})
    front = yaml.safe_load(card.split("---\n")[1])
    assert front.get("base_model") == base
    assert (front["pipeline_tag"], front["model_name"]) == (tag, "m: a")
