"""What is measured of models, which dataset trains the better one, and talking to one."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from instructgen import ablate, evaluate, train
from instructgen.errors import EngineError
from instructgen.evaluation.measures import Framing
from instructgen.evaluation.suites import Subject
from instructgen.evaluation.suites.winrate import WinRate
from instructgen.schema.sample import Sample
from instructgen.store import read_log, read_samples
from tests import forks
from tests.conftest import ROOT
from tests.training_data import dataset, pairs, sentences

pytestmark = pytest.mark.slow
SHORT: dict[str, Any] = {"max_length": 96, "learning_rate": 2e-3, "evaluate": False}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("rows"), sentences(200))


@pytest.fixture(scope="module")
def sft(tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sft") / "m"
    more = {**SHORT, "learning_rate": 5e-3}
    return train("sft", rows, out, model=str(tiny), steps=80, packing=False, **more).out


@pytest.fixture(scope="module")
def rm(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rm")
    data = dataset(folder / "pairs", pairs(200))
    return train("reward", data, folder / "m", model=str(tiny), steps=20, **SHORT).out


def test_bits_per_byte_are_what_the_model_says(tiny: Path) -> None:
    """Against transformers' own loss, over the answer's tokens and bytes."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from instructgen.evaluation.measures import Framing, bits_per_byte

    sample = Sample("Name a colour.", output="Grün, naturally.")
    found = bits_per_byte(str(tiny), [sample], Framing(128))
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": sample.instruction}],
        add_generation_prompt=True,
        tokenize=False,
    )
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer = tokenizer(sample.output, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([before + answer])
    labels = torch.tensor([[-100] * len(before) + answer])
    loss = float(model(input_ids=ids, labels=labels).loss)
    bits = loss * len(answer) / math.log(2)
    assert found.parts == [pytest.approx(bits, rel=1e-5)]
    assert found.wholes == [len(sample.output.encode())]


def test_what_it_is_batched_with_changes_no_number(tiny: Path) -> None:
    from instructgen.evaluation.measures import Framing, bits_per_byte

    samples = [*sentences(30), Sample("Go on.", output="and on " * 30)]
    together = bits_per_byte(str(tiny), samples, Framing(400))
    for i in (0, 7, 30):
        alone = bits_per_byte(str(tiny), [samples[i]], Framing(400))
        assert alone.parts[0] == pytest.approx(together.parts[i], rel=1e-4)


def test_a_trained_model_is_better_and_the_files_say_so(
    tiny: Path, rows: Path, sft: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    found = evaluate(
        str(sft),
        against=str(tiny),
        data=rows,
        suites=["likelihood", "constraints"],
        limit=12,
        max_length=128,
        settings={"constraints.max_new_tokens": 8},
        out=out,
    )
    likelihood, seen, held_out = found.measures
    assert found.notes == (f"{sft} was trained on rows of {rows}.",)
    assert likelihood["difference"]["high"] < 0
    assert seen["measure"] == "constraints"
    assert held_out["measure"] == "constraints_held_out"
    assert set(held_out["by_family"]) == {"layout"}
    assert "layout" not in seen["by_family"]
    record = orjson.loads((out / "evaluation.json").read_bytes())
    assert record["measures"][0]["after"] == likelihood["after"]
    assert len((out / "rows.jsonl").read_bytes().splitlines()) == 6 * 12
    assert (out / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert "bits_per_byte" in (out / "evaluation.md").read_text()


def test_pairs_by_reward_model_and_by_likelihood(
    tiny: Path, rm: Path, sft: Path, tmp_path: Path
) -> None:
    data = dataset(tmp_path / "pairs", pairs(260)[200:])
    by_reward = evaluate(str(rm), data=data, max_length=96).measures[0]
    assert by_reward["after"]["low"] > 0.8
    by_likelihood = evaluate(str(sft), against=str(tiny), data=data, max_length=96).measures
    assert [m["measure"] for m in by_likelihood] == ["pair_accuracy", "reward_accuracy"]


def test_win_rates_by_a_reward_model(tiny: Path, sft: Path, rm: Path, rows: Path) -> None:
    settings = {"winrate.max_new_tokens": 24}
    more: dict[str, Any] = {
        "data": rows, "suites": ["winrate"], "judge": str(rm), "limit": 16, "max_length": 128,
        "settings": settings,
    }  # fmt: skip
    won = evaluate(str(sft), against=str(tiny), **more).measures[0]
    lost = evaluate(str(tiny), against=str(sft), **more).measures[0]
    assert won["after"]["value"] == pytest.approx(1 - lost["after"]["value"])
    assert won["judged"] + won["abstained"] == 16
    itself = evaluate(str(sft), against=str(sft), **more).measures[0]
    assert itself["after"]["value"] == pytest.approx(0.5)
    assert itself["length_controlled"] == pytest.approx(0.5)


def test_a_suite_asks_what_leaves_room_and_says_what_was_not_answered(
    tiny: Path,
) -> None:
    framing = Framing(max_length=256)
    subject = Subject(str(tiny), None, framing)
    suite = WinRate(judge=str(tiny), max_new_tokens=4)
    short, long = Sample("Write of a boat."), Sample("Write of a boat. " * 400)
    assert suite.askable(subject, [short, long]) == [short]
    assert len(suite.answers(subject, [short])[str(tiny)]) == 1
    with pytest.raises(EngineError, match="gave no answer"):
        suite.answers(subject, [short, long])


def test_the_harness_runs_tasks_from_a_folder(tiny: Path, tmp_path: Path) -> None:
    """Offline: a multiple-choice task of ours in lm-eval's own format."""
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
    found = evaluate(
        str(tiny),
        suites=["lm-eval"],
        settings={"lm-eval.tasks": ["even"], "lm-eval.include_path": str(tasks)},
    )
    assert [m["measure"] for m in found.measures] == ["even/acc"]
    assert found.measures[0]["after"]["rows"] == 12


def test_an_ablation_tells_sense_from_noise(tiny: Path, tmp_path: Path) -> None:
    """Half of the raw rows are noise: the curated arm wins, and dropping at random does not."""
    from dataclasses import replace

    good = sentences(200)
    noise = [replace(s, output="ZZ QQ " * 6, source="noise") for s in sentences(400)[200:]]
    raw = dataset(tmp_path / "raw", good + noise)
    curated = dataset(tmp_path / "curated", good)
    held_out = dataset(tmp_path / "held", sentences(440)[400:])
    given: dict[str, Any] = {
        "tokens": 2000, "seeds": 3, "model": str(tiny), "data": held_out, "rows": 30,
        "max_length": 96, "learning_rate": 2e-3,
    }  # fmt: skip
    result = ablate([raw, curated], tmp_path / "out", **given)
    assert [a["arm"] for a in result.arms] == ["raw", "curated", "random-drop"]
    assert {a["supervised_tokens"] for a in result.arms} == {2000}
    against_raw, against_control, control = result.comparisons
    assert against_raw["high"] < 0
    assert against_control["high"] < 0
    assert control["arm"] == "random-drop"
    assert "curated trains the better model than raw" in result.verdict[0]
    dropped = list(read_samples(tmp_path / "out" / "random-drop"))
    assert len(dropped) == 200
    # The same command again trains nothing.
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*/model.safetensors")}
    again = ablate([raw, curated], tmp_path / "out", **given)
    assert again.comparisons == result.comparisons
    assert all(p.stat().st_mtime_ns == t for p, t in stamps.items())


def test_an_ablation_of_equals_says_that_it_is_noise(tiny: Path, tmp_path: Path) -> None:
    one = dataset(tmp_path / "one", sentences(300)[:150])
    other = dataset(tmp_path / "other", sentences(300)[150:])
    held_out = dataset(tmp_path / "held", sentences(340)[300:])
    result = ablate(
        [one, other], tmp_path / "out", tokens=1500, seeds=2, model=str(tiny), data=held_out,
        rows=30, max_length=96, learning_rate=2e-3,
    )  # fmt: skip
    assert any("inside the noise" in sentence for sentence in result.verdict)


def test_two_processes_train_together(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """DDP on two gloo processes: the losses of one process with the same batches."""
    # A last step with fewer rows than processes times rows.
    given = ["--model", str(tiny), "--tokens", "500", "--max-length", "96", "--seed", "3"]
    given += ["--set", "evaluate=false", "--set", "packing=false", "--batch-size", "4"]
    words = ["train", "sft", str(rows), *given, "--quiet", "--out"]
    done = forks.command(*words, tmp_path / "one")
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "instructgen", *words, str(tmp_path / "two")]
    command += ["--strategy", "ddp", "--processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    one, two = (read_log(tmp_path / name) for name in ("one", "two"))
    assert [e["loss"] for e in one] == pytest.approx([e["loss"] for e in two], rel=1e-3)
    assert [e["supervised_tokens"] for e in one] == [e["supervised_tokens"] for e in two]
    assert two[-1]["supervised_tokens"] == 500


def test_configurations_are_read_by_accelerate() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    from instructgen.training.launch import CONFIGS, command

    kinds = {p.stem: load_config_from_file(str(p)) for p in CONFIGS.glob("*.yaml")}
    assert kinds.keys() == {"ddp", "fsdp", "zero2", "zero3"}
    assert str(kinds["fsdp"].distributed_type).endswith("FSDP")
    assert kinds["fsdp"].fsdp_config["fsdp_version"] == 2
    assert [kinds[f"zero{n}"].deepspeed_config["zero_stage"] for n in (2, 3)] == [2, 3]
    made = command(
        "ddp", 2, ["train", "sft", "d", "--strategy", "ddp", "--processes=2", "--out", "m"]
    )
    assert made[-5:] == ["train", "sft", "d", "--out", "m"]


def test_a_talk_with_a_trained_model(sft: Path) -> None:
    said = b"Write of a red boat, number 3.\n\n/new\nWrite of a blue coat, number 4.\n/quit\n"
    words = ("chat", sft, "--temperature", 0, "--max-tokens", 24)
    done = forks.command(*words, given=said)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("you>") == 5
    assert "everyone likes the" in done.stdout
