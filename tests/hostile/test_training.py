"""Invalid datasets, models and options of train, evaluate, ablate, prefer and chat.

Each must end with one error line and exit code 2.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from pathlib import Path

import orjson
import pytest
from jinja2 import TemplateError

from instructgen import ablate, evaluate, prefer, train
from instructgen.errors import ConfigError, InputError, RunError, TrainingError
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


def files_in(folder: Path) -> dict[Path, bytes]:
    """Return the contents of all files in a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_one_error(*arguments: str | Path, facts: tuple[str, ...]) -> None:
    """Run a command: it prints one error line with these facts, and its exit code is 2."""
    done = forks.command(*arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, done.stderr
    for fact in facts:
        assert fact in lines[0]


def test_the_command_line_prints_one_error_line(tiny: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    facts = (str(rows), "dpo", "preferences")
    assert_one_error("train", "dpo", rows, "--model", tiny, "--out", out, facts=facts)
    assert not out.exists()


def test_a_dataset_of_the_wrong_shape_is_an_error(
    tiny: Path, rows: Path, preferences: Path, tmp_path: Path
) -> None:
    for trainer, data, shape in (
        ("sft", preferences, "instruction"),
        ("reward", rows, "preferences"),
        ("kto", rows, "preferences"),
    ):
        with pytest.raises(InputError, match=rf"\b{trainer}\b.*\b{shape}") as caught:
            train(trainer, data, tmp_path / "m", model=str(tiny))
        assert caught.value.path == data


def test_unknown_columns_are_an_error(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"foo": 1}\n')
    with pytest.raises(InputError, match=r"\bfoo\b") as caught:
        train("sft", file, tmp_path / "m", model=str(tiny))
    assert caught.value.path == file


def test_a_missing_dataset_is_an_error(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        train("sft", tmp_path / "none", tmp_path / "m", model=str(tiny))
    assert caught.value.path == tmp_path / "none"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(RunError, match=re.escape(str(empty))):
        train("sft", empty, tmp_path / "m", model=str(tiny))


def test_a_dataset_without_rows_is_an_error(tiny: Path, rows: Path, tmp_path: Path) -> None:
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
    with pytest.raises(InputError) as caught:
        train("sft", folder, tmp_path / "m", model=str(tiny))
    assert caught.value.path == folder
    # The error is about the dataset, not about rows that the options reject.
    assert "max_length" not in str(caught.value)


def test_an_error_counts_the_rejected_rows_if_none_is_left(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"\b40 too_long\b") as caught:
        train("sft", rows, tmp_path / "m", model=str(tiny), max_length=16, held_out_rows=0)
    assert caught.value.path == rows


def test_a_missing_chat_template_is_an_error(rows: Path, tmp_path: Path) -> None:
    bare = make_tiny_model(tmp_path / "bare", template=None)
    with pytest.raises(ConfigError, match=rf"{re.escape(str(bare))}.*\bformat=.*alpaca") as caught:
        train("sft", rows, tmp_path / "m", model=str(bare))
    # No template was rendered: an error of a template is the cause of its ConfigError.
    assert caught.value.__cause__ is None
    out = train("sft", rows, tmp_path / "n", model=str(bare), format="alpaca", steps=1).out
    assert "### Response:" in (out / "chat_template.jinja").read_text()


def test_a_missing_padding_token_is_an_error(rows: Path, tmp_path: Path) -> None:
    bare = make_tiny_model(tmp_path / "bare", pad=False)
    with pytest.raises(ConfigError, match=r"\bpad.token=.*eos"):
        train("sft", rows, tmp_path / "m", model=str(bare))
    with pytest.raises(ConfigError, match=r"\bpad.token=.*<nope>"):
        train("sft", rows, tmp_path / "m", model=str(bare), pad_token="<nope>")
    out = train("sft", rows, tmp_path / "n", model=str(bare), pad_token="eos", steps=1).out
    config = json.loads((out / "generation_config.json").read_text())
    assert config["pad_token_id"] == config["eos_token_id"]


def test_a_length_beyond_the_context_length_is_an_error(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"\bmax_length\b.*\b600\b.*\b512\b"):
        train("sft", rows, tmp_path / "m", model=str(tiny), max_length=600)


def test_too_little_disk_space_is_an_error(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ConfigError, match=rf"{re.escape(str(tmp_path / 'm'))}.*\b0\.0 GB.*GB"):
        train("sft", rows, tmp_path / "m", model=str(tiny))


def test_training_resumes_after_the_disk_was_full(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """A limit on file sizes ends training with one error; rerunning the command completes it."""
    out = tmp_path / "m"
    code = (
        "import resource, sys, instructgen\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try:\n"
        "    instructgen.train('sft', sys.argv[1], sys.argv[2], model=sys.argv[3], steps=4,\n"
        "                      checkpoint_every=2, evaluate=False)\n"
        "except instructgen.errors.StorageError as error:\n"
        "    print('StorageError:', repr(str(error)))\n"
    )
    done = forks.script(code, rows, out, tiny)
    lines = [line for line in done.stdout.splitlines() if line.startswith("StorageError:")]
    assert len(lines) == 1, done.stderr
    assert str(out) in lines[0]
    assert r"\n" not in lines[0]
    facts = train(
        "sft", rows, out, model=str(tiny), steps=4, checkpoint_every=2, evaluate=False
    ).facts
    assert facts.steps == 4


def test_missing_and_damaged_models_are_errors(rows: Path, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\./nowhere"):
        train("sft", rows, tmp_path / "m", model="./nowhere")
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    (broken / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=rf"{re.escape(str(broken))}.*config\.json"):
        train("sft", rows, tmp_path / "m", model=str(broken))
    shutil.copy(tiny / "config.json", broken)
    os.truncate(broken / "model.safetensors", 1000)
    with pytest.raises(ConfigError, match=re.escape(str(broken))):
        train("sft", rows, tmp_path / "n", model=str(broken))


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"learning_rat": 1}, r"learning_rat\b.*learning_rate\b"),
        ({"batch_size": 0}, r"batch.size.*\b0\b"),
        ({"steps": 1, "tokens": 9}, r"tokens.*steps"),
        ({"learning_rate": float("nan")}, r"learning.rate"),
        (
            {"batch_size": 8, "micro_batch_size": 3},
            r"\bbatch_size\b.*\b8\b.*micro_batch_size\b.*\b3\b",
        ),
        ({"peft": "lorra"}, r"\bpeft\b.*lorra"),
        ({"weights": {"sentences": 0.0}, "held_out_rows": 0}, r"\bweights\b.*\bweight_score\b"),
        ({"weights": {"sentence": 2.0}}, r"weights.*'sentence'.*\bsentences\b"),
    ],
)
def test_invalid_options_are_named(
    tiny: Path, rows: Path, tmp_path: Path, options, facts: str
) -> None:
    with pytest.raises(ConfigError, match=facts) as caught:
        train("sft", rows, tmp_path / "m", model=str(tiny), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        (["--set", "watch=1"], r"\bwatch\b"),
        (["--set", "lora_ranc=8"], r"lora_ranc\b.*lora_rank\b"),
        (["--set", "seed=1", "--seed", "2"], r"\bseed\b"),
        (["--processes", "2", "--set", "batch_size=0"], r"batch.size.*\b0\b"),
    ],
)
def test_invalid_settings_on_the_command_line_are_named(
    tiny: Path, rows: Path, tmp_path: Path, flags: list[str], facts: str
) -> None:
    command = ["train", "sft", str(rows), "--model", str(tiny), "--out", str(tmp_path / "m")]
    done = forks.command(*command, *flags)
    assert done.returncode == 2, done.stderr
    assert re.search(facts, done.stderr, re.DOTALL), done.stderr
    assert "Traceback" not in done.stderr


def test_fewer_prompts_than_a_batch_are_an_error(tiny: Path, tmp_path: Path) -> None:
    few = dataset(tmp_path / "few", sentences(5))
    with pytest.raises(ConfigError, match=r"\b8\b.*\b5\b.*batch_size"):
        train(
            "grpo", few, tmp_path / "m", model=str(tiny), reward=["verifiers:ifeval"],
            max_new_tokens=8, max_length=128, held_out_rows=0,
        )  # fmt: skip


def test_invalid_recipes_name_the_table_and_key(tiny: Path, rows: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "train.toml"
    for text, facts, cause in (
        ("[train]\nlorarank = 3\n", r"\blorarank\b.*\blora_rank\b", type(None)),
        ("[trian]\n", r"\btrian\b.*\btrain\b", type(None)),
        ("train = 3\n", r"\btrain\b.*\[train\]", type(None)),
        ("[train\n", r"\bline 1\b", tomllib.TOMLDecodeError),
    ):
        recipe.write_text(text)
        with pytest.raises(ConfigError, match=rf"train\.toml.*{facts}") as caught:
            train("sft", rows, tmp_path / "m", model=str(tiny), recipe=recipe)
        assert isinstance(caught.value.__cause__, cause)


def test_unsuitable_and_missing_rewards_are_errors(tiny: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\bsft\b.*\breward\b"):
        train("sft", rows, tmp_path / "m", model=str(tiny), reward=["verifiers:math"])
    with pytest.raises(ConfigError, match=r"\bgrpo\b.*\breward="):
        train("grpo", rows, tmp_path / "m", model=str(tiny))
    with pytest.raises(ConfigError, match=rf"{re.escape(str(tiny))}.*\btrain reward\b"):
        train("grpo", rows, tmp_path / "m", model=str(tiny), reward=[str(tiny)])
    with pytest.raises(InputError, match=r"\b36 no_reward\b"):
        train("grpo", rows, tmp_path / "n", model=str(tiny), reward=["verifiers:code"])
    with pytest.raises(ConfigError, match=r"reward_weights.*'math'"):
        train(
            "grpo", rows, tmp_path / "n", model=str(tiny), reward=["verifiers:ifeval"],
            reward_weights={"math": 1.0},
        )  # fmt: skip


def test_folders_with_other_contents_are_not_overwritten(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match=r"\bthesis\.txt\b"):
        train("sft", rows, tmp_path / "m", model=str(tiny))
    assert (tmp_path / "m" / "thesis.txt").read_text() == "years of work"
    before = files_in(rows)
    with pytest.raises(RunError, match=re.escape(str(rows))):
        train("sft", rows, rows, model=str(tiny))
    assert files_in(rows) == before


def test_fsdp_on_a_cpu_is_an_error(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_one_error(
        "train", "sft", rows, "--model", tiny, "--out", tmp_path / "m", "--strategy", "fsdp",
        facts=("fsdp", "GPU"),
    )  # fmt: skip
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"\bfsdp\b.*GPU"):
        train("sft", rows, tmp_path / "m", model=str(tiny))


def test_a_loss_that_is_not_finite_stops_the_training(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    facts = r"\b(loss|grad_norm)\b.*\b(nan|inf)\b.*step \d+.*learning.rate"
    with pytest.raises(TrainingError, match=facts):
        train(
            "sft", rows, tmp_path / "m", model=str(tiny), steps=200, learning_rate=1e30,
            max_grad_norm=1e30, warmup=0.0, held_out_rows=0,
        )  # fmt: skip


def test_invalid_evaluations_are_errors(
    tiny: Path, rows: Path, preferences: Path, tmp_path: Path
) -> None:
    none = tmp_path / "none"
    for options, error, facts in (
        ({"suites": ["likelyhood"], "data": rows}, ConfigError, r"likelyhood.*likelihood"),
        ({}, ConfigError, r"\bdata\b.*\bsuites\b"),
        (
            {"suites": ["preference"], "data": rows},
            InputError,
            r"\bpreference\b.*\bpreferences\b.*\bdata\b",
        ),
        ({"suites": ["winrate"], "data": rows}, ConfigError, r"\bagainst="),
        ({"suites": ["winrate"], "data": rows, "against": str(tiny)}, ConfigError, r"\bjudge="),
        ({"data": rows, "settings": {"likelihood.x": 1}}, ConfigError, r"likelihood\.x\b"),
        ({"data": rows, "settings": {"no.x": 1}}, ConfigError, r"\bno\.x\b.*likelihood"),
        ({"data": none}, InputError, re.escape(str(none))),
        ({"data": rows, "max_length": 16}, InputError, r"\blikelihood\b.*\bmax_length\b"),
        ({"data": rows, "limit": 0}, ConfigError, r"\blimit\b.*\b0\b"),
    ):
        with pytest.raises(error, match=facts):
            evaluate(str(tiny), **options)


def test_invalid_ablations_are_errors(
    tiny: Path, rows: Path, preferences: Path, tmp_path: Path
) -> None:
    other = dataset(tmp_path / "other", sentences(10))
    for datasets, error, facts in (
        ([rows], ConfigError, r"\bdatasets\b"),
        ([rows, other], InputError, rf"{re.escape(str(rows))}.*\btest\b"),
        ([preferences, preferences], InputError, rf"{re.escape(str(preferences))}.*instruction"),
    ):
        with pytest.raises(error, match=facts):
            ablate(datasets, tmp_path / "out", tokens=10, model=str(tiny))


def test_invalid_options_of_prefer_are_errors(
    tiny: Path, rows: Path, preferences: Path, tmp_path: Path
) -> None:
    held = re.escape(str(preferences))
    for data, options, error, facts in (
        (rows, {"score": []}, ConfigError, r"\bscore\b"),
        (rows, {"score": ["judge:a/b", "verifiers:math"]}, ConfigError, r"\bscore\b.*\bjudge\b"),
        (rows, {"score": ["verifiers:math"], "samples": 1}, ConfigError, r"\bsamples\b"),
        (preferences, {"score": ["verifiers:math"]}, InputError, rf"{held}.*instruction"),
        (rows, {"score": ["verifiers:math"], "engine": "vlm"}, ConfigError, r"\bvlm\b.*\bvllm\b"),
        (
            rows,
            {"score": ["verifiers:math"], "max_tokens": 0},
            ConfigError,
            r"\bmax_tokens\b.*\b0\b",
        ),
        (rows, {"score": ["verifiers:math"], "limit": -1}, ConfigError, r"\blimit\b.*-1\b"),
    ):
        with pytest.raises(error, match=facts):
            prefer(data, tmp_path / "out", model=str(tiny), **options)


def test_template_syntax_in_names_and_texts_is_not_evaluated(tiny: Path, tmp_path: Path) -> None:
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
    """Return a copy of the tiny model with these values in its config.json."""
    shutil.copytree(tiny, folder)
    file = folder / "config.json"
    file.write_bytes(orjson.dumps({**orjson.loads(file.read_bytes()), **config}))
    return folder


def test_weights_that_do_not_fit_the_model_are_errors(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    """Transformers fills missing weights with random numbers, and at most logs a warning."""
    layers = orjson.loads((tiny / "config.json").read_bytes())["num_hidden_layers"]
    for model, layer in (
        (without(tiny, tmp_path / "missing", "layers.1."), 1),
        (changed(tiny, tmp_path / "more", num_hidden_layers=layers + 2), layers),
        (changed(tiny, tmp_path / "fewer", num_hidden_layers=layers - 1), layers - 1),
    ):
        with pytest.raises(ConfigError, match=rf"model\.layers\.{layer}\."):
            train("sft", rows, tmp_path / "m", model=str(model), max_length=128)
        with pytest.raises(ConfigError, match=rf"model\.layers\.{layer}\."):
            evaluate(str(model), data=rows, max_length=128)
    for model in (
        changed(tiny, tmp_path / "wide", hidden_size=256),
        changed(tiny, tmp_path / "words", hidden_size="x"),
    ):
        with pytest.raises(ConfigError, match=re.escape(str(model))):
            train("sft", rows, tmp_path / "m", model=str(model), max_length=128)


def test_a_reward_model_cannot_generate_text(
    tiny: Path, rows: Path, preferences: Path, tmp_path: Path
) -> None:
    model = tmp_path / "rm"
    facts = rf"{re.escape(str(model))}\b.*reward model"
    train("reward", preferences, model, model=str(tiny), steps=1, max_length=128)
    for trainer, data in (("sft", rows), ("dpo", preferences)):
        with pytest.raises(ConfigError, match=facts):
            train(trainer, data, tmp_path / "m", model=str(model), max_length=128)
    with pytest.raises(ConfigError, match=facts):
        evaluate(str(model), data=rows, max_length=128)
    with pytest.raises(ConfigError, match=facts):
        prefer(rows, tmp_path / "p", model=str(model), score=["verifiers:ifeval"])


def test_a_finished_training_without_its_weights_is_an_error(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m"
    train("sft", rows, out, model=str(tiny), steps=1, max_length=128)
    (out / "model.safetensors").unlink()
    with pytest.raises(RunError, match=rf"{re.escape(str(out))}\b.*weights"):
        train("sft", rows, out, model=str(tiny), steps=1, max_length=128)


def test_unsuitable_held_out_rows(
    tiny: Path, rows: Path, preferences: Path, tmp_path: Path
) -> None:
    common = {"model": str(tiny), "steps": 1, "max_length": 128}
    with pytest.raises(InputError, match=r"\bdpo\b.*preferences") as caught:
        train("dpo", preferences, tmp_path / "m", held_out=rows, **common)
    assert caught.value.path == rows
    with pytest.raises(InputError) as caught:
        train("sft", rows, tmp_path / "m", held_out=tmp_path / "none", **common)
    assert caught.value.path == tmp_path / "none"
    long = dataset(tmp_path / "long", [Sample("Say it. " * 200, output="x", license="MIT")])
    done = train("sft", rows, tmp_path / "m", held_out=long, **common)
    assert (done.facts.rows.held_out, done.facts.rows.held_out_from) == (0, "long")
    assert any(re.search(r"\b0\b", message) for message in done.messages)


@pytest.mark.parametrize(
    ("trainer", "options", "facts"),
    [
        ("sft", {"steps": 10**12}, r"\bsteps\b"),
        ("sft", {"tokens": 10**18}, r"\btokens\b"),
        ("sft", {"peft": "lora", "lora_rank": 10**9}, r"lora.rank"),
        ("grpo", {"temperature": 1e-300}, r"\btemperature\b"),
        ("ppo", {"peft": "adapter"}, r"\bpeft\b.*\badapter\b.*\blora\b"),
        ("sft", {"model": ""}, r"\bmodel="),
    ],
)
def test_values_out_of_range_are_named(
    trainer: str, options: dict[str, object], facts: str, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    reward = ["verifiers:ifeval"] if trainer in ("grpo", "ppo") else []
    with pytest.raises(ConfigError, match=facts):
        train(trainer, rows, tmp_path / "m", reward=reward, **{"model": str(tiny), **options})


def test_numbers_that_are_not_finite_are_named(tiny: Path, rows: Path, tmp_path: Path) -> None:
    for options in ({"margin": float("nan")}, {"temperature": float("nan")}, {"min_score": -1e999}):
        (name,) = options
        with pytest.raises(ConfigError, match=rf"\b{name}\b"):
            prefer(rows, tmp_path / "p", model=str(tiny), score=["verifiers:ifeval"], **options)
    with pytest.raises(ConfigError, match=r"\brows\b"):
        ablate([rows, rows], tokens=50, rows=0, model=str(tiny), out=tmp_path / "a")


def test_chat_templates_that_fail_are_errors(tiny: Path, rows: Path, tmp_path: Path) -> None:
    for number, text in enumerate(("{{ raise_exception('no') }}", "{% for", "{{ a.b.c }}")):
        model = tmp_path / f"m{number}"
        shutil.copytree(tiny, model)
        (model / "chat_template.jinja").write_text(text)
        with pytest.raises(ConfigError, match=re.escape(str(model))) as caught:
            train("sft", rows, tmp_path / "out", model=str(model), max_length=128)
        assert isinstance(caught.value.__cause__, TemplateError)


def test_damaged_tokenizers_are_errors(tiny: Path, rows: Path, tmp_path: Path) -> None:
    for name, text in (("tokenizer.json", "{}"), ("tokenizer_config.json", "[]")):
        model = tmp_path / name
        shutil.copytree(tiny, model)
        (model / name).write_text(text)
        with pytest.raises(ConfigError, match=rf"{re.escape(str(model))}.*tokenizer"):
            train("sft", rows, tmp_path / "out", model=str(model), max_length=128)


def test_damaged_lines_of_a_log_are_skipped(tmp_path: Path) -> None:
    from instructgen.store import read_log

    lines = [b"garbage", b"[]", b"\xff\xfe", b'{"step":"x"}', b'{"step":1,"loss":2.0}', b'{"st']
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines))
    assert read_log(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_chat_reads_from_a_pipe(tiny: Path) -> None:
    command = ["chat", str(tiny), "--max-tokens", "3"]
    for text, flags, code in (
        (b"\xff\xfe bad\n", ["--json"], 0),
        (b"hi\n", ["--max-tokens", "0"], 2),
        (b"hi\n", ["--temperature", "nan"], 2),
    ):
        done = forks.command(*command, *flags, given=text)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        if flags == ["--json"]:
            assert orjson.loads(done.stdout)["role"] == "assistant"
    done = forks.command(*command)
    assert done.returncode == 0 and "Traceback" not in done.stderr
