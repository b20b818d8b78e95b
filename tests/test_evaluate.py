"""Evaluation suites, ablations of datasets, training with several processes, and chat."""

from __future__ import annotations

import math
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from instructgen import ablate, evaluate, train
from instructgen.engines.transformers import TransformersEngine
from instructgen.errors import EngineError, RunError
from instructgen.evaluation.rewards import RewardEngine
from instructgen.evaluation.suites import Subject
from instructgen.evaluation.suites.winrate import WinRate
from instructgen.schema.sample import Sample
from instructgen.store import CompletionLine, Run, read_log, read_samples
from instructgen.training.options import PromptFormat
from tests import forks
from tests.conftest import ROOT, asked
from tests.training_data import dataset, pairs, sentences

pytestmark = pytest.mark.slow
SHORT: dict[str, Any] = {"max_length": 96, "learning_rate": 2e-3, "evaluate": False}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("rows"), sentences(200))


@pytest.fixture(scope="module")
def sft(tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sft") / "m"
    options = {**SHORT, "learning_rate": 5e-3}
    return train("sft", rows, out, model=str(tiny), steps=80, packing=False, **options).out


@pytest.fixture(scope="module")
def rm(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rm")
    data = dataset(folder / "pairs", pairs(200))
    return train("reward", data, folder / "m", model=str(tiny), steps=20, **SHORT).out


def test_bits_per_byte_equal_the_loss_of_transformers(tiny: Path) -> None:
    """The loss is summed over the answer's tokens and divided by the answer's bytes."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from instructgen.evaluation.measures import bits_per_byte
    from instructgen.training.options import PromptFormat

    sample = Sample("Name a color.", output="Grün, naturally.")
    measured = bits_per_byte(str(tiny), [sample], PromptFormat(128))
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": sample.instruction}],
        add_generation_prompt=True,
        tokenize=False,
    )
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(sample.output, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([prompt_ids + answer_ids])
    labels = torch.tensor([[-100] * len(prompt_ids) + answer_ids])
    loss = float(model(input_ids=ids, labels=labels).loss)
    bits = loss * len(answer_ids) / math.log(2)
    assert measured.parts == [pytest.approx(bits, rel=1e-5)]
    assert measured.wholes == [len(sample.output.encode())]


def test_likelihood_does_not_depend_on_the_batch(tiny: Path) -> None:
    from instructgen.evaluation.measures import bits_per_byte
    from instructgen.training.options import PromptFormat

    samples = [*sentences(30), Sample("Continue.", output="and on " * 30)]
    batched = bits_per_byte(str(tiny), samples, PromptFormat(400))
    for i in (0, 7, 30):
        alone = bits_per_byte(str(tiny), [samples[i]], PromptFormat(400))
        assert alone.parts[0] == pytest.approx(batched.parts[i], rel=1e-4)


def test_trained_model_is_better_and_the_results_are_written(
    tiny: Path, rows: Path, sft: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    result = evaluate(
        str(sft),
        against=str(tiny),
        data=rows,
        suites=["likelihood", "constraints"],
        limit=12,
        max_length=128,
        settings={"constraints.max_new_tokens": 8},
        out=out,
    )
    likelihood, training_families, held_out = result.measures
    (note,) = result.notes
    assert str(sft) in note and str(rows) in note
    assert likelihood.difference.high < 0
    assert training_families.measure == "constraints"
    assert held_out.measure == "constraints_held_out"
    assert set(held_out.details["by_family"]) == {"layout"}
    assert "layout" not in training_families.details["by_family"]
    record = orjson.loads((out / "evaluation.json").read_bytes())
    assert record["measures"] == [measure.to_dict() for measure in result.measures]
    assert len((out / "rows.jsonl").read_bytes().splitlines()) == 6 * 12
    assert (out / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert "bits_per_byte" in (out / "evaluation.md").read_text()


def test_preferences_are_ranked_by_reward_model_and_by_likelihood(
    tiny: Path, rm: Path, sft: Path, tmp_path: Path
) -> None:
    data = dataset(tmp_path / "pairs", pairs(260)[200:])
    by_reward = evaluate(str(rm), data=data, max_length=96).measures[0]
    assert by_reward.after.low > 0.8
    by_likelihood = evaluate(str(sft), against=str(tiny), data=data, max_length=96).measures
    assert [m.measure for m in by_likelihood] == ["pair_accuracy", "reward_accuracy"]


def test_win_rate_judged_by_a_reward_model(tiny: Path, sft: Path, rm: Path, rows: Path) -> None:
    settings = {"winrate.max_new_tokens": 24}
    options: dict[str, Any] = {
        "data": rows, "suites": ["winrate"], "judge": str(rm), "limit": 19, "max_length": 128,
        "settings": settings,
    }  # fmt: skip
    won = evaluate(str(sft), against=str(tiny), **options).measures[0]
    lost = evaluate(str(tiny), against=str(sft), **options).measures[0]
    assert won.after.value == pytest.approx(1 - lost.after.value)
    assert won.details["judged"] + won.details["abstained"] == 19
    itself = evaluate(str(sft), against=str(sft), **options).measures[0]
    assert itself.after.value == pytest.approx(0.5)
    assert itself.details["length_controlled"] == pytest.approx(0.5)


def recorded(folder: Path) -> dict[int, CompletionLine]:
    """Return the completions that a journal contains, each once."""
    with Run.view(folder) as run:
        lines = [line for _, line in run.lines() if isinstance(line, CompletionLine)]
    assert len({line.n for line in lines}) == len(lines)
    return {line.n: line for line in lines}


def test_a_stopped_evaluation_asks_for_no_recorded_answer_again(
    tiny: Path, sft: Path, rm: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process may be killed at any line of any of its journals."""
    options: dict[str, Any] = {
        "against": str(tiny), "data": rows, "suites": ["winrate"], "judge": str(rm),
        "max_length": 128, "settings": {"winrate.max_new_tokens": 12},
    }  # fmt: skip
    whole = tmp_path / "whole"
    measure = evaluate(str(sft), limit=20, out=whole, **options).measures[0]
    journals = {"answers": 20, "answers-2": 20, "rewards": 40}
    for number, (name, count) in enumerate(journals.items()):
        out = tmp_path / name
        for earlier in [*journals][: number + 1]:
            folder = Path("journals/winrate") / earlier
            shutil.copytree(whole / folder, out / folder)
        journal = out / "journals" / "winrate" / name
        lines = (journal / "journal.jsonl").read_bytes().splitlines(keepends=True)
        at = round(0.8 * len(lines))
        (journal / "journal.jsonl").write_bytes(b"".join(lines[:at]) + lines[at][:9])
        before = recorded(journal)
        assert 0 < len(before) < count
        with monkeypatch.context() as patch:
            answers, rewards = asked(patch, TransformersEngine), asked(patch, RewardEngine)
            again = evaluate(str(sft), limit=20, out=out, **options)
        missing = [count - len(before), *[*journals.values()][number + 1 :]]
        assert len(answers) + len(rewards) == sum(missing)
        after = recorded(journal)
        assert {n: after[n] for n in before} == before
        if name == "rewards":
            # All answers were recorded.
            assert again.measures[0].after.value == pytest.approx(measure.after.value)
        assert again.measures[0].details["judged"] == measure.details["judged"] == 20

    with monkeypatch.context() as patch:
        answers, rewards = asked(patch, TransformersEngine), asked(patch, RewardEngine)
        assert evaluate(str(sft), limit=20, out=whole, **options).measures == (measure,)
        assert answers == rewards == []
        # Other options would need other answers.
        for changed, key in (
            ({"seed": 1}, "options.seed"),
            ({"limit": 10}, "options.limit"),
            ({"settings": {"winrate.max_new_tokens": 13}}, "options.suite.max_new_tokens"),
        ):
            with pytest.raises(RunError) as caught:
                evaluate(str(sft), out=whole, **{"limit": 20, **options, **changed})
            assert key in caught.value.message
        assert answers == rewards == []
        # More rows need only more answers.
        more = evaluate(str(sft), limit=23, out=whole, **options).measures[0]
        assert (len(answers), len(rewards)) == (6, 6)
        assert more.details["judged"] == 23


def test_a_model_that_was_trained_again_is_asked_again(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    """Its folder has the same files, of the same size, with other weights."""
    from safetensors.torch import load_file, save_file

    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny, model)
    options: dict[str, Any] = {
        "data": rows, "suites": ["constraints"], "limit": 4, "max_length": 128, "out": out,
        "settings": {"constraints.max_new_tokens": 4},
    }  # fmt: skip
    first = evaluate(str(model), **options)
    assert evaluate(str(model), **options) == first
    weights = load_file(model / "model.safetensors")
    name = max(weights, key=lambda name: weights[name].numel())
    save_file(
        {**weights, name: weights[name] * 1.01}, model / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(RunError) as caught:
        evaluate(str(model), **options)
    assert f"models.{model}" in caught.value.message
    assert evaluate(str(model), **{**options, "out": tmp_path / "other"}).files


def test_an_evaluation_stops_at_once_in_a_folder_with_other_files(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    answers = asked(monkeypatch, TransformersEngine)
    with pytest.raises(RunError):
        evaluate(str(tiny), data=rows, suites=["constraints"], out=tmp_path)
    assert answers == []
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_killed_evaluation_continues(tiny: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["evaluate", tiny, "--data", rows, "--suite", "constraints", "--limit", 64]
    words += ["--max-length", 128, "--set", "constraints.max_new_tokens=48", "--out", out]
    argv = [sys.executable, "-m", "instructgen", *map(str, words)]
    journal = out / "journals" / "constraints" / "answers" / "journal.jsonl"
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    # The engine answers 16 requests at a time.
    while not journal.exists() or b'"completion"' not in journal.read_bytes():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = journal.read_bytes()
    whole = before[: before.rindex(b"\n") + 1]
    assert 0 < len(recorded(journal.parent)) < 64
    done = forks.command(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert journal.read_bytes().startswith(whole)
    assert len(recorded(journal.parent)) == 64


def test_suite_skips_prompts_that_are_too_long_and_reports_a_failed_one(
    tiny: Path,
) -> None:
    prompt_format = PromptFormat(max_length=256)
    subject = Subject(str(tiny), None, prompt_format)
    suite = WinRate(judge=str(tiny), max_new_tokens=4)
    short, long = Sample("Write of a boat."), Sample("Write of a boat. " * 400)
    assert suite.fitting_tasks(subject, [short, long]) == [short]
    assert len(suite.answers(subject, [short])[str(tiny)]) == 1
    with pytest.raises(EngineError) as error:
        suite.answers(subject, [short, long])
    assert str(tiny) in error.value.message
    assert "--max-length" in error.value.hint


def test_lm_eval_runs_tasks_from_a_folder(tiny: Path, tmp_path: Path) -> None:
    """Runs offline, with a multiple-choice task in the format of lm-eval."""
    pytest.importorskip("lm_eval")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    lines = [
        {"question": f"Is {i} even?", "choices": ["yes", "no"], "answer": i % 2} for i in range(12)
    ]
    (tasks / "even.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    (tasks / "even.yaml").write_text(
        "task: even\n"
        "dataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n    test: {tasks / 'even.jsonl'}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\n'
        "doc_to_choice: choices\n"
        "doc_to_target: answer\n"
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    result = evaluate(
        str(tiny),
        suites=["lm-eval"],
        settings={"lm-eval.tasks": ["even"], "lm-eval.include_path": str(tasks)},
    )
    assert [m.measure for m in result.measures] == ["even/acc"]
    assert result.measures[0].after.rows == 12


def test_ablation_finds_the_better_dataset(tiny: Path, tmp_path: Path) -> None:
    """Half of the raw rows are noise: the curated arm beats raw and a random half of raw."""
    from dataclasses import replace

    good = sentences(200)
    noise = [replace(s, output="ZZ QQ " * 6, source="noise") for s in sentences(400)[200:]]
    raw = dataset(tmp_path / "raw", good + noise)
    curated = dataset(tmp_path / "curated", good)
    held_out = dataset(tmp_path / "held", sentences(440)[400:])
    options: dict[str, Any] = {
        "tokens": 1200, "seeds": 3, "model": str(tiny), "data": held_out, "rows": 30,
        "max_length": 96, "learning_rate": 2e-3,
    }  # fmt: skip
    result = ablate([raw, curated], tmp_path / "out", **options)
    assert [arm.arm for arm in result.arms] == ["raw", "curated", "random-drop"]
    assert {arm.supervised_tokens for arm in result.arms} == {1200}
    against_raw, against_control, control = result.comparisons
    assert (against_raw.arm, against_raw.against) == ("curated", "raw")
    assert against_raw.high < 0
    assert against_control.high < 0
    assert control.arm == "random-drop"
    # The difference is significant, so the verdict names the better dataset before the numbers.
    assert re.match(r"curated\b.*\bbetter\b.*\braw\b", result.verdict[0])
    control_rows = list(read_samples(tmp_path / "out" / "random-drop"))
    assert len(control_rows) == 200
    # Running the same command again does not train again.
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*/model.safetensors")}
    again = ablate([raw, curated], tmp_path / "out", **options)
    assert again.comparisons == result.comparisons
    assert all(p.stat().st_mtime_ns == t for p, t in stamps.items())


def test_ablation_of_equal_datasets_has_no_winner(tiny: Path, tmp_path: Path) -> None:
    one = dataset(tmp_path / "one", sentences(300)[:150])
    other = dataset(tmp_path / "other", sentences(300)[150:])
    held_out = dataset(tmp_path / "held", sentences(340)[300:])
    result = ablate(
        [one, other], tmp_path / "out", tokens=600, seeds=2, model=str(tiny), data=held_out,
        rows=30, max_length=96, learning_rate=2e-3,
    )  # fmt: skip
    undecided = [
        sentence
        for sentence, c in zip(result.verdict, result.comparisons, strict=True)
        if c.low <= 0 <= c.high
    ]
    assert undecided
    # The words before the numbers must not name a better dataset.
    assert not any(re.search(r"better|worse", s.split(":")[0]) for s in undecided)


def _on_two_machines(words: list[str]) -> list[subprocess.CompletedProcess[str]]:
    """Start the command with torchrun as on two machines, each with one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    command += ["--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    machines = [
        subprocess.Popen(
            [*command, "--node-rank", str(rank), "-m", "instructgen", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in range(2)
    ]
    ended = [machine.communicate(timeout=300) for machine in machines]
    return [
        subprocess.CompletedProcess(command, machine.returncode, *output)
        for machine, output in zip(machines, ended, strict=True)
    ]


@pytest.mark.parametrize("machines", [pytest.param(1, marks=pytest.mark.long), 2])
def test_two_processes_train_like_one(
    tiny: Path, rows: Path, tmp_path: Path, machines: int
) -> None:
    """DDP with two gloo processes has the same losses as one process with the same batches."""
    # 500 tokens end with a step whose rows do not fill the batches of both processes.
    options = ["--model", str(tiny), "--tokens", "500", "--max-length", "96", "--seed", "3"]
    options += ["--set", "evaluate=false", "--set", "packing=false", "--batch-size", "4"]
    words = ["train", "sft", str(rows), *options, "--quiet", "--out"]
    done = forks.command(*words, tmp_path / "one")
    assert done.returncode == 0, done.stderr
    if machines == 1:
        command = [sys.executable, "-m", "instructgen", *words, str(tmp_path / "two")]
        command += ["--strategy", "ddp", "--processes", "2"]
        started = [subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)]
    else:
        started = _on_two_machines([*words, str(tmp_path / "two")])
    for done in started:
        assert done.returncode == 0, done.stderr
    one, two = (read_log(tmp_path / name) for name in ("one", "two"))
    assert [e["loss"] for e in one] == pytest.approx([e["loss"] for e in two], rel=1e-3)
    assert [e["supervised_tokens"] for e in one] == [e["supervised_tokens"] for e in two]
    assert two[-1]["supervised_tokens"] == 500


def test_accelerate_reads_the_configuration_files() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    from instructgen.training.launch import CONFIGS, command

    kinds = {p.stem: load_config_from_file(str(p)) for p in CONFIGS.glob("*.yaml")}
    assert kinds.keys() == {"ddp", "fsdp", "zero2", "zero3"}
    assert str(kinds["fsdp"].distributed_type).endswith("FSDP")
    assert kinds["fsdp"].fsdp_config["fsdp_version"] == 2
    assert [kinds[f"zero{n}"].deepspeed_config["zero_stage"] for n in (2, 3)] == [2, 3]
    arguments = command(
        "ddp", 2, ["train", "sft", "d", "--strategy", "ddp", "--processes=2", "--out", "m"]
    )
    assert arguments[-5:] == ["train", "sft", "d", "--out", "m"]


def test_chat_with_a_trained_model(sft: Path) -> None:
    typed = b"Write of a red boat, number 3.\n\n/new\nWrite of a blue coat, number 4.\n/quit\n"
    words = ("chat", sft, "--temperature", 0, "--max-tokens", 24)
    done = forks.command(*words, given=typed)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("you>") == 5
    assert "everyone likes the" in done.stdout
