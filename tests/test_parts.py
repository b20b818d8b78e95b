"""The lists of filters, methods, engines and other parts, and code of the user's own."""

from __future__ import annotations

import tomllib
from pathlib import Path

import orjson
import pytest

import instructgen
from instructgen import plugins
from instructgen.commands.parts import GROUPS, describe_part, describe_parts
from instructgen.errors import ConfigError
from instructgen.pipeline.definition import load_steps
from instructgen.plugins import classes, find, load_plugin
from instructgen.training.options import OPTIONS
from tests import forks
from tests.conftest import ROOT

EXAMPLE = ROOT / "examples" / "my_plugin.py"


@pytest.mark.parametrize("group", GROUPS)
def test_every_part_and_every_option_is_described(group: str) -> None:
    parts = describe_parts(group)
    known = OPTIONS if group == "trainers" else classes(GROUPS[group])
    assert {part.name for part in parts} == set(known)
    for part in parts:
        assert part.about and part.example, part.name
        assert describe_part(group, part.name) == part
        if group != "formats":
            assert [o.name for o in part.options] == list(known[part.name].model_fields)
        for option in part.options:
            assert len(option.about) > 5, (part.name, option.name)


def test_a_method_shows_what_it_starts_from_and_its_stages() -> None:
    parts = {part.name: part for part in describe_parts("methods")}
    assert parts["evol"].stages == "starts from rows; stages: evolve, compare (judge), answer"
    assert parts["evol"].example.startswith("instructgen generate --method evol --seeds ")
    assert "--seeds" not in parts["magpie"].example


@pytest.mark.parametrize("group", ["filters", "engines"])
def test_the_examples_are_valid(group: str) -> None:
    for part in describe_parts(group):
        tables = tomllib.loads(part.example)
        values = tables["filters"][0] if group == "filters" else tables[group.removesuffix("s")]
        name = values.pop("name")
        model = find(GROUPS[group], name)
        required = {k for k, field in model.model_fields.items() if field.is_required()}
        if not required - values.keys():
            model.model_validate(values)


def test_defaults_are_those_of_the_code() -> None:
    for group in ("filters", "methods", "engines", "verifiers", "suites"):
        for part in describe_parts(group):
            model = find(GROUPS[group], part.name)
            for option in part.options:
                field = model.model_fields[option.name]
                assert (option.default == "") == field.is_required()
                if isinstance(field.default, int | float) and not isinstance(field.default, bool):
                    assert float(option.default) == field.default


def test_the_command_line_lists_them() -> None:
    done = forks.command("filters", "--json")
    names = [part["name"] for part in orjson.loads(done.stdout)]
    assert names == list(classes("filters"))
    one = forks.command("filters", "length")
    assert one.returncode == 0
    assert "min_words" in one.stdout and "[[filters]]" in one.stdout
    wrong = forks.command("filters", "lenght")
    assert wrong.returncode == 2
    assert "length" in wrong.stderr


def test_a_filter_and_a_method_from_a_file(tmp_path: Path) -> None:
    seeds = ROOT / "seeds" / "general.jsonl"
    args = ["--plugin", EXAMPLE, "--method", "rephrase", "--engine", "echo", "--seeds", seeds]
    done = forks.command("generate", *args, "--target", 3, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    info = orjson.loads((tmp_path / "run" / "run.json").read_bytes())
    assert info["config"]["plugins"]["methods.rephrase"]["file"] == "my_plugin.py"
    without = forks.command("rebuild", tmp_path / "run")
    assert without.returncode == 2
    assert "rephrase" in without.stderr and "--plugin" in without.stderr
    again = forks.command("rebuild", tmp_path / "run", "--plugin", EXAMPLE)
    assert again.returncode == 0, again.stderr
    (tmp_path / "r.toml").write_text('[[filters]]\nname = "no_questions"\n')
    args = ["--plugin", EXAMPLE, "--recipe", tmp_path / "r.toml", "--out", tmp_path / "clean"]
    done = forks.command("curate", tmp_path / "run", *args, "--json")
    assert done.returncode == 0, done.stderr
    provenance = orjson.loads((tmp_path / "clean" / "provenance.json").read_bytes())
    assert len(provenance["plugins"]["filters.no_questions"]["sha256"]) == 16


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_FROM_FILES", {})
    yield
    plugins.classes.cache_clear()


@pytest.mark.usefixtures("loaded")
def test_python_loads_a_file_too(tmp_path: Path) -> None:
    added = load_plugin(EXAMPLE)
    assert {cls.name for cls in added} == {"no_questions", "rephrase"}
    assert load_plugin(EXAMPLE) == added
    assert find("filters", "no_questions") in added
    rows = [
        {"instruction": "Where is the sun at night?", "output": "Behind us."},
        {"instruction": "Describe the sea in a storm.", "output": "It is rough."},
    ]
    instructgen.import_data(rows, tmp_path / "a", license="MIT", language="en")
    recipe = {"filters": [{"name": "no_questions"}]}
    result = instructgen.curate(tmp_path / "a", tmp_path / "b", recipe=recipe)
    assert [(r.filter, r.reason, r.count) for r in result.rejections] == [
        ("no_questions", "question", 1)
    ]


PLUGIN = """
from instructgen.filters import Filter
class {cls}(Filter):
    name = "{name}"
    def reason(self, sample):
        return self.reject("{reason}")
"""


@pytest.mark.usefixtures("loaded")
def test_files_with_one_name_and_a_changed_file(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        text = PLUGIN.format(cls="Mine", name=f"mine_{folder}", reason="one")
        (tmp_path / folder / "p.py").write_text(text)
        load_plugin(tmp_path / folder / "p.py")
    assert plugins.loaded_files() == (tmp_path / "a" / "p.py", tmp_path / "b" / "p.py")
    before = plugins.provenance(filters=[find("filters", "mine_a"), find("filters", "mine_b")])
    assert before["filters.mine_a"]["sha256"] != before["filters.mine_b"]["sha256"]
    text = PLUGIN.format(cls="Mine", name="mine_a", reason="two")
    (tmp_path / "a" / "p.py").write_text(text)
    # The digest is that of the code that runs, until the file is loaded again.
    assert plugins.provenance(filters=[find("filters", "mine_a")]).items() <= before.items()
    load_plugin(tmp_path / "a" / "p.py")
    assert find("filters", "mine_a")().reason(None).reason == "two"
    after = plugins.provenance(filters=[find("filters", "mine_a")])
    assert after["filters.mine_a"]["sha256"] != before["filters.mine_a"]["sha256"]


@pytest.mark.usefixtures("loaded")
def test_a_name_in_use_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(PLUGIN.format(cls="Mine", name="length", reason="one"))
    with pytest.raises(ConfigError, match="length"):
        load_plugin(tmp_path / "p.py")
    assert find("filters", "length").__module__ == "instructgen.filters.length"


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    "text", ["import sys; sys.exit(0)\n", "x = 1\n", "raise KeyError('no')\n", "def f(:\n"]
)
def test_a_file_that_adds_nothing_or_fails(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.py").write_text(text)
    with pytest.raises(ConfigError, match=r"p\.py"):
        load_plugin(tmp_path / "p.py")
    with pytest.raises(ConfigError, match=r"none\.py"):
        load_plugin(tmp_path / "none.py")


@pytest.mark.parametrize(
    "step",
    [
        'run = "generate --plugin x.py"\nseeds = "a"\ntarget = 1',
        'run = "generate"\nplugin = "x.py"\nseeds = "a"\ntarget = 1',
        'run = "generate --plugin=x.py"\nseeds = "a"\ntarget = 1',
        'run = "generate"\nplugin = ["x.py"]\nseeds = "a"\ntarget = 1',
    ],
)
def test_no_pipeline_can_name_a_plugin(tmp_path: Path, step: str) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "x.py").write_text(f"open({str(ran)!r}, 'w')\n")
    text = step.replace("x.py", str(tmp_path / "x.py"))
    (tmp_path / "p.toml").write_text(f'[[steps]]\nname = "it"\n{text}\n')
    with pytest.raises(ConfigError, match="plugin"):
        load_steps(str(tmp_path / "p.toml"), tmp_path / "out", {}, small=False)
    assert not ran.exists()


def test_no_pipeline_can_name_an_environment(tmp_path: Path) -> None:
    """Its file is executed, too; a step may use one that the user has loaded as a plug-in."""
    ran = tmp_path / "ran"
    (tmp_path / "x.py").write_text(f"open({str(ran)!r}, 'w')\n")
    step = '[[steps]]\nname = "it"\nrun = "generate"\nseeds = "a"\ntarget = 1\n'
    for key in (
        f'environment = "{tmp_path / "x.py"}"',
        f'"environment={tmp_path / "x.py"}" = true',
    ):
        (tmp_path / "p.toml").write_text(f"{step}{key}\n")
        with pytest.raises(ConfigError, match="environment"):
            load_steps(str(tmp_path / "p.toml"), tmp_path / "out", {}, small=False)
    tools = ROOT / "examples" / "desk" / "tools.json"
    step += (
        f'method = "tool_dialogue"\ntools = "{tools}"\nset = {{ "method.environment" = "desk" }}\n'
    )
    (tmp_path / "p.toml").write_text(step)
    assert load_steps(str(tmp_path / "p.toml"), tmp_path / "out", {}, small=False)
    assert not ran.exists()


@pytest.mark.parametrize("table", ["generate", "engine", "method"])
def test_no_recipe_can_name_a_plugin(tmp_path: Path, table: str) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "x.py").write_text(f"open({str(ran)!r}, 'w')\n")
    recipe = {table: {"plugin": str(tmp_path / "x.py")}, "engine": {"name": "echo"}}
    recipe[table] = {**recipe[table], "plugin": str(tmp_path / "x.py")}
    with pytest.raises(ConfigError, match="plugin"):
        instructgen.generate("a.jsonl", 1, tmp_path / "o", engine="echo", recipe=recipe)
    assert not ran.exists()


def test_a_class_with_a_method_of_an_old_name_is_rejected() -> None:
    from instructgen.filters import Filter
    from instructgen.verifiers import Verifier

    with pytest.raises(TypeError, match="evaluate"):
        type("Old", (Filter,), {"name": "old", "judge": lambda self, samples: []})
    with pytest.raises(TypeError, match="check"):
        type("Old", (Verifier,), {"name": "old", "judge": lambda self, task, answer: 0.0})
    with pytest.raises(ImportError, match="Format"):
        from instructgen.formats import Source  # noqa: F401


@pytest.mark.parametrize("name", classes("sources"))
def test_the_example_row_of_a_format_is_detected_and_read(name: str, tmp_path: Path) -> None:
    from instructgen.formats import detect_format, read
    from instructgen.formats.plain import Plain

    cls = classes("sources")[name]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(orjson.dumps(cls.example) + b"\n")
    if cls is Plain:
        rows = read(
            path, Plain(mapping={"instruction": "question", "output": "answer"}), license="MIT"
        )
    else:
        assert detect_format(cls.example) is cls
        rows = read(path, license="MIT")
    # A tree of OASST with only a prompt has no answer.
    assert len(list(rows)) == 1
