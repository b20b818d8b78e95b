"""One options object per command: the command line, Python and pipelines have the same defaults."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pytest

import instructgen
from instructgen.cli import cli
from instructgen.cli.flags import OptionsCommand, values_of
from instructgen.commands.interface import Options, facts_of, flag_of
from instructgen.commands.options import (
    ABLATE_FLAGS,
    TRAIN_FLAGS,
    DedupOptions,
    GenerateOptions,
    MergeOptions,
    PreviewOptions,
    TrainOptions,
)
from instructgen.errors import ConfigError, InputError
from instructgen.generation.options import load_config
from instructgen.pipeline.command import run as run_command
from instructgen.pipeline.definition import OUTPUTS, load_steps
from instructgen.store import read_provenance, read_rows
from instructgen.training.options import OPTIONS, SftOptions
from tests.conftest import ROOT

COMMANDS = {**cli.commands, "run": run_command}
WITH_OPTIONS = {n: c for n, c in COMMANDS.items() if isinstance(c, OptionsCommand)}
PYTHON = {**{name: name for name in WITH_OPTIONS if name != "chat"}, "import": "import_data"}
# Values of the options that have no default.
REQUIRED: dict[str, Any] = {
    "seeds": "a.jsonl", "target": 5, "out": "o", "data": "d", "row_id": "r", "run": "r",
    "path": "p.jsonl", "inputs": "i", "format": "alpaca", "to": "t", "name": "org/name",
    "trainer": "sft", "model": "m", "datasets": "d", "tokens": 9, "score": "judge:m",
    "pipeline": "quickstart",
}  # fmt: skip


def required(options: type[Options]) -> dict[str, Any]:
    fields = options.model_fields.items()
    # The default method draws seeds without an end, so it needs a target.
    needed = {"target"} if options is GenerateOptions else set[str]()
    return {n: REQUIRED[n] for n, field in fields if field.is_required() or n in needed}


def minimal_argv(name: str) -> list[str]:
    options = WITH_OPTIONS[name].options
    words, flags = [], []
    for field, value in required(options).items():
        if facts_of(options.model_fields[field]).get("argument"):
            words.append(str(value))
        else:
            flags.append(f"{flag_of(options, field)}={value}")
    return [*words, *flags]


def parsed(name: str, argv: list[str]) -> Options:
    command = WITH_OPTIONS[name]
    with command.make_context(name, argv) as context:
        return command.options.checked(values_of(command.options, context.params))


@pytest.mark.parametrize("name", sorted(WITH_OPTIONS))
def test_the_command_line_has_the_defaults_of_the_options(name: str) -> None:
    options = WITH_OPTIONS[name].options
    assert parsed(name, minimal_argv(name)) == options.checked(required(options))


@pytest.mark.parametrize("name", sorted(PYTHON))
def test_python_has_the_defaults_of_the_options(name: str) -> None:
    function, options = getattr(instructgen, PYTHON[name]), WITH_OPTIONS[name].options
    assert function.options is options
    parameters = inspect.signature(function).parameters
    assert set(options.model_fields) <= set(parameters)
    for field_name, field in options.model_fields.items():
        default = parameters[field_name].default
        # Python requires values before a required parameter; these may be omitted by name.
        before_out = name == "generate" and field_name in ("seeds", "target")
        if field.is_required() or before_out:
            assert default is inspect.Parameter.empty
        else:
            assert default == field.default
        assert f"{field_name}: {field.description}" in " ".join(function.__doc__.split("\n    "))


@pytest.mark.parametrize("name", sorted(OUTPUTS))
def test_a_step_of_a_pipeline_has_the_defaults_of_the_options(name: str, tmp_path: Path) -> None:
    argv = [a for a in minimal_argv(name) if not a.startswith(("--out=", "--to="))]
    words = ["sft", "d"] if name == "train" else [a for a in argv if not a.startswith("--")]
    keys = [a[2:].split("=", 1) for a in argv if a.startswith("--") and name != "train"]
    (tmp_path / "p.toml").write_text(
        f'[[steps]]\nname = "it"\nrun = "{" ".join([name, *words])}"\n'
        + "".join(f"{json.dumps(key)} = {json.dumps(value)}\n" for key, value in keys),
        "utf-8",
    )
    (step,) = load_steps(str(tmp_path / "p.toml"), tmp_path / "out", {}, small=False)
    options = WITH_OPTIONS[name].options
    values = required(options)
    output = "to" if name == "export" else "out"
    values[output] = step.out
    assert step.parsed == options.checked(values)


@pytest.mark.parametrize("name", sorted(WITH_OPTIONS))
def test_the_help_shows_the_defaults_of_the_options(name: str) -> None:
    context = click.Context(WITH_OPTIONS[name], info_name=name)
    text = " ".join(WITH_OPTIONS[name].get_help(context).split())
    for field in WITH_OPTIONS[name].options.model_fields.values():
        assert str(field.description).split(". ")[0].split()[0] in text
        default = field.default
        shown = facts_of(field).get("shown")
        if not shown and isinstance(default, str | int | float) and default not in ("", False):
            assert f"default: {default}]" in text, default


def test_defaults_that_depend_on_a_recipe_are_shown_as_they_are() -> None:
    """These options are None if they are not given; the help shows what the recipe then sets."""
    config = load_config("default", {"generate": {"target": 1}})
    fields = PreviewOptions.model_fields
    shown = {name: facts_of(field).get("shown") for name, field in fields.items()}
    assert shown["seed"] == str(config.generate.seed)
    assert shown["passes"] == str(config.generate.passes)
    assert shown["method"] == config.method.name
    assert shown["engine"] == config.engine.name
    for flags in (TRAIN_FLAGS, ABLATE_FLAGS):
        for name, field in flags.items():
            default = SftOptions.model_fields[name].default
            assert field.default is None
            # Where the text differs, it explains a default such as 0 or None.
            explained = {"tokens", "peft", "learning_rate", "max_length", "pass_rate"}
            assert name in explained or facts_of(field)["shown"] == (
                "" if default is None else str(default)
            )


def test_no_option_is_declared_twice() -> None:
    """A flag that is not in the options class belongs to the display of the command."""
    display = {"show", "show_masks", "strategy", "processes", "dry_run", "quiet", "as_json",
               "plugin", "format_and_path", "pipeline", "help"}  # fmt: skip
    for name, command in WITH_OPTIONS.items():
        own = {**TRAIN_FLAGS} if name in ("train", "ablate") else {}
        extra = {str(p.name) for p in command.params} - command.options.model_fields.keys()
        assert extra <= display | own.keys(), name


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: instructgen.dedup("a", "b", frame_quota=0), "frame_quota"),
        (lambda: instructgen.generate("a", 0, "b"), "target"),
        (lambda: instructgen.prefer("a", "b", score="judge:x", max_tokens=0), "max_tokens"),
        (lambda: instructgen.evaluate("m", limit=0), "limit"),
        (lambda: instructgen.train("sfd", "a", "b"), "trainer"),
    ],
)
def test_python_errors_name_the_parameter(call: Any, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        call()
    assert str(caught.value).startswith(f"{named}: ")
    assert "--" not in str(caught.value)


def test_a_value_in_a_message_is_translated_too(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"instruction": "a"\n')
    with pytest.raises(InputError) as caught:
        instructgen.import_data(file, tmp_path / "o")
    assert 'on_bad_row="reject"' in str(caught.value)
    assert (caught.value.path, caught.value.line) == (file, 1)


@pytest.mark.parametrize(
    ("call", "new"),
    [
        (lambda: instructgen.run("quickstart", limit=True), "small"),
        (lambda: instructgen.explain(out="a", row_id="b"), "data"),
        (lambda: instructgen.rebuild(out="a"), "run"),
        (lambda: instructgen.train(method="sft", data="a", out="b"), "trainer"),
        (lambda: instructgen.train("ppo", "a", "b", reward="verifiers:math", kl=0.1), "kl_coef"),
        (lambda: instructgen.train("ppo", "a", "b", reward="verifiers:math", clip=1), "clip_range"),
        (
            lambda: instructgen.train("ppo", "a", "b", reward="verifiers:math", passes=1),
            "ppo_epochs",
        ),
    ],
)
def test_an_old_name_is_answered_with_the_new_one(call: Any, new: str) -> None:
    with pytest.raises(ConfigError, match=f"was renamed to {new}"):
        call()


def test_an_old_flag_is_answered_with_the_new_one() -> None:
    with pytest.raises(click.UsageError) as caught:
        run_command.make_context("run", ["quickstart", "--limit"])
    assert "--small" in str(caught.value)


def test_an_old_criterion_is_answered_with_the_new_one(tmp_path: Path) -> None:
    rows = [{"instruction": "Name a color", "output": "Red."}]
    with pytest.raises(ConfigError, match="license"):
        instructgen.dedup(rows, tmp_path / "o", priority="licence", license="MIT")


def test_an_options_object_stands_for_the_arguments(tmp_path: Path) -> None:
    rows = [{"instruction": f"Name a color of the {w}", "output": "Red."} for w in ("sun", "sea")]
    given = {"license": "MIT", "language": "en"}
    instructgen.import_data(rows, tmp_path / "a", **given)
    options = MergeOptions(inputs=tmp_path / "a", out=tmp_path / "b")
    assert instructgen.merge(options).rows == instructgen.merge(tmp_path / "a", tmp_path / "c").rows


def test_a_data_frame_and_a_list_of_dicts_stand_for_a_file(tmp_path: Path) -> None:
    rows = [{"instruction": f"Name a color of the {w}", "output": "Red."} for w in ("sun", "sea")]
    given = {"license": "MIT", "language": "en"}
    instructgen.import_data(pd.DataFrame(rows), tmp_path / "a", **given)
    instructgen.import_data(rows, tmp_path / "b", **given)
    read = [[row["instruction"] for row in read_rows(tmp_path / name)] for name in "ab"]
    assert read[0] == read[1] == [row["instruction"] for row in rows]
    # Named by content, so that equal rows are the same input: nothing is written again.
    assert instructgen.import_data(list(rows), tmp_path / "b", **given).unchanged
    name = read_provenance(tmp_path / "b").inputs[0].name
    assert name.startswith("rows-") and str(tmp_path) not in name
    both = instructgen.dedup(
        [tmp_path / "a", pd.DataFrame(rows)], tmp_path / "c", how="exact", **given
    )
    assert (both.rows, both.rejected) == (2, 2)
    run = instructgen.generate(rows * 4, 3, tmp_path / "run", engine="echo", recipe=RECIPE, **given)
    assert run.rows == 3


RECIPE = {"generate": {"in_flight": 4}, "filters": [{"name": "length"}]}


@pytest.mark.parametrize(
    "rows",
    [
        [{"instruction": "a", "output": object()}],
        [{"instruction": "a", "output": "\ud800"}],
        [{1: "a"}],
        [{"n": 2**80}],
        pd.DataFrame([["a", "b"]], columns=["x", "x"]),
        pd.DataFrame({"instruction": [b"\xff"]}),
    ],
)
def test_rows_that_are_not_json_are_an_input_error(tmp_path: Path, rows: Any) -> None:
    with pytest.raises(InputError, match=r"^path: "):
        instructgen.import_data(rows, tmp_path / "o", license="MIT")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda o: instructgen.merge([], o), "inputs"),
        (lambda o: instructgen.dedup(["a"], o, how=[]), "how"),
        (lambda o: instructgen.report([], o), "inputs"),
        (lambda o: instructgen.generate([], 3, o), "seeds"),
        (lambda o: instructgen.prefer("a", o, score="judge:x", seed=2**70), "seed"),
        (lambda o: instructgen.dedup(["a"], o, frame_quota=2**70), "frame_quota"),
        (lambda o: instructgen.generate([{"a": 1}, "f"], 3, o), "seeds"),
        (lambda o: instructgen.curate("a", o, recipe={"x": object()}), "recipe"),
        (lambda o: instructgen.train("sft", "a", o, settings="x", peft="lora"), "settings"),
        (lambda o: instructgen.train("sft", "a", o, settings=3), "settings"),
    ],
)
def test_values_of_a_wrong_kind_name_the_parameter(tmp_path: Path, call: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{named}: "):
        call(tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_dict_stands_for_a_recipe(tmp_path: Path) -> None:
    rows = [{"instruction": f"Name a color of the {w}", "output": "Red."} for w in ("sun", "sea")]
    instructgen.import_data(rows, tmp_path / "a", license="MIT", language="en")
    recipe = {"filters": [{"name": "length", "min_words": 99}]}
    result = instructgen.curate(tmp_path / "a", tmp_path / "b", recipe=recipe)
    assert [(r.filter, r.count) for r in result.rejections] == [("length", 2)]
    with pytest.raises(ConfigError) as caught:
        instructgen.curate(
            tmp_path / "a", tmp_path / "c", recipe={"filters": [{"name": "length", "max_word": 9}]}
        )
    assert str(caught.value).startswith("recipe.toml: ")


def test_train_takes_typed_settings() -> None:
    settings = SftOptions(tokens=500, peft="lora")
    by_object = TrainOptions(trainer="sft", data="d", out="o", settings=settings)
    by_name = TrainOptions(
        trainer="sft", data="d", out="o", settings={"tokens": 500, "peft": "lora"}
    )
    assert by_object == by_name


def test_a_single_name_stands_for_a_list() -> None:
    assert DedupOptions(inputs="a", out="o", how="exact").how == ("exact",)
    assert DedupOptions(inputs="a", out="o").inputs == (Path("a"),)


def test_every_trainer_lists_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    for name, model in OPTIONS.items():
        cli.main(["trainers", name], standalone_mode=False)
        out = capsys.readouterr().out
        assert all(key in out for key in model.model_fields)


def test_the_reference_lists_every_option() -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    for name, command in WITH_OPTIONS.items():
        section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for field in command.options.model_fields:
            assert f"`{flag_of(command.options, field)}" in section, (name, field)
