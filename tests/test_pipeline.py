"""Recipes of the whole way: a step runs once, and again only when what it depends on changed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

from instructgen.pipeline.plan import output_digest
from instructgen.pipeline.recipe import load_steps, shipped_recipes
from instructgen.pipeline.steps import run
from tests import forks
from tests.conftest import ROOT
from tests.crash import children

RECIPE = """
about = "a small one"

[inputs.tasks]
about = "seed tasks"

[[steps]]
name = "people"
run = "import instructgen @tasks"

[[steps]]
name = "human"
run = "merge @people"
recipe = { split = { test = 0.2 } }

[[steps]]
name = "expanded"
run = "generate"
seeds = "@human"
engine = "echo"
target = 12
batch_size = 4

[[steps]]
name = "mix"
run = "merge @human @expanded"

[[steps]]
name = "clean"
run = "curate @mix"
recipe = { filters = [{ name = "length", min_words = 4 }] }

[[steps]]
name = "file"
run = "export @clean"
format = "openai"
split = "train"
[steps.small]
split = "test"
"""
NAMES = ["people", "human", "expanded", "mix", "clean", "file"]
SEEDS = str(ROOT / "seeds" / "general.jsonl")


@pytest.fixture(autouse=True)
def _steps_are_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of recipes that run in this process start without their imports.

    Those of `command` below, of Ctrl-C and of tests/crash are processes as in real life.
    """

    def forked(argv: Sequence[str], lock: int, quiet: bool) -> int:
        return forks.run(children.command, list(argv), str(Path.cwd()), os.devnull)

    monkeypatch.setattr("instructgen.pipeline.steps._command", forked)


def write(tmp_path: Path, text: str = RECIPE) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(text)
    return path


def ran(path: Path, out: Path, **options: object) -> list[str]:
    """The names of the steps that were run."""
    done = run(str(path), out, inputs={"tasks": SEEDS}, quiet=True, **options)  # type: ignore[arg-type]
    assert [step["name"] for step in done.steps] == NAMES
    return [step["name"] for step in done.steps if step["ran"]]


def command(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`run` as a command; its steps are processes of their own."""
    return forks.command("run", *args, cwd=cwd or ROOT)


def datasets(out: Path) -> dict[str, bytes]:
    """The bytes of every dataset and file that steps made."""
    made = [*out.glob("*.jsonl"), *out.glob("*/manifest.json"), *out.glob("*/README.md")]
    made += out.glob("*/*/*.parquet")
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(made)}


def test_a_step_is_run_once(tmp_path: Path) -> None:
    recipe, out = write(tmp_path), tmp_path / "out"
    assert ran(recipe, out) == NAMES
    first = datasets(out)
    assert "clean/manifest.json" in first and "file.jsonl" in first
    assert ran(recipe, out) == []
    assert datasets(out) == first


def test_what_changed_is_run_with_what_follows(tmp_path: Path) -> None:
    recipe, out = write(tmp_path), tmp_path / "out"
    ran(recipe, out)
    recipe.write_text(RECIPE.replace("min_words = 4", "min_words = 6"))
    assert ran(recipe, out) == ["clean", "file"]
    # Other options, the same rows: what follows has nothing to do.
    recipe.write_text(RECIPE.replace("min_words = 4", "min_words = 6, max_words = 140"))
    assert ran(recipe, out) in (["clean"], ["clean", "file"])


def test_more_rows_go_on_with_the_journal_and_other_settings_begin_anew(tmp_path: Path) -> None:
    recipe, out = write(tmp_path), tmp_path / "out"
    ran(recipe, out)
    journal = (out / "expanded" / "journal.jsonl").read_bytes()
    recipe.write_text(RECIPE.replace("target = 12", "target = 14"))
    assert ran(recipe, out) == ["expanded", "mix", "clean", "file"]
    assert (out / "expanded" / "journal.jsonl").read_bytes().startswith(journal)
    assert not (out / "replaced").exists()
    recipe.write_text(RECIPE.replace("batch_size = 4", "batch_size = 4\nseed = 5"))
    assert ran(recipe, out)[0] == "expanded"
    kept = out / "replaced" / "expanded-1" / "journal.jsonl"
    assert kept.read_bytes().startswith(journal)


def test_a_run_goes_on_wherever_its_options_stand(tmp_path: Path) -> None:
    bounded = RECIPE.replace("target = 12", "target = 40\nmax_tokens_total = 60_000")
    recipe, out = write(tmp_path, bounded), tmp_path / "out"
    ran(recipe, out)
    journal = (out / "expanded" / "journal.jsonl").read_bytes()
    rows = orjson.loads((out / "expanded" / "manifest.json").read_bytes())["rows"]
    assert 0 < rows < 30
    in_words = RECIPE.replace("target = 12\n", "").replace('"generate"', '"generate --target 40"')
    for text in (
        bounded.replace("60_000", "70_000"),
        # More tokens, fewer rows than was asked for, but not than there are.
        bounded.replace("60_000", "80_000").replace("target = 40", "target = 35"),
        in_words,
    ):
        recipe.write_text(text)
        assert ran(recipe, out)[0] == "expanded"
        grown = (out / "expanded" / "journal.jsonl").read_bytes()
        assert grown.startswith(journal)
        journal = grown
    assert not (out / "replaced").exists()
    # Fewer rows than there are is another dataset.
    recipe.write_text(in_words.replace("--target 40", "--target 5"))
    ran(recipe, out)
    assert (out / "replaced" / "expanded-1").is_dir()


def test_a_table_of_options_counts_as_what_it_says(tmp_path: Path) -> None:
    table = 'recipe = { generate = { acceptance_floor = 0.0 }, filters = [{ name = "length" }] }'
    text = RECIPE.replace("batch_size = 4", f"batch_size = 4\n{table}")
    recipe, out = write(tmp_path, text), tmp_path / "out"
    ran(recipe, out)
    recipe.write_text(text.replace("acceptance_floor = 0.0", "acceptance_floor = 0.01"))
    assert ran(recipe, out)[0] == "expanded"
    assert not (out / "replaced").exists()
    recipe.write_text(text.replace('"length" }', '"length", min_words = 5 }'))
    assert ran(recipe, out)[0] == "expanded"
    assert (out / "replaced" / "expanded-1").is_dir()


def test_a_report_is_made_again_when_a_model_tells_other_things(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "run.json", "log.jsonl"):
        (model / name).write_text("{}")
    before, shown = output_digest(model), output_digest(model, told=True)
    (model / "log.jsonl").write_text('{"step":1}')
    assert output_digest(model) == before
    assert output_digest(model, told=True) != shown


def test_a_missing_or_damaged_output_is_made_again(tmp_path: Path) -> None:
    recipe, out = write(tmp_path), tmp_path / "out"
    ran(recipe, out)
    first = datasets(out)
    (out / "file.jsonl").unlink()
    part = next((out / "mix" / "data").glob("train-*.parquet"))
    part.write_bytes(part.read_bytes()[:-1])
    assert ran(recipe, out) == ["mix", "file"]
    assert datasets(out) == first


def test_a_file_that_was_written_and_not_noted_is_written_again(tmp_path: Path) -> None:
    """As a kill leaves it between the export and the note of it."""
    recipe, out = write(tmp_path), tmp_path / "out"
    ran(recipe, out)
    first = datasets(out)
    state = orjson.loads((out / "pipeline.json").read_bytes())
    state["steps"]["file"]["output"] = None
    (out / "pipeline.json").write_bytes(orjson.dumps(state))
    assert ran(recipe, out) == ["file"]
    assert datasets(out) == first


def test_what_no_step_made_is_never_removed(tmp_path: Path) -> None:
    recipe, out = write(tmp_path), tmp_path / "out"
    (out / "people").mkdir(parents=True)
    (out / "people" / "thesis.txt").write_text("mine")
    for text in (RECIPE, RECIPE.replace("import instructgen", "import")):
        recipe.write_text(text)
        done = command(recipe, "--out", out, "--input", f"tasks={SEEDS}")
        assert done.returncode == 2 and "no step of this recipe made it" in done.stderr
    assert (out / "people" / "thesis.txt").read_text() == "mine"


def test_a_damaged_dataset_of_a_run_comes_from_its_journal(tmp_path: Path) -> None:
    recipe, out = write(tmp_path), tmp_path / "out"
    ran(recipe, out)
    first = datasets(out)
    part = next((out / "expanded" / "data").glob("*.parquet"))
    part.write_bytes(part.read_bytes() + b"x")
    assert ran(recipe, out) == ["expanded"]
    assert datasets(out) == first and not (out / "replaced").exists()


def test_references_behind_a_word_and_files_of_options_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('[[filters]]\nname = "length"\n')
    text = RECIPE.replace("target = 12", 'target = 12\nrecipe = "mine.toml"')
    text += '\n[[steps]]\nname = "pairs"\nrun = "prefer @clean"\nscore = "judge:@human"\n'
    steps = load_steps(str(write(tmp_path, text)), tmp_path / "o", {"tasks": SEEDS}, limit=False)
    assert steps[2].values["mine.toml"] == "mine.toml"
    assert steps[-1].values["judge:@human"] == str(tmp_path / "o" / "human")
    assert f"--score=judge:{tmp_path / 'o' / 'human'}" in steps[-1].argv


def test_a_changed_input_file_is_seen(tmp_path: Path) -> None:
    recipe, out, tasks = write(tmp_path), tmp_path / "out", tmp_path / "tasks.jsonl"
    lines = Path(SEEDS).read_bytes().splitlines(keepends=True)
    tasks.write_bytes(b"".join(lines))
    run(str(recipe), out, inputs={"tasks": str(tasks)}, quiet=True)
    tasks.write_bytes(b"".join(lines[:-1]))
    done = run(str(recipe), out, inputs={"tasks": str(tasks)}, quiet=True)
    assert done.steps[0]["ran"] and done.steps[0]["why"] == "@tasks changed"
    assert all(step["ran"] for step in done.steps)


def test_a_word_that_is_also_a_folder_here_is_a_word(tmp_path: Path) -> None:
    recipe, out = write(tmp_path), tmp_path / "out"
    steps = load_steps(str(recipe), out, {"tasks": SEEDS}, limit=False)
    assert set(steps[0].values) == {"@tasks"}
    assert [step.follows for step in steps][1:] == [
        ("people",), ("human",), ("human", "expanded"), ("mix",), ("clean",)
    ]  # fmt: skip


def test_the_plan_runs_nothing_and_says_why(tmp_path: Path) -> None:
    recipe, out = write(tmp_path), tmp_path / "out"
    asked = (recipe, "--out", out, "--input", f"tasks={SEEDS}")
    done = command(*asked, "--dry-run", "--json")
    plan = orjson.loads(done.stdout)["steps"]
    assert [p["name"] for p in plan] == NAMES and all(p["runs"] for p in plan)
    assert plan[2]["forecast"]["tokens"] > 0 and plan[0]["why"] == "not run yet"
    assert not out.exists()
    assert command(*asked, "--quiet").returncode == 0
    recipe.write_text(RECIPE.replace("target = 12", "target = 13"))
    done = command(*asked, "--dry-run")
    assert "target 12 → 13" in done.stdout and "expanded may change" in done.stdout
    assert "4 of 6 steps to run" in done.stdout and "as the last time" in done.stdout


def test_a_recipe_without_a_small_form_has_none(tmp_path: Path) -> None:
    text = RECIPE.split("[steps.small]")[0]
    done = command(write(tmp_path, text), "--out", tmp_path / "out", "--limit")
    assert done.returncode == 2 and "no small form" in done.stderr


def test_the_small_form(tmp_path: Path) -> None:
    steps = load_steps(str(write(tmp_path)), tmp_path / "out", {"tasks": SEEDS}, limit=True)
    assert "--split=test" in steps[-1].argv


@pytest.mark.parametrize("limit", [False, True])
@pytest.mark.parametrize("name", ["quickstart", "dolly_expand", "rlhf"])
def test_shipped_recipes(name: str, limit: bool, tmp_path: Path) -> None:
    assert name in shipped_recipes()
    given = {"alpaca-libre": "x.jsonl"} if name == "dolly_expand" else {}
    steps = load_steps(name, tmp_path, given, limit=limit)
    assert len({step.name for step in steps}) == len(steps) >= 7
    assert steps[-1].command == "report"
    # What is trained or reported on was made before.
    assert all(step.follows for step in steps[1:] if step.command in ("train", "report"))


BAD = {
    "no TOML": ("steps = [", ["no valid TOML"]),
    "no steps": ("about = 'x'", ["steps", "is missing"]),
    "unknown table": (RECIPE + "\n[step]\n", ["unknown key", "Did you mean steps"]),
    "no such filters": (
        RECIPE.replace('recipe = { filters = [{ name = "length", min_words = 4 }] }',
                       'recipe = "strickt"'),
        ["steps 5 (clean)", "no shipped recipe", "Did you mean strict"],
    ),
    "a table's table": (
        RECIPE.replace("split = { test = 0.2 }", "splitt = { test = 0.2 }"),
        ["steps 2 (human): recipe.splitt: unknown table. Did you mean split"],
    ),
    "a table's key": (
        RECIPE.replace("batch_size = 4", "recipe = { generate = { floor = 1 } }"),
        ["steps 3 (expanded): recipe.generate.floor: unknown key", "acceptance_floor"],
    ),
    "a table's value": (
        RECIPE.replace("min_words = 4", "min_words = -1"),
        ["steps 5 (clean): recipe.filters 1 (length).min_words"],
    ),
    "set": (
        RECIPE + '\n[[steps]]\nname = "sft"\nrun = "train sft @clean"\nset = { lora_rnk = 8 }\n',
        ["steps 7 (sft)", "train.lora_rnk: unknown key", "lora_rank"],
    ),
    "no reward": (
        RECIPE + '\n[[steps]]\nname = "rl"\nrun = "train grpo @clean"\n',
        ["steps 7 (rl)", "needs a reward"],
    ),
    "an input at two places": (
        RECIPE.replace('about = "seed tasks"', 'file = "x"\nhub = "a/b"'),
        ["inputs.tasks", "file and hub"],
    ),
    "not a name of an input": (RECIPE.replace("inputs.tasks", "inputs.Tasks"), ["inputs.Tasks"]),
    "not a name after @": (RECIPE.replace("@people", "@People"), ["@People", "not a name"]),
    "unknown key of an input": (
        RECIPE.replace('about = "seed tasks"', 'pth = "x"'), ["inputs.tasks.pth", "unknown key"]
    ),
    "no such step": (
        RECIPE.replace('"curate @mix"', '"curte @mix"'),
        ["steps 5 (clean)", "'curte' is no step", "Did you mean curate"],
    ),
    "later step": (RECIPE.replace("@people", "@mix"), ["steps 2 (human)", "@mix", "no earlier"]),
    "unknown option": (
        RECIPE.replace("target = 12", "targt = 12"), ["steps 3 (expanded)", "--targt", "--target"]
    ),
    "wrong type": (
        RECIPE.replace("target = 12", "target = 'many'"), ["steps 3 (expanded)", "many"]
    ),
    "missing option": (RECIPE.replace("target = 12", ""), ["steps 3 (expanded)", "--target"]),
    "twice": (RECIPE.replace('"clean"', '"mix"'), ["steps 5 (mix)", "an earlier step has"]),
    "an input's": (RECIPE.replace('"clean"', '"tasks"'), ["steps 5 (tasks)", "an input has"]),
    "ours": (RECIPE.replace('"clean"', '"replaced"'), ["not a name for a step"]),
    "not a name": (RECIPE.replace('"clean"', '"../clean"'), ["not a name"]),
    "its own out": (RECIPE.replace("target = 12", 'out = "x"\ntarget = 12'), ["leave it out"]),
    "a table": (RECIPE.replace("target = 12", "target = { a = 1 }"), ["a table"]),
    "quotes": (RECIPE.replace('"curate @mix"', "'curate \"@mix'"), ["run:"]),
    "help": (RECIPE.replace("target = 12", "help = true"), ["asks for help"]),
    "a quoted number": (RECIPE.replace("target = 12", 'target = "x"'), ["steps 3 (expanded)"]),
    "code": (RECIPE.replace('"curate @mix"', '"sh -c reboot"'), ["'sh' is no step"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_recipe_runs_nothing(tmp_path: Path, name: str) -> None:
    text, wanted = BAD[name]
    out = tmp_path / "out"
    done = command(write(tmp_path, text), "--out", out, "--input", f"tasks={SEEDS}")
    assert (done.returncode, done.stdout) == (2, "")
    assert not out.exists()
    assert all(word.lower() in done.stderr.lower() for word in wanted), done.stderr
    assert "Traceback" not in done.stderr


def test_bad_arguments(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    for args, wanted in (
        (["quickstrt"], "Did you mean quickstart"),
        (["no/such.toml"], "no such recipe"),
        ([recipe], "Give --input tasks=PATH"),
        ([recipe, "--input", "task=x"], "Did you mean tasks"),
        ([recipe, "--input", "tasks"], "NAME=PATH"),
    ):
        done = command(*args, "--out", tmp_path / "out")
        assert done.returncode == 2 and wanted in done.stderr, done.stderr


def test_a_step_that_fails_stops_the_recipe_and_goes_on_later(tmp_path: Path) -> None:
    recipe, out = write(tmp_path), tmp_path / "out"
    missing = tmp_path / "tasks.jsonl"
    asked = (recipe, "--out", out, "--input", f"tasks={missing}")
    done = command(*asked)
    assert done.returncode == 2
    assert "tasks.jsonl" in done.stderr and "The step people stopped" in done.stderr
    missing.write_bytes(Path(SEEDS).read_bytes())
    assert command(*asked, "--quiet").returncode == 0


def test_damaged_state_is_named(tmp_path: Path) -> None:
    recipe, out = write(tmp_path), tmp_path / "out"
    out.mkdir()
    for text in ("{", "[]", '{"format": 1, "steps": {"a": {}}}', '{"format": 9, "steps": {}}'):
        (out / "pipeline.json").write_text(text)
        done = command(recipe, "--out", out, "--input", f"tasks={SEEDS}")
        assert done.returncode == 2 and "pipeline.json" in done.stderr, done.stderr


def test_fewer_rows_than_asked_for_are_said(tmp_path: Path) -> None:
    text = RECIPE.replace("batch_size = 4", "batch_size = 4\nmax_tokens_total = 20000")
    text = text.replace("target = 12", "target = 100000")
    recipe, out = write(tmp_path, text), tmp_path / "out"
    done = command(recipe, "--out", out, "--input", f"tasks={SEEDS}")
    assert done.returncode == 3
    assert "expanded ended before its target" in done.stderr
    assert (out / "file.jsonl").exists()


@pytest.mark.slow
def test_ctrl_c_stops_the_step_and_the_recipe(tmp_path: Path) -> None:
    recipe = write(tmp_path, RECIPE.replace("target = 12", "target = 3000"))
    out = tmp_path / "out"
    argv = [sys.executable, "-m", "instructgen", "run", str(recipe), "--out", str(out)]
    process = subprocess.Popen(
        [*argv, "--input", f"tasks={SEEDS}"], stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    journal = out / "expanded" / "journal.jsonl"
    until = time.monotonic() + 60
    while not (journal.exists() and journal.stat().st_size > 10_000):
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and "interrupted" in said
    assert "Traceback" not in said
    size = journal.stat().st_size
    time.sleep(0.5)
    # Nothing goes on unseen.
    assert journal.stat().st_size == size


@pytest.mark.slow
def test_two_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from instructgen.errors import RunError
    from instructgen.pipeline import steps

    recipe, out = write(tmp_path), tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(steps, "_PATIENCE_S", 0.2)
    import fcntl

    with (out / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="in use"):
            run(str(recipe), out, inputs={"tasks": SEEDS}, quiet=True)
    assert [path.name for path in out.iterdir()] == ["lock"]
