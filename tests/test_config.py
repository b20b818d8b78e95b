"""Tests of recipes: shipped recipes load, and an error names every invalid key."""

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
    # These two have filters that need the whole dataset, which generation cannot give.
    if path.stem in ("strict", "preference"):
        with pytest.raises(ConfigError, match=r"\bduplicate\b"):
            load_config(path.stem, ECHO)
        return
    config = load_config(path.stem, ECHO)
    assert config.filters
    assert config.method.name == ("alpaca" if path.stem == "alpaca" else "self_instruct")
    again = from_recorded(config.recorded(), path)
    assert again.recorded() == config.recorded()


def test_self_instruct_recipe_matches_the_paper() -> None:
    config = load_config("self_instruct", ECHO)
    assert [f.name for f in config.filters] == ["length", "wording", "novelty", "instance"]
    assert config.method.style == "completion"
    novelty = config.filters[2].model_dump()
    assert novelty == {"threshold": 0.7, "tokenizer": "ascii", "compatible": "rouge-score"}


def test_options_override_the_recipe(tmp_path: Path) -> None:
    text = '[generate]\ntarget = 9\nseed = 3\n[engine]\nname = "vllm"\nmax_model_len = 512\n'
    config = load(tmp_path, text)
    assert (config.generate.target, config.generate.seed) == (5, 3)
    # The option selects another engine, so the engine keys of the recipe do not apply.
    assert config.engine.name == "echo"
    config = load(tmp_path, text, engine={"name": None, "model": "smollm2"})
    assert config.engine.name == "vllm"
    assert config.engine.model_dump()["max_model_len"] == 512


# By name: a recipe, and what its error must contain: the key, its value, or the suggested name.
INVALID = {
    "malformed": ("[generate", ("r.toml: ", "TOML")),
    "unknown table": ("[genrate]\n", (": genrate: ", " generate?")),
    "unknown key": ("[generate]\ninflight = 3\n", (": generate.inflight: ", " in_flight?")),
    "renamed": ("[generate]\nbatch_size = 3\n", (": generate.batch_size: ", " in_flight.")),
    "out of range": ("[generate]\nin_flight = 0\n", (": generate.in_flight: ", " 1 ", " 0)")),
    "wrong type": ('[generate]\nseed = "x"\n', (": generate.seed: ", "integer", "'x'")),
    "nested": (
        "[method.instructions]\ntemprature = 1\n",
        (": method.instructions.temprature: ", " temperature?"),
    ),
    "overridden by an option": (
        "[generate]\ntarget = 5.5\n",
        ("r.toml: generate.target: ", " all ", " 5.5)"),
    ),
    "rejects every row": (
        '[[filters]]\nname = "length"\nmin_words = 9\nmax_words = 8\n',
        (": filters 1 (length)", "min_words", "max_words"),
    ),
    "empty word": (
        '[[filters]]\nname = "wording"\nwords = [""]\n',
        (": filters 1 (wording).words", "empty"),
    ),
    "unknown filter": ('[[filters]]\nname = "novelti"\n', ("'novelti'", " novelty?")),
    "filter without name": ("[[filters]]\nthreshold = 1\n", (": filters 1: ", '"name"')),
    "filters is a table": ("[filters]\nx = 1\n", ("filters", "[[filters]]")),
    "unknown word list": (
        '[[filters]]\nname = "wording"\nlists = ["nope"]\n',
        (": filters 1 (wording).lists", "'nope'", "boilerplate"),
    ),
    "threshold": (
        '[[filters]]\nname = "novelty"\nthreshold = 7\n',
        (": filters 1 (novelty).threshold", " 1 ", " 7)"),
    ),
    "dotted path": ('[[filters]]\nname = "os.system"\n', ("'os.system'", "novelty")),
    "unknown method": ('[method]\nname = "magic"\n', ("'magic'", "self_instruct")),
    "not UTF-8": (b"[generate]\nseed = \xff\n", ("r.toml: ", "TOML", "0xff")),
    "value instead of a table": ("generate = 3\n", ("generate", "[generate]")),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_recipes_raise_an_error_that_names_the_key(tmp_path: Path, name: str) -> None:
    text, facts = INVALID[name]
    path = tmp_path / "r.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load_config(str(path), ECHO)
    assert [fact for fact in facts if fact not in str(caught.value)] == []


def test_every_invalid_key_has_its_own_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "[generate]\nin_flight = 0\nsede = 1\n")
    lines = str(caught.value).strip().splitlines()
    assert ["generate.in_flight" in line for line in lines] == [True, False]
    assert ["generate.sede" in line for line in lines] == [False, True]


def test_missing_key_error_names_a_flag_only_if_there_is_one(tmp_path: Path) -> None:
    text = "[method.instructions]\ntemperature = 1\n"
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    (line,) = str(caught.value).splitlines()
    assert "method.instructions.max_tokens: " in line
    assert "--" not in line
    with pytest.raises(ConfigError, match="--target"):
        load(tmp_path, "", generate={"target": None})


def test_a_long_value_is_truncated_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f'[generate]\nseed = "{"x" * 10_000}"\n')
    assert len(str(caught.value)) < 400


def test_missing_recipes_raise_an_error() -> None:
    with pytest.raises(ConfigError, match=r"defualt.* default\?"):
        load_config("defualt", ECHO)
    with pytest.raises(ConfigError, match=r"^none\.toml: "):
        load_config("none.toml", ECHO)


def test_target_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="--target"):
        load_config("default", {**ECHO, "generate": {"target": 0}})


@pytest.mark.parametrize("group", ["engines", "methods"])
def test_every_engine_and_method_key_has_a_description(group: str) -> None:
    for name, cls in classes(group).items():
        for key, field in cls.model_fields.items():
            assert field.description, f"{group}.{name}.{key}"


def test_shipped_seeds_are_found() -> None:
    assert (shipped("seeds") / "general.jsonl").is_file()


def test_methods_that_check_their_answers_have_a_recipe_of_their_own() -> None:
    assert {c.name for c in classes("methods").values() if c.recipe == "grounded"} == {
        "document",
        "tool_dialogue",
        "solve",
        "code",
    }
    for name in ("document", "solve", "code", "alpaca", None):
        recipe = "default" if name in ("alpaca", None) else "grounded"
        chosen = {**ECHO, "method": {"name": name}}
        assert load_config(None, chosen).filters == load_config(recipe, chosen).filters
    assert not {f.name for f in load_config("grounded", ECHO).filters} & {"wording", "refusal"}
