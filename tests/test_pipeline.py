"""Tests of pipelines: a step runs once, and again only if its inputs, options or code changed."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

from instructgen.errors import ConfigError, DamagedFileError, RunError, VersionError
from instructgen.pipeline import steps as pipeline_steps
from instructgen.pipeline.definition import load_steps, shipped_pipelines
from instructgen.pipeline.plan import output_digest, read_state
from instructgen.pipeline.steps import PipelineResult, StepError, run
from tests import forks
from tests.conftest import ROOT
from tests.crash import children

PIPELINE = """
about = "a small pipeline"

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
in_flight = 4

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
    """Start the steps of pipelines that run in this process as forks, without their imports.

    The steps of `command` below, of the Ctrl-C test and of tests/crash are separate processes.
    """

    def forked(argv: Sequence[str], lock: int, quiet: bool) -> int:
        return forks.run(children.command, list(argv), str(Path.cwd()), os.devnull)

    monkeypatch.setattr(pipeline_steps, "_command", forked)


def write(tmp_path: Path, text: str = PIPELINE) -> Path:
    """Write a pipeline file and return its path."""
    path = tmp_path / "small.toml"
    path.write_text(text)
    return path


def run_all(path: Path, out: Path, tasks: object = SEEDS) -> PipelineResult:
    """Run the pipeline in this process and return its result."""
    result = run(path, out, inputs={"tasks": str(tasks)})
    assert [step.name for step in result.steps] == NAMES
    return result


def ran(path: Path, out: Path) -> list[str]:
    """Run the pipeline and return the names of the steps that were run."""
    return [step.name for step in run_all(path, out).steps if step.ran]


def command(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `instructgen run` as a command whose steps are separate processes."""
    return forks.command("run", *args, cwd=cwd or ROOT)


def datasets(out: Path) -> dict[str, bytes]:
    """Return the bytes of every dataset file and exported file that the steps wrote."""
    files = [*out.glob("*.jsonl"), *out.glob("*/manifest.json"), *out.glob("*/README.md")]
    files += out.glob("*/*/*.parquet")
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(files)}


def test_a_step_is_run_once(tmp_path: Path) -> None:
    pipeline, out = write(tmp_path), tmp_path / "out"
    assert ran(pipeline, out) == NAMES
    first = datasets(out)
    assert "clean/manifest.json" in first and "file.jsonl" in first
    assert ran(pipeline, out) == []
    assert datasets(out) == first


def test_a_changed_step_runs_again_with_the_steps_that_follow(tmp_path: Path) -> None:
    pipeline, out = write(tmp_path), tmp_path / "out"
    ran(pipeline, out)
    pipeline.write_text(PIPELINE.replace("min_words = 4", "min_words = 6"))
    assert ran(pipeline, out) == ["clean", "file"]
    # If other options give the same rows, the steps that follow have nothing to do.
    pipeline.write_text(PIPELINE.replace("min_words = 4", "min_words = 6, max_words = 140"))
    assert ran(pipeline, out) in (["clean"], ["clean", "file"])


def test_a_higher_target_resumes_the_run_and_other_settings_start_a_new_one(tmp_path: Path) -> None:
    pipeline, out = write(tmp_path), tmp_path / "out"
    ran(pipeline, out)
    journal = (out / "expanded" / "journal.jsonl").read_bytes()
    pipeline.write_text(PIPELINE.replace("target = 12", "target = 14"))
    assert ran(pipeline, out) == ["expanded", "mix", "clean", "file"]
    assert (out / "expanded" / "journal.jsonl").read_bytes().startswith(journal)
    assert not (out / "replaced").exists()
    pipeline.write_text(PIPELINE.replace("in_flight = 4", "in_flight = 4\nseed = 5"))
    assert ran(pipeline, out)[0] == "expanded"
    kept = out / "replaced" / "expanded-1" / "journal.jsonl"
    assert kept.read_bytes().startswith(journal)


def test_a_run_is_resumed_with_more_tokens_or_another_target(tmp_path: Path) -> None:
    bounded = PIPELINE.replace("target = 12", "target = 40\nmax_tokens_total = 60_000")
    pipeline, out = write(tmp_path, bounded), tmp_path / "out"
    ran(pipeline, out)
    journal = (out / "expanded" / "journal.jsonl").read_bytes()
    rows = orjson.loads((out / "expanded" / "manifest.json").read_bytes())["rows"]
    assert 0 < rows < 30
    unbounded = PIPELINE.replace("target = 12", "target = 40")
    for text in (
        bounded.replace("60_000", "70_000"),
        # More tokens, and a lower target that still exceeds the number of rows.
        bounded.replace("60_000", "80_000").replace("target = 40", "target = 35"),
        unbounded,
    ):
        pipeline.write_text(text)
        assert ran(pipeline, out)[0] == "expanded"
        grown = (out / "expanded" / "journal.jsonl").read_bytes()
        assert grown.startswith(journal)
        journal = grown
    assert not (out / "replaced").exists()
    # A target below the number of rows requires a new run.
    pipeline.write_text(unbounded.replace("target = 40", "target = 5"))
    ran(pipeline, out)
    assert (out / "replaced" / "expanded-1").is_dir()


def test_the_keys_of_a_recipe_table_decide_whether_a_run_is_resumed(tmp_path: Path) -> None:
    table = 'recipe = { generate = { acceptance_floor = 0.0 }, filters = [{ name = "length" }] }'
    text = PIPELINE.replace("in_flight = 4", f"in_flight = 4\n{table}")
    pipeline, out = write(tmp_path, text), tmp_path / "out"
    ran(pipeline, out)
    pipeline.write_text(text.replace("acceptance_floor = 0.0", "acceptance_floor = 0.01"))
    assert ran(pipeline, out)[0] == "expanded"
    assert not (out / "replaced").exists()
    pipeline.write_text(text.replace('"length" }', '"length", min_words = 5 }'))
    assert ran(pipeline, out)[0] == "expanded"
    assert (out / "replaced" / "expanded-1").is_dir()


def test_the_digest_for_a_report_covers_the_log_of_a_model(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "training.json", "log.jsonl"):
        (model / name).write_text("{}")
    before, shown = output_digest(model), output_digest(model, reported=True)
    (model / "log.jsonl").write_text('{"step":1}')
    assert output_digest(model) == before
    assert output_digest(model, reported=True) != shown


def test_a_step_runs_again_if_its_output_is_missing_or_damaged(tmp_path: Path) -> None:
    pipeline, out = write(tmp_path), tmp_path / "out"
    ran(pipeline, out)
    first = datasets(out)
    (out / "file.jsonl").unlink()
    part = next((out / "mix" / "data").glob("train-*.parquet"))
    part.write_bytes(part.read_bytes()[:-1])
    assert ran(pipeline, out) == ["mix", "file"]
    assert datasets(out) == first


def test_a_file_that_was_written_but_not_recorded_is_written_again(tmp_path: Path) -> None:
    """A kill between the export and its record leaves this state."""
    pipeline, out = write(tmp_path), tmp_path / "out"
    ran(pipeline, out)
    first = datasets(out)
    state = orjson.loads((out / "pipeline.json").read_bytes())
    state["steps"]["file"]["output"] = None
    (out / "pipeline.json").write_bytes(orjson.dumps(state))
    assert ran(pipeline, out) == ["file"]
    assert datasets(out) == first


def test_a_folder_that_no_step_wrote_is_never_removed(tmp_path: Path) -> None:
    pipeline, out = write(tmp_path), tmp_path / "out"
    (out / "people").mkdir(parents=True)
    (out / "people" / "thesis.txt").write_text("mine")
    for text in (PIPELINE, PIPELINE.replace("import instructgen", "import")):
        pipeline.write_text(text)
        done = command(pipeline, "--out", out, "--input", f"tasks={SEEDS}")
        assert done.returncode == 2 and str(out / "people") in done.stderr
    assert (out / "people" / "thesis.txt").read_text() == "mine"


def test_a_damaged_dataset_of_a_run_is_written_again_from_its_journal(tmp_path: Path) -> None:
    pipeline, out = write(tmp_path), tmp_path / "out"
    ran(pipeline, out)
    first = datasets(out)
    part = next((out / "expanded" / "data").glob("*.parquet"))
    part.write_bytes(part.read_bytes() + b"x")
    assert ran(pipeline, out) == ["expanded"]
    assert datasets(out) == first and not (out / "replaced").exists()


def test_references_after_a_prefix_and_files_of_options_are_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('[[filters]]\nname = "length"\n')
    text = PIPELINE.replace("target = 12", 'target = 12\nrecipe = "mine.toml"')
    text += '\n[[steps]]\nname = "pairs"\nrun = "prefer @clean"\nscore = "judge:@human"\n'
    steps = load_steps(str(write(tmp_path, text)), tmp_path / "o", {"tasks": SEEDS}, small=False)
    assert steps[2].values["mine.toml"] == "mine.toml"
    assert steps[-1].values["judge:@human"] == str(tmp_path / "o" / "human")
    assert f"--score=judge:{tmp_path / 'o' / 'human'}" in steps[-1].argv


def test_a_changed_input_file_runs_all_steps_again(tmp_path: Path) -> None:
    pipeline, out, tasks = write(tmp_path), tmp_path / "out", tmp_path / "tasks.jsonl"
    lines = Path(SEEDS).read_bytes().splitlines(keepends=True)
    tasks.write_bytes(b"".join(lines))
    run_all(pipeline, out, tasks)
    tasks.write_bytes(b"".join(lines[:-1]))
    result = run_all(pipeline, out, tasks)
    assert "@tasks" in result.steps[0].why
    assert all(step.ran for step in result.steps)


def test_a_word_that_is_also_the_name_of_a_folder_is_not_an_input(tmp_path: Path) -> None:
    pipeline, out = write(tmp_path), tmp_path / "out"
    steps = load_steps(str(pipeline), out, {"tasks": SEEDS}, small=False)
    assert set(steps[0].values) == {"@tasks"}
    assert [step.follows for step in steps][1:] == [
        ("people",), ("human",), ("human", "expanded"), ("mix",), ("clean",)
    ]  # fmt: skip


def test_a_dry_run_runs_nothing_and_reports_why_steps_would_run(tmp_path: Path) -> None:
    pipeline, out = write(tmp_path), tmp_path / "out"
    arguments = (pipeline, "--out", out, "--input", f"tasks={SEEDS}")
    done = command(*arguments, "--dry-run", "--json")
    plan = orjson.loads(done.stdout)["steps"]
    assert [p["name"] for p in plan] == NAMES and all(p["runs"] for p in plan)
    # No step has run yet, so all have the same reason.
    assert plan[0]["why"] and len({p["why"] for p in plan}) == 1
    assert plan[2]["forecast"]["tokens"] > 0
    assert not out.exists()
    assert command(*arguments, "--quiet").returncode == 0
    pipeline.write_text(PIPELINE.replace("target = 12", "target = 13"))
    plan = orjson.loads(command(*arguments, "--dry-run", "--json").stdout)["steps"]
    assert [p["name"] for p in plan if p["runs"]] == ["expanded", "mix", "clean", "file"]
    assert "target 12 → 13" in plan[2]["why"] and "expanded" in plan[3]["why"]
    seconds = read_state(out)["expanded"].seconds
    assert plan[2]["forecast"]["seconds"] == pytest.approx(seconds * 13 / 12)
    done = command(*arguments, "--dry-run")
    assert "target 12 → 13" in done.stdout and "4 of 6" in done.stdout


def test_a_pipeline_without_a_reduced_version_rejects_the_flag_small(tmp_path: Path) -> None:
    text = PIPELINE.split("[steps.small]")[0]
    done = command(write(tmp_path, text), "--out", tmp_path / "out", "--small")
    assert done.returncode == 2 and "--small" in done.stderr and "small.toml" in done.stderr
    with pytest.raises(ConfigError, match=r"small\.toml"):
        load_steps(str(tmp_path / "small.toml"), tmp_path / "out", {"tasks": SEEDS}, small=True)


def test_the_reduced_version_replaces_options(tmp_path: Path) -> None:
    steps = load_steps(str(write(tmp_path)), tmp_path / "out", {"tasks": SEEDS}, small=True)
    assert "--split=test" in steps[-1].argv


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", ["quickstart", "dolly_expand", "rlhf"])
def test_shipped_pipelines(name: str, small: bool, tmp_path: Path) -> None:
    assert name in shipped_pipelines()
    inputs = {"alpaca-libre": "x.jsonl"} if name == "dolly_expand" else {}
    steps = load_steps(name, tmp_path, inputs, small=small)
    assert len({step.name for step in steps}) == len(steps) >= 7
    assert steps[-1].command == "report"
    # Steps that train or report read the output of earlier steps.
    assert all(step.follows for step in steps[1:] if step.command in ("train", "report"))


# By name: a pipeline, and what its error must contain: the place, the key, the suggested name.
INVALID = {
    "malformed": ("steps = [", ["small.toml", "TOML"]),
    "without steps": ("about = 'x'", ["small.toml: steps: "]),
    "unknown table": (PIPELINE + "\n[step]\n", ["small.toml: step: ", " steps?"]),
    "unknown recipe": (
        PIPELINE.replace('recipe = { filters = [{ name = "length", min_words = 4 }] }',
                         'recipe = "strickt"'),
        ["steps 5 (clean)", "strickt", " strict?"],
    ),
    "unknown table of a recipe": (
        PIPELINE.replace("split = { test = 0.2 }", "splitt = { test = 0.2 }"),
        ["steps 2 (human): recipe.splitt: ", " split?"],
    ),
    "unknown key of a recipe": (
        PIPELINE.replace("in_flight = 4", "recipe = { generate = { floor = 1 } }"),
        ["steps 3 (expanded): recipe.generate.floor: ", " acceptance_floor, "],
    ),
    "invalid value of a recipe": (
        PIPELINE.replace("min_words = 4", "min_words = -1"),
        ["steps 5 (clean): recipe.filters 1 (length).min_words", "-1"],
    ),
    "unknown setting of a trainer": (
        PIPELINE + '\n[[steps]]\nname = "sft"\nrun = "train sft @clean"\nset = { lora_rnk = 8 }\n',
        ["steps 7 (sft)", "lora_rnk", " lora_rank?"],
    ),
    "without a reward": (
        PIPELINE + '\n[[steps]]\nname = "rl"\nrun = "train grpo @clean"\n',
        ["steps 7 (rl)", "reward"],
    ),
    "two places of an input": (
        PIPELINE.replace('about = "seed tasks"', 'file = "x"\nhub = "a/b"'),
        ["small.toml: inputs.tasks: ", "file", "hub"],
    ),
    "name of an input": (
        PIPELINE.replace("inputs.tasks", "inputs.Tasks"), ["small.toml: inputs.Tasks: "]
    ),
    "name after @": (PIPELINE.replace("@people", "@People"), ["steps 2 (human)", "@People"]),
    "unknown key of an input": (
        PIPELINE.replace('about = "seed tasks"', 'pth = "x"'), ["small.toml: inputs.tasks.pth: "]
    ),
    "unknown command": (
        PIPELINE.replace('"curate @mix"', '"curte @mix"'),
        ["steps 5 (clean)", "'curte'", " curate?"],
    ),
    "later step": (PIPELINE.replace("@people", "@mix"), ["steps 2 (human)", "@mix"]),
    "unknown option": (
        PIPELINE.replace("target = 12", "targt = 12"),
        ["steps 3 (expanded)", "--targt", "--target"],
    ),
    "wrong type": (
        PIPELINE.replace("target = 12", "target = 'many'"),
        ["steps 3 (expanded)", "--target", "'many'"],
    ),
    "missing option": (PIPELINE.replace("target = 12", ""), ["steps 3 (expanded)", "--target"]),
    "name of an earlier step": (PIPELINE.replace('"clean"', '"mix"'), ["steps 5 (mix): "]),
    "name that an input has": (
        PIPELINE.replace('"clean"', '"tasks"'), ["steps 5 (tasks)", "input"]
    ),
    # The message lists the other reserved names.
    "reserved name": (PIPELINE.replace('"clean"', '"replaced"'), ["steps 5 (replaced): ", "lock"]),
    "path as a name": (PIPELINE.replace('"clean"', '"../clean"'), ["steps 5 (../clean): "]),
    "own output": (
        PIPELINE.replace("target = 12", 'out = "x"\ntarget = 12'), ["steps 3 (expanded): out: "]
    ),
    "table as an option": (
        PIPELINE.replace("target = 12", "target = { a = 1 }"), ["steps 3 (expanded): target: "]
    ),
    "unbalanced quotes": (
        PIPELINE.replace('"curate @mix"', "'curate \"@mix'"), ["steps 5 (clean): run: "]
    ),
    "help": (PIPELINE.replace("target = 12", "help = true"), ["steps 3 (expanded): help "]),
    "quoted number": (
        PIPELINE.replace("target = 12", 'target = "x"'), ["steps 3 (expanded)", "--target", "'x'"]
    ),
    "other program": (
        PIPELINE.replace('"curate @mix"', '"sh -c reboot"'), ["steps 5 (clean)", "'sh'"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_pipeline_runs_nothing(tmp_path: Path, name: str) -> None:
    text, facts = INVALID[name]
    out = tmp_path / "out"
    done = command(write(tmp_path, text), "--out", out, "--input", f"tasks={SEEDS}")
    assert (done.returncode, done.stdout) == (2, "")
    assert not out.exists()
    assert [fact for fact in facts if fact not in done.stderr] == [], done.stderr
    assert "Traceback" not in done.stderr


def test_invalid_arguments(tmp_path: Path) -> None:
    pipeline = write(tmp_path)
    for arguments, fact in (
        (["quickstrt"], " quickstart?"),
        (["no/such.toml"], "no/such.toml"),
        ([pipeline], "--input tasks=PATH"),
        ([pipeline, "--input", "task=x"], " tasks?"),
        ([pipeline, "--input", "tasks"], "NAME=PATH"),
    ):
        done = command(*arguments, "--out", tmp_path / "out")
        assert done.returncode == 2 and fact in done.stderr, done.stderr


def test_a_step_that_fails_stops_the_pipeline_which_a_second_run_resumes(tmp_path: Path) -> None:
    pipeline, out = write(tmp_path), tmp_path / "out"
    missing = tmp_path / "tasks.jsonl"
    arguments = (pipeline, "--out", out, "--input", f"tasks={missing}")
    with pytest.raises(StepError, match=r"\bpeople\b") as caught:
        run_all(pipeline, out, missing)
    assert caught.value.exit_code == 2
    done = command(*arguments)
    assert done.returncode == 2
    *_, error = done.stderr.splitlines()
    assert "tasks.jsonl" in done.stderr and "step people" in error
    missing.write_bytes(Path(SEEDS).read_bytes())
    assert command(*arguments, "--quiet").returncode == 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", None),
        ("[]", None),
        ('{"format": 2, "steps": {"people": {}}}', None),
        ('{"format": 2, "steps": []}', None),
        ('{"format": 1, "steps": {}}', 1),
        ('{"format": 9, "steps": {}}', 9),
        ('{"format": 9, "steps": []}', 9),
    ],
)
def test_an_error_names_the_damaged_or_unknown_state(
    tmp_path: Path, text: str, found: int | None
) -> None:
    pipeline, out = write(tmp_path), tmp_path / "out"
    out.mkdir()
    state = out / "pipeline.json"
    state.write_text(text)
    with pytest.raises(DamagedFileError if found is None else VersionError) as caught:
        run_all(pipeline, out)
    assert caught.value.path == state
    assert getattr(caught.value, "found", None) == found
    done = command(pipeline, "--out", out, "--input", f"tasks={SEEDS}")
    assert done.returncode == 2 and "pipeline.json" in done.stderr, done.stderr
    assert state.read_text() == text


def test_a_step_that_ends_before_its_target_is_reported(tmp_path: Path) -> None:
    text = PIPELINE.replace("in_flight = 4", "in_flight = 4\nmax_tokens_total = 20000")
    text = text.replace("target = 12", "target = 100000")
    pipeline, out = write(tmp_path, text), tmp_path / "out"
    arguments = (pipeline, "--out", out, "--input", f"tasks={SEEDS}")
    done = command(*arguments)
    assert done.returncode == 3
    *_, note = done.stderr.splitlines()
    assert "expanded" in note
    assert (out / "file.jsonl").exists()
    # The next run has nothing to do, and reports it too.
    done = command(*arguments, "--json")
    assert done.returncode == 3
    steps = orjson.loads(done.stdout)["steps"]
    assert not any(step["ran"] for step in steps)
    assert [step["name"] for step in steps if step["ended_early"]] == ["expanded"]


@pytest.mark.parametrize(
    "text",
    [
        '[[steps]]\nname = "a"\nrun = "import x.jsonl"\nplugin = "{file}"\n',
        '[[steps]]\nname = "a"\nrun = "import x.jsonl"\n"plugin={file}" = true\n',
        '[inputs.x]\nhub = "--plugin={file}"\n[[steps]]\nname = "a"\nrun = "import @x"\n',
    ],
    ids=["key", "key with a value", "input"],
)
def test_a_pipeline_cannot_load_a_plugin(tmp_path: Path, text: str) -> None:
    """The file of a plug-in is executed, and others may have written the pipeline."""
    file, mark = tmp_path / "plugin.py", tmp_path / "executed"
    file.write_text(f"open({str(mark)!r}, 'w').close()\n")
    path = write(tmp_path, text.format(file=file))
    with pytest.raises(ConfigError, match=r"steps 1 \(a\): plugin: "):
        load_steps(str(path), tmp_path / "out", {}, small=False)
    assert not mark.exists()


@pytest.mark.slow
def test_ctrl_c_stops_the_step_and_the_pipeline(tmp_path: Path) -> None:
    pipeline = write(tmp_path, PIPELINE.replace("target = 12", "target = 3000"))
    out = tmp_path / "out"
    argv = [sys.executable, "-m", "instructgen", "run", str(pipeline), "--out", str(out)]
    process = subprocess.Popen(
        [*argv, "--input", f"tasks={SEEDS}"], stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    journal = out / "expanded" / "journal.jsonl"
    until = time.monotonic() + 60
    while not (journal.exists() and journal.stat().st_size > 10_000):
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and errors.strip()
    assert "Traceback" not in errors
    size = journal.stat().st_size
    time.sleep(0.5)
    # No process of the step is left that would continue.
    assert journal.stat().st_size == size


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, out = write(tmp_path), tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(pipeline_steps, "_PATIENCE_S", 0.2)
    with (out / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match=re.escape(str(out))) as caught:
            run_all(pipeline, out)
    assert not isinstance(caught.value, DamagedFileError | VersionError)
    assert [path.name for path in out.iterdir()] == ["lock"]


@pytest.mark.parametrize(
    "word",
    ["--help", "--to=/etc/x", "--out", "-h", "--", "--plugin x.py", "'-- --to=x'", "--recipe=x"],
)
def test_the_words_of_a_step_are_never_options(tmp_path: Path, word: str) -> None:
    for command in ("merge x", "export x"):
        text = f'[[steps]]\nname = "it"\nrun = "{command} {word}"\n'
        (tmp_path / "p.toml").write_text(text)
        with pytest.raises(ConfigError, match=r"it\): run: "):
            load_steps(str(tmp_path / "p.toml"), tmp_path / "out", {}, small=False)


@pytest.mark.parametrize("place", ["--help", "--to=/tmp/x", "-x"])
def test_an_input_is_never_an_option(tmp_path: Path, place: str) -> None:
    text = f'[inputs.x]\nhub = "{place}"\n[[steps]]\nname = "it"\nrun = "export @x"\nformat = "alpaca"\n'
    (tmp_path / "p.toml").write_text(text)
    (step,) = load_steps(str(tmp_path / "p.toml"), tmp_path / "out", {}, small=False)
    assert str(step.parsed.data) == place
    assert step.out == tmp_path / "out" / "it.jsonl"


def test_an_input_is_recognized_however_its_path_is_written(tmp_path: Path) -> None:
    for name in ("d1", "./d1", "d1/"):
        (tmp_path / "p.toml").write_text(f'[[steps]]\nname = "it"\nrun = "merge {name}"\n')
        (step,) = load_steps(str(tmp_path / "p.toml"), tmp_path / "out", {}, small=False)
        assert list(step.values) == [name]
