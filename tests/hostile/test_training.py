"""Bad datasets, models and options for the commands about models: one line, exit code 2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from instructgen import ablate, evaluate, prefer, train
from instructgen.errors import ConfigError, InputError, InstructgenError, RunError
from instructgen.schema.sample import Sample
from tests import forks
from tests.hostile.test_models import without
from tests.tiny_model import make_tiny_model
from tests.training_data import dataset, pairs, sentences

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("rows"), sentences(40))


@pytest.fixture(scope="module")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("pairs"), pairs(40))


def refused(*arguments: str | Path, said: str) -> None:
    """The command says one line, without a traceback, and its exit code is 2."""
    done = forks.command(*arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, done.stderr
    assert said in lines[0]


def test_the_shell_says_it_in_one_line(tiny: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    refused("train", "dpo", rows, "--model", tiny, "--out", out, said="train dpo wants preferences")
    assert not out.exists()


def test_wrong_kinds_of_rows(tiny: Path, rows: Path, preferences: Path, tmp_path: Path) -> None:
    for method, data in (("sft", preferences), ("reward", rows), ("kto", rows)):
        with pytest.raises(InputError, match="wants"):
            train(method, data, tmp_path / "m", model=str(tiny))


def test_wrong_columns(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"foo": 1}\n')
    with pytest.raises(InstructgenError, match=r"rows\.jsonl"):
        train("sft", file, tmp_path / "m", model=str(tiny))


def test_no_dataset_there(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such dataset"):
        train("sft", tmp_path / "none", tmp_path / "m", model=str(tiny))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds no complete dataset"):
        train("sft", tmp_path / "empty", tmp_path / "m", model=str(tiny))


def test_an_empty_dataset(tiny: Path, rows: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    folder = tmp_path / "rows"
    shutil.copytree(rows, folder)
    part = next(folder.glob("data/*.parquet"))
    pq.write_table(pq.read_table(part).slice(0, 0), part)
    from instructgen.store.files import digest_of_file

    manifest = orjson.loads((folder / "manifest.json").read_bytes())
    manifest["rows"] = 0
    manifest["files"][0] |= {"rows": 0, "sha256": digest_of_file(part)}
    (folder / "manifest.json").write_bytes(orjson.dumps(manifest))
    with pytest.raises(InputError, match="the dataset is empty"):
        train("sft", folder, tmp_path / "m", model=str(tiny))


def test_no_row_fits(tiny: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no row can be trained on: 40 too_long"):
        train("sft", rows, tmp_path / "m", model=str(tiny), max_length=16, held_out_rows=0)


def test_no_chat_template(rows: Path, tmp_path: Path) -> None:
    bare = make_tiny_model(tmp_path / "bare", template=None)
    with pytest.raises(ConfigError, match=r"has no chat template. Give --format alpaca"):
        train("sft", rows, tmp_path / "m", model=str(bare))
    out = train("sft", rows, tmp_path / "n", model=str(bare), format="alpaca", steps=1).out
    assert "### Response:" in (out / "chat_template.jinja").read_text()


def test_no_padding_token(rows: Path, tmp_path: Path) -> None:
    bare = make_tiny_model(tmp_path / "bare", pad=False)
    with pytest.raises(ConfigError, match=r"no padding token. Give --pad-token eos"):
        train("sft", rows, tmp_path / "m", model=str(bare))
    with pytest.raises(ConfigError, match="not in the vocabulary"):
        train("sft", rows, tmp_path / "m", model=str(bare), pad_token="<nope>")
    out = train("sft", rows, tmp_path / "n", model=str(bare), pad_token="eos", steps=1).out
    config = json.loads((out / "generation_config.json").read_text())
    assert config["pad_token_id"] == config["eos_token_id"]


def test_rows_longer_than_the_model_reads(tiny: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"max_length is 600, and .* reads 512 tokens"):
        train("sft", rows, tmp_path / "m", model=str(tiny), max_length=600)


def test_no_room_on_the_disk(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ConfigError, match=r"0\.0 GB are free, and training needs about"):
        train("sft", rows, tmp_path / "m", model=str(tiny))


def test_the_disk_fills_while_training(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """A real limit on file sizes: one line, and the same command goes on afterwards."""
    out = tmp_path / "m"
    code = (
        "import resource, sys, instructgen\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try:\n"
        "    instructgen.train('sft', sys.argv[1], sys.argv[2], model=sys.argv[3], steps=4,\n"
        "                      checkpoint_every=2, evaluate=False)\n"
        "except instructgen.errors.StorageError as error:\n"
        "    print('said:', error)\n"
    )
    command = [sys.executable, "-c", code, str(rows), str(out), str(tiny)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "said:" in done.stdout, done.stderr
    assert "the same command goes on" in done.stdout
    facts = train(
        "sft", rows, out, model=str(tiny), steps=4, checkpoint_every=2, evaluate=False
    ).facts
    assert facts["steps"] == 4


def test_models_that_are_none(rows: Path, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        train("sft", rows, tmp_path / "m", model="./nowhere")
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    (broken / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        train("sft", rows, tmp_path / "m", model=str(broken))
    shutil.copy(tiny / "config.json", broken)
    os.truncate(broken / "model.safetensors", 1000)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        train("sft", rows, tmp_path / "n", model=str(broken))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"learning_rat": 1}, "unknown key. Did you mean learning_rate"),
        ({"batch_size": 0}, "batch-size: input should be greater"),
        ({"steps": 1, "tokens": 9}, "give tokens or steps"),
        ({"learning_rate": float("nan")}, "learning_rate|learning-rate"),
        ({"batch_size": 8, "micro_batch_size": 3}, "no multiple of 3"),
        ({"peft": "lorra"}, "peft"),
        ({"weights": {"sentences": 0.0}, "held_out_rows": 0}, "every row has the weight 0"),
        ({"weights": {"sentence": 2.0}}, "Did you mean sentences"),
    ],
)
def test_bad_options(tiny: Path, rows: Path, tmp_path: Path, options, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        train("sft", rows, tmp_path / "m", model=str(tiny), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--set", "watch=1"], "no option of train sft"),
        (["--set", "lora_ranc=8"], "Did you mean lora_rank"),
        (["--set", "seed=1", "--seed", "2"], "is given twice"),
        (["--processes", "2", "--set", "batch_size=0"], "batch-size"),
    ],
)
def test_bad_settings_on_the_command_line(
    tiny: Path, rows: Path, tmp_path: Path, given: list[str], said: str
) -> None:
    command = ["train", "sft", str(rows), "--model", str(tiny), "--out", str(tmp_path / "m")]
    done = forks.command(*command, *given)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_fewer_prompts_than_a_batch(tiny: Path, tmp_path: Path) -> None:
    few = dataset(tmp_path / "few", sentences(5))
    with pytest.raises(ConfigError, match="5 prompts are fewer than batch_size 8"):
        train(
            "grpo", few, tmp_path / "m", model=str(tiny), reward=["verifiers:ifeval"],
            max_new_tokens=8, max_length=128, held_out_rows=0,
        )  # fmt: skip


def test_bad_recipes(tiny: Path, rows: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "train.toml"
    for text, said in (
        ("[train]\nlorarank = 3\n", "lorarank: unknown key. Did you mean lora_rank"),
        ("[trian]\n", "trian: unknown table. Did you mean train"),
        ("train = 3\n", "not a table"),
        ("[train\n", "no valid TOML"),
    ):
        recipe.write_text(text)
        with pytest.raises(ConfigError, match=said):
            train("sft", rows, tmp_path / "m", model=str(tiny), recipe=recipe)


def test_rewards_where_none_belong_and_none_where_one_does(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="has no reward"):
        train("sft", rows, tmp_path / "m", model=str(tiny), reward=["verifiers:math"])
    with pytest.raises(ConfigError, match="needs a reward"):
        train("grpo", rows, tmp_path / "m", model=str(tiny))
    with pytest.raises(ConfigError, match="is no reward model"):
        train("grpo", rows, tmp_path / "m", model=str(tiny), reward=[str(tiny)])
    with pytest.raises(InputError, match="no_reward"):
        train("grpo", rows, tmp_path / "n", model=str(tiny), reward=["verifiers:code"])
    with pytest.raises(ConfigError, match="no reward is called 'math'"):
        train(
            "grpo", rows, tmp_path / "n", model=str(tiny), reward=["verifiers:ifeval"],
            reward_weights={"math": 1.0},
        )  # fmt: skip


def test_a_folder_that_holds_something_else(tiny: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match=r"holds thesis\.txt and is none of ours"):
        train("sft", rows, tmp_path / "m", model=str(tiny))
    assert (tmp_path / "m" / "thesis.txt").read_text() == "years of work"
    with pytest.raises((RunError, InstructgenError)):
        train("sft", rows, rows, model=str(tiny))


def test_fsdp_on_a_cpu_is_refused(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "fsdp needs GPUs"
    refused(
        "train", "sft", rows, "--model", tiny, "--out", tmp_path / "m", "--strategy", "fsdp",
        said=said,
    )  # fmt: skip
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=said):
        train("sft", rows, tmp_path / "m", model=str(tiny))


def test_a_loss_that_is_no_number_stops_the_run(tiny: Path, rows: Path, tmp_path: Path) -> None:
    from instructgen.errors import TrainingError

    with pytest.raises(
        TrainingError, match=r"The (loss|grad_norm) is (nan|inf).*lower learning_rate"
    ):
        train(
            "sft", rows, tmp_path / "m", model=str(tiny), steps=200, learning_rate=1e30,
            max_grad_norm=1e30, warmup=0.0, held_out_rows=0,
        )  # fmt: skip


def test_evaluations_that_cannot_be(
    tiny: Path, rows: Path, preferences: Path, tmp_path: Path
) -> None:
    for options, said in (
        ({"suites": ["likelyhood"], "data": rows}, "Did you mean likelihood"),
        ({}, "nothing to measure"),
        ({"suites": ["preference"], "data": rows}, "wants preferences"),
        ({"suites": ["winrate"], "data": rows}, "needs two models"),
        ({"suites": ["winrate"], "data": rows, "against": str(tiny)}, "needs a judge"),
        ({"data": rows, "settings": {"likelihood.x": 1}}, "unknown option"),
        ({"data": rows, "settings": {"no.x": 1}}, "no such suite"),
        ({"data": tmp_path / "none"}, "no such dataset"),
        ({"data": rows, "max_length": 16}, "found no row that it can measure"),
        ({"data": rows, "limit": 0}, "too small"),
    ):
        with pytest.raises(InstructgenError, match=said):
            evaluate(str(tiny), **options)


def test_ablations_that_cannot_be(
    tiny: Path, rows: Path, preferences: Path, tmp_path: Path
) -> None:
    other = dataset(tmp_path / "other", sentences(10))
    for given, said in (
        ([rows], "nothing to compare"),
        ([rows, other], "there are no held-out rows"),
        ([preferences, preferences], "preferences"),
    ):
        with pytest.raises(InstructgenError, match=said):
            ablate(given, tmp_path / "out", tokens=10, model=str(tiny))


def test_preferences_that_cannot_be_made(
    tiny: Path, rows: Path, preferences: Path, tmp_path
) -> None:
    for data, options, said in (
        (rows, {"score": []}, "wants rewards"),
        (rows, {"score": ["judge:a/b", "verifiers:math"]}, "wants rewards, or one judge"),
        (rows, {"score": ["verifiers:math"], "samples": 1}, "too few"),
        (preferences, {"score": ["verifiers:math"]}, "holds preferences already"),
        (rows, {"score": ["verifiers:math"], "engine": "vlm"}, "Did you mean vllm"),
        (rows, {"score": ["verifiers:math"], "max_tokens": 0}, "max-tokens is 0"),
        (rows, {"score": ["verifiers:math"], "limit": -1}, "limit is -1"),
    ):
        with pytest.raises(InstructgenError, match=said):
            prefer(data, tmp_path / "out", model=str(tiny), **options)


def test_hostile_names_and_texts_reach_no_template(tiny: Path, tmp_path: Path) -> None:
    rows = [
        Sample(text, output=f"{text} again {i}", source=text, license="CC0-1.0", language="en")
        for i, text in enumerate(
            ["{{ 7*7 }}", "${HOME}", "{0.__class__}", "| a | b |", "\x1b[31mred", "a\u202eb"] * 4
        )
    ]
    data = dataset(tmp_path / "rows", rows)
    out = train("sft", data, tmp_path / "m", model=str(tiny), steps=1, held_out_rows=0).out
    card = (out / "README.md").read_text()
    assert "{{ 7*7 }}" in card
    assert "49" not in card.split("## Sources")[1].split("##")[0]


def changed(tiny: Path, folder: Path, **config: object) -> Path:
    """The tiny model with other words in its config.json."""
    shutil.copytree(tiny, folder)
    file = folder / "config.json"
    file.write_bytes(orjson.dumps({**orjson.loads(file.read_bytes()), **config}))
    return folder


def test_weights_that_are_not_the_models(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """Transformers fills what is missing with random numbers, and says so at most in a log."""
    layers = orjson.loads((tiny / "config.json").read_bytes())["num_hidden_layers"]
    for model in (
        without(tiny, tmp_path / "missing", "layers.1."),
        changed(tiny, tmp_path / "more", num_hidden_layers=layers + 2),
        changed(tiny, tmp_path / "fewer", num_hidden_layers=layers - 1),
    ):
        with pytest.raises(ConfigError, match="more are"):
            train("sft", rows, tmp_path / "m", model=str(model), max_length=128)
        with pytest.raises(ConfigError, match="more are"):
            evaluate(str(model), data=rows, max_length=128)
    for model in (
        changed(tiny, tmp_path / "wide", hidden_size=256),
        changed(tiny, tmp_path / "words", hidden_size="x"),
    ):
        with pytest.raises(ConfigError, match="cannot be loaded"):
            train("sft", rows, tmp_path / "m", model=str(model), max_length=128)


def test_a_reward_model_writes_nothing(
    tiny: Path, rows: Path, preferences: Path, tmp_path: Path
) -> None:
    model = tmp_path / "rm"
    train("reward", preferences, model, model=str(tiny), steps=1, max_length=128)
    for method, data in (("sft", rows), ("dpo", preferences)):
        with pytest.raises(ConfigError, match="is a reward model"):
            train(method, data, tmp_path / "m", model=str(model), max_length=128)
    with pytest.raises(ConfigError, match="is a reward model"):
        evaluate(str(model), data=rows, max_length=128)
    with pytest.raises(ConfigError, match="is a reward model"):
        prefer(rows, tmp_path / "p", model=str(model), score=["verifiers:ifeval"])


def test_a_finished_run_without_its_weights(tiny: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    train("sft", rows, out, model=str(tiny), steps=1, max_length=128)
    (out / "model.safetensors").unlink()
    with pytest.raises(RunError, match="weights are gone"):
        train("sft", rows, out, model=str(tiny), steps=1, max_length=128)


def test_held_out_rows_that_cannot_be_measured(
    tiny: Path, rows: Path, preferences: Path, tmp_path: Path
) -> None:
    common = {"model": str(tiny), "steps": 1, "max_length": 128}
    with pytest.raises(InputError, match="wants preferences"):
        train("dpo", preferences, tmp_path / "m", held_out=rows, **common)
    with pytest.raises(InputError, match="no such dataset"):
        train("sft", rows, tmp_path / "m", held_out=tmp_path / "none", **common)
    long = dataset(tmp_path / "long", [Sample("Say it. " * 200, output="x", license="MIT")])
    done = train("sft", rows, tmp_path / "m", held_out=long, **common)
    assert any("0 rows are held out" in message for message in done.messages)


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("sft", {"steps": 10**12}, "steps"),
        ("sft", {"tokens": 10**18}, "tokens"),
        ("sft", {"peft": "lora", "lora_rank": 10**9}, "lora-rank"),
        ("grpo", {"temperature": 1e-300}, "temperature"),
        ("ppo", {"peft": "adapter"}, "use lora"),
        ("sft", {"model": ""}, "no such folder"),
    ],
)
def test_options_that_could_not_end_well(
    method: str, options: dict[str, object], said: str, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    reward = ["verifiers:ifeval"] if method in ("grpo", "ppo") else []
    with pytest.raises(ConfigError, match=said):
        train(method, rows, tmp_path / "m", reward=reward, **{"model": str(tiny), **options})


def test_numbers_that_are_none(tiny: Path, rows: Path, tmp_path: Path) -> None:
    for options in ({"margin": float("nan")}, {"temperature": float("nan")}, {"min_score": -1e999}):
        with pytest.raises(ConfigError, match=r"(?i)give"):
            prefer(rows, tmp_path / "p", model=str(tiny), score=["verifiers:ifeval"], **options)
    with pytest.raises(ConfigError, match="--rows"):
        ablate([rows, rows], tokens=50, rows=0, model=str(tiny), out=tmp_path / "a")


def test_chat_templates_that_fail(tiny: Path, rows: Path, tmp_path: Path) -> None:
    for number, text in enumerate(("{{ raise_exception('no') }}", "{% for", "{{ a.b.c }}")):
        model = tmp_path / f"m{number}"
        shutil.copytree(tiny, model)
        (model / "chat_template.jinja").write_text(text)
        with pytest.raises(ConfigError, match="chat template fails"):
            train("sft", rows, tmp_path / "out", model=str(model), max_length=128)


def test_tokenizers_of_rubbish(tiny: Path, rows: Path, tmp_path: Path) -> None:
    for name, text in (("tokenizer.json", "{}"), ("tokenizer_config.json", "[]")):
        model = tmp_path / name
        shutil.copytree(tiny, model)
        (model / name).write_text(text)
        with pytest.raises(ConfigError, match="cannot be loaded"):
            train("sft", rows, tmp_path / "out", model=str(model), max_length=128)


def test_a_log_of_rubbish(tmp_path: Path) -> None:
    from instructgen.store import read_log

    lines = [b"garbage", b"[]", b"\xff\xfe", b'{"step":"x"}', b'{"step":1,"loss":2.0}', b'{"st']
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines))
    assert read_log(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_talk_through_a_pipe(tiny: Path) -> None:
    command = ["chat", str(tiny), "--max-tokens", "3"]
    for given, flags, code in (
        (b"\xff\xfe bad\n", ["--json"], 0),
        (b"hi\n", ["--max-tokens", "0"], 2),
        (b"hi\n", ["--temperature", "nan"], 2),
    ):
        done = forks.command(*command, *flags, given=given)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        if flags == ["--json"]:
            assert orjson.loads(done.stdout)["role"] == "assistant"
    done = forks.command(*command)
    assert done.returncode == 0 and "Traceback" not in done.stderr
