"""Recipes: every shipped one loads, every bad key has its line, nothing in them is code."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructgen.errors import ConfigError
from instructgen.generation.options import Config, from_recorded, load_config
from instructgen.plugins import classes
from instructgen.resources import shipped
from tests.conftest import ROOT

ECHO = {"generate": {"target": 5}, "engine": {"name": "echo"}}


def load(tmp_path: Path, text: str, **over) -> Config:
    path = tmp_path / "r.toml"
    path.write_text(text)
    return load_config(str(path), {**ECHO, **over})


@pytest.mark.parametrize("path", sorted((ROOT / "filters").glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_recipes_load(path: Path) -> None:
    if path.stem in ("strict", "preference"):
        with pytest.raises(ConfigError, match="duplicate needs the whole dataset"):
            load_config(path.stem, ECHO)
        return
    config = load_config(path.stem, ECHO)
    assert config.filters
    assert config.method.name == ("alpaca" if path.stem == "alpaca" else "self_instruct")
    again = from_recorded(config.recorded(), path)
    assert again.recorded() == config.recorded()


def test_the_papers_recipe_is_the_papers() -> None:
    config = load_config("self_instruct", ECHO)
    assert [f.name for f in config.filters] == ["length", "wording", "novelty", "instance"]
    assert config.method.style == "completion"
    novelty = config.filters[2].model_dump()
    assert novelty == {"threshold": 0.7, "tokenizer": "ascii", "compatible": "rouge-score"}


def test_options_go_over_the_recipe(tmp_path: Path) -> None:
    text = '[generate]\ntarget = 9\nseed = 3\n[engine]\nname = "vllm"\nmax_model_len = 512\n'
    config = load(tmp_path, text)
    assert (config.generate.target, config.generate.seed) == (5, 3)
    # Another engine than the recipe's: its keys are not meant for this one.
    assert config.engine.name == "echo"
    config = load(tmp_path, text, engine={"name": None, "model": "smollm2"})
    assert config.engine.name == "vllm"
    assert config.engine.model_dump()["max_model_len"] == 512


BAD = {
    "no TOML": ("[generate", "no valid TOML"),
    "unknown table": ("[genrate]\n", "genrate: unknown table. Did you mean generate"),
    "unknown key": (
        "[generate]\nbatchsize = 3\n",
        "generate.batchsize: unknown key. Did you mean batch_size",
    ),
    "out of range": (
        "[generate]\nbatch_size = 0\n",
        "generate.batch_size: input should be greater",
    ),
    "wrong type": ('[generate]\nseed = "x"\n', "generate.seed: input should be a valid integer"),
    "nested": (
        "[method.instructions]\ntemprature = 1\n",
        "temprature: unknown key. Did you mean temperature",
    ),
    "hidden by an option": ("[generate]\ntarget = 5.5\n", "r.toml: generate.target: input"),
    "rejects all": (
        '[[filters]]\nname = "length"\nmin_words = 9\nmax_words = 8\n',
        "filters 1 (length): min_words = 9 above max_words = 8 rejects all.",
    ),
    "empty word": ('[[filters]]\nname = "wording"\nwords = [""]\n', "an empty text rejects all"),
    "unknown filter": ('[[filters]]\nname = "novelti"\n', "Did you mean novelty"),
    "filter without name": ("[[filters]]\nthreshold = 1\n", '"name" is missing'),
    "filters no list": ("[filters]\nx = 1\n", "filters: not a list"),
    "unknown list": ('[[filters]]\nname = "wording"\nlists = ["nope"]\n', "none of the word lists"),
    "threshold": (
        '[[filters]]\nname = "novelty"\nthreshold = 7\n',
        "filters 1 (novelty).threshold",
    ),
    "dotted path": ('[[filters]]\nname = "os.system"\n', "none of the filters"),
    "unknown method": ('[method]\nname = "magic"\n', "none of the methods"),
    "not UTF-8": (b"[generate]\nseed = \xff\n", "no valid TOML"),
    "table as value": ("generate = 3\n", "generate: not a table"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_recipes(tmp_path: Path, name: str) -> None:
    text, message = BAD[name]
    path = tmp_path / "r.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load_config(str(path), ECHO)
    assert message.lower() in str(caught.value).lower()


def test_every_bad_key_has_a_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "[generate]\nbatch_size = 0\nsede = 1\n")
    assert len(str(caught.value).strip().splitlines()) == 2


def test_a_missing_key_names_a_flag_only_where_there_is_one(tmp_path: Path) -> None:
    text = "[method.instructions]\ntemperature = 1\n"
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert "max_tokens: is missing. Add it." in str(caught.value)
    with pytest.raises(ConfigError, match="Add it, or give --target"):
        load(tmp_path, "", generate={"target": None})


def test_a_long_value_is_cut_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f'[generate]\nseed = "{"x" * 10_000}"\n')
    assert len(str(caught.value)) < 400


def test_recipes_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match="Did you mean default"):
        load_config("defualt", ECHO)
    with pytest.raises(ConfigError, match="no such recipe"):
        load_config("none.toml", ECHO)


def test_target_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="--target"):
        load_config("default", {**ECHO, "generate": {"target": 0}})


@pytest.mark.parametrize("group", ["engines", "methods"])
def test_every_key_is_described(group: str) -> None:
    for name, cls in classes(group).items():
        for key, field in cls.model_fields.items():
            assert field.description, f"{group}.{name}.{key}"


def test_shipped_data_is_found() -> None:
    assert (shipped("seeds") / "general.jsonl").is_file()
