"""Tests of untrusted model folders: their code never runs, and incomplete weights are rejected."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from instructgen import curate, evaluate, train
from instructgen.cli import cli
from instructgen.errors import ConfigError, RunError
from instructgen.models.folders import model_digest
from instructgen.models.loading import load_for_inference, load_model, read_tokenizer
from tests.conftest import ROOT
from tests.training_data import dataset, pairs, sentences

SEEDS = ROOT / "seeds" / "general.jsonl"
CODE = """
import pathlib
pathlib.Path({marker!r}).write_text("this ran")
from transformers import LlamaConfig as OwnConfig
from transformers import LlamaForCausalLM as OwnModel
from transformers import LlamaForSequenceClassification as OwnReward
from transformers import PreTrainedTokenizerFast as OwnTokenizer
"""
AUTO_MAP = {
    "AutoConfig": "own_code.OwnConfig",
    "AutoModelForCausalLM": "own_code.OwnModel",
    "AutoModelForSequenceClassification": "own_code.OwnReward",
}


def edit(path: Path, **values: Any) -> None:
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), **values}))


def with_code(tiny: Path, folder: Path, part: str) -> tuple[Path, Path]:
    """Copy the tiny model and add code for one part; return the folder and the code's marker file."""
    shutil.copytree(tiny, folder)
    marker = folder / "ran"
    (folder / "own_code.py").write_text(CODE.format(marker=str(marker)))
    if part == "model":
        edit(folder / "config.json", auto_map=AUTO_MAP, model_type="of_its_own")
    elif part == "reward":
        edit(
            folder / "config.json",
            auto_map=AUTO_MAP,
            model_type="of_its_own",
            architectures=["OwnForSequenceClassification"],
        )
    else:
        edit(
            folder / "tokenizer_config.json",
            auto_map={"AutoTokenizer": [None, "own_code.OwnTokenizer"]},
            tokenizer_class="OwnTokenizer",
        )
    return folder, marker


def without(model: Path, folder: Path, part: str) -> Path:
    """Copy a model without the weights whose names contain ``part``."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    kept = {k: v.clone() for k, v in weights.items() if part not in k}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("rows"), sentences(12))


@pytest.fixture(scope="module")
def reward_model(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    data = dataset(folder / "pairs", pairs(12))
    options: dict[str, Any] = {"steps": 1, "held_out_rows": 0, "max_length": 96}
    return train("reward", data, folder / "rm", model=str(tiny), **options).out


def recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


COMMANDS: dict[str, Callable[[Path, Path, Path], list[object]]] = {
    "chat": lambda model, rows, at: ["chat", model],
    "train": lambda model, rows, at: ["train", "sft", rows, "--model", model, "--out", at / "m"],
    "evaluate": lambda model, rows, at: ["evaluate", model, "--data", rows],
    "generate": lambda model, rows, at: [
        *("generate", "--seeds", SEEDS, "--target", 2, "--model", model, "--out", at / "run"),
        *("--engine", "transformers"),
    ],
    "generate on vllm": lambda model, rows, at: [
        *("generate", "--seeds", SEEDS, "--target", 2, "--model", model, "--out", at / "run"),
        *("--engine", "vllm"),
    ],
    "curate by perplexity": lambda model, rows, at: [
        *("curate", rows, "--out", at / "c", "--recipe"),
        recipe(at, f'[[filters]]\nname = "perplexity"\nmax = 9\nmodel = "{model}"\n'),
    ],
    "curate by size": lambda model, rows, at: [
        *("curate", rows, "--out", at / "c", "--recipe"),
        recipe(at, f'[[filters]]\nname = "size"\nmax = 9\ntokenizer = "{model}"\n'),
    ],
}


# vLLM loads the model itself; tests/test_real_engines.py covers it.
CASES = [(c, p) for c in COMMANDS for p in ("model", "tokenizer")]
CASES.remove(("generate on vllm", "model"))


@pytest.mark.parametrize(("command", "part"), CASES)
def test_code_of_a_model_folder_never_runs(
    tiny: Path, rows: Path, tmp_path: Path, command: str, part: str
) -> None:
    """By default transformers asks on standard input whether to run the code; here it gets "y"."""
    if command == "generate on vllm":
        pytest.importorskip("vllm")
    model, marker = with_code(tiny, tmp_path / "model", part)
    argv = [str(word) for word in COMMANDS[command](model, rows, tmp_path)]
    done = CliRunner().invoke(cli, argv, input="y\ny\ny\n")
    assert not marker.exists()
    # A tokenizer with code may be loaded as a standard one; then the command continues.
    if part == "model" and command != "curate by size":
        assert isinstance(done.exception, ConfigError), done.output
        assert str(model) in str(done.exception)
        assert "trust_remote_code" not in str(done.exception)


def test_code_of_a_reward_model_never_runs(tiny: Path, rows: Path, tmp_path: Path) -> None:
    model, marker = with_code(tiny, tmp_path / "model", "reward")
    filters = recipe(tmp_path, f'[[filters]]\nname = "reward"\nmin = 0\nmodel = "{model}"\n')
    with pytest.raises(ConfigError):
        curate(rows, tmp_path / "c", recipe=filters)
    assert not marker.exists()


def test_code_of_an_embedding_model_never_runs(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    from instructgen.similarity.encoders import SentenceEncoder

    model, marker = with_code(tiny, tmp_path / "model", "model")
    with pytest.raises(ConfigError):
        SentenceEncoder(str(model))
    assert not marker.exists()


@pytest.mark.parametrize("name", ["ifd", "perplexity"])
def test_filters_reject_models_with_missing_layers(
    tiny: Path, rows: Path, tmp_path: Path, name: str
) -> None:
    model = without(tiny, tmp_path / "model", "layers.1.")
    filters = recipe(tmp_path, f'[[filters]]\nname = "{name}"\nmax = 9\nmodel = "{model}"\n')
    with pytest.raises(ConfigError) as caught:
        curate(rows, tmp_path / "c", recipe=filters)
    assert "layers.1." in str(caught.value)
    assert not (tmp_path / "c" / "manifest.json").exists()


@pytest.mark.parametrize("part", ["layers.1.", "score."])
def test_reward_filter_rejects_models_with_missing_weights(
    reward_model: Path, rows: Path, tmp_path: Path, part: str
) -> None:
    """Missing layers or a missing head would be filled with random numbers."""
    model = without(reward_model, tmp_path / "model", part)
    filters = recipe(tmp_path, f'[[filters]]\nname = "reward"\nmin = 0\nmodel = "{model}"\n')
    with pytest.raises(ConfigError) as caught:
        curate(rows, tmp_path / "c", recipe=filters)
    assert part in str(caught.value)


def test_a_complete_reward_model_scores_rows(
    reward_model: Path, rows: Path, tmp_path: Path
) -> None:
    filters = recipe(
        tmp_path, f'[[filters]]\nname = "reward"\nmin = -99\nmodel = "{reward_model}"\n'
    )
    assert curate(rows, tmp_path / "c", recipe=filters).rows == 12


def test_inference_rejects_models_with_missing_layers(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        load_for_inference(str(without(tiny, tmp_path / "model", "layers.1.")))


def test_an_adapter_with_missing_weights_is_rejected(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m"
    options: dict[str, Any] = {"steps": 1, "held_out_rows": 0, "max_length": 96}
    train("sft", rows, out, model=str(tiny), peft="lora", **options)
    adapter, damaged = out / "adapter", tmp_path / "damaged"
    load_model(str(adapter))
    shutil.copytree(adapter, damaged)
    from safetensors.torch import load_file, save_file

    weights = load_file(damaged / "adapter_model.safetensors")
    kept = {k: v.clone() for k, v in weights.items() if "layers.1." not in k}
    save_file(kept, damaged / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError) as caught:
        load_model(str(damaged))
    assert "layers.1." in str(caught.value)


def test_an_adapter_does_not_hide_a_missing_head_of_its_base(
    reward_model: Path, rows: Path, tmp_path: Path
) -> None:
    """A base model without a head is rejected with an adapter as it is without one."""
    from peft import LoraConfig, get_peft_model

    base, adapter = without(reward_model, tmp_path / "base", "score."), tmp_path / "adapter"
    model = load_model(str(reward_model), "reward")
    get_peft_model(model, LoraConfig(target_modules="all-linear")).save_pretrained(adapter)
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(base))
    with pytest.raises(ConfigError) as caught:
        load_model(str(adapter), "reward")
    assert "score." in str(caught.value)
    # An adapter that contains layers other than the head does not change that.
    edit(adapter / "adapter_config.json", modules_to_save=["embed_tokens"])
    with pytest.raises(ConfigError):
        load_model(str(adapter), "reward")
    edit(
        adapter / "adapter_config.json",
        base_model_name_or_path=str(reward_model),
        modules_to_save=None,
    )
    load_model(str(adapter), "reward")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfigError):
        load_model(str(adapter), "reward")


@pytest.mark.parametrize("text", [None, b"[]", b"{", b'{"base_model_name_or_path": 3}'])
def test_an_adapter_without_a_valid_base_is_rejected(tmp_path: Path, text: bytes | None) -> None:
    """Two adapters name each other as base, or the configuration is damaged."""
    for name, base in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        config = text or orjson.dumps({"base_model_name_or_path": str(tmp_path / base)})
        (tmp_path / name / "adapter_config.json").write_bytes(config)
    with pytest.raises(ConfigError):
        load_model(str(tmp_path / "a"))
    with pytest.raises(ConfigError):
        model_digest(str(tmp_path / "a"))


def test_a_head_of_several_layers_can_be_loaded_but_not_trained(tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = RobertaConfig(vocab_size=64, num_attention_heads=2, num_labels=1, **shape)
    RobertaForSequenceClassification(config).save_pretrained(tmp_path / "m")
    load_model(str(tmp_path / "m"), "reward")
    with pytest.raises(ConfigError):
        load_model(str(tmp_path / "m"), "reward", new_head=True)


def test_the_logit_head_of_gpt_neox_may_be_replaced_by_a_new_head(tmp_path: Path) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = GPTNeoXConfig(vocab_size=64, num_attention_heads=2, **shape)
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "m")
    load_model(str(tmp_path / "m"), "reward", new_head=True)
    with pytest.raises(ConfigError):
        load_model(str(tmp_path / "m"), "reward")


def test_curate_rejects_an_output_made_with_another_reward_model(
    reward_model: Path, rows: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(reward_model, tmp_path / "rm")
    filters = recipe(tmp_path, f'[[filters]]\nname = "reward"\nmin = -99\nmodel = "{model}"\n')
    curate(rows, tmp_path / "c", recipe=filters)
    assert curate(rows, tmp_path / "c", recipe=filters).unchanged
    edit(model / "config.json", rope_theta=5.0)
    with pytest.raises(RunError) as caught:
        curate(rows, tmp_path / "c", recipe=filters)
    assert "models.reward" in str(caught.value)


def test_embedding_models_with_missing_layers_are_rejected(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    from instructgen.similarity.encoders import _folder, encoder

    assert encoder("minilm").width == 384
    damaged = shutil.copytree(_folder("minilm"), tmp_path / "m")
    (weights,) = damaged.rglob("model.safetensors")
    from safetensors.torch import load_file, save_file

    kept = {k: v.clone() for k, v in load_file(weights).items() if "layer.1." not in k}
    weights.unlink()
    save_file(kept, weights, {"format": "pt"})
    with pytest.raises(ConfigError) as caught:
        encoder(str(damaged))
    assert "layer.1." in str(caught.value)


def test_modules_of_an_embedding_model_never_run(tmp_path: Path) -> None:
    """sentence-transformers instantiates the classes that modules.json of a model names."""
    pytest.importorskip("sentence_transformers")
    from instructgen.similarity.encoders import SentenceEncoder, _folder

    model = shutil.copytree(_folder("minilm"), tmp_path / "m")
    marker = tmp_path / "ran"
    (model / "own_code.py").write_text(CODE.format(marker=str(marker)) + "T = OwnModel\n")
    modules = orjson.loads((model / "modules.json").read_bytes())
    modules[-1]["type"] = "own_code.T"
    (model / "modules.json").write_bytes(orjson.dumps(modules))
    with pytest.raises(ConfigError):
        SentenceEncoder(str(model))
    assert not marker.exists()


def test_lm_eval_tasks_are_never_read_from_files(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-eval would read a task name that is a path as a file, and run functions that it names."""
    pytest.importorskip("lm_eval")
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(CODE.format(marker=str(marker)) + "text = str\n")
    (tmp_path / "arc_eas*").write_text(
        "task: evil\ndataset_path: json\ndoc_to_text: !function evil.text\n"
    )
    (tmp_path / "mine.yaml").write_text("task: evil\ndoc_to_text: !function evil.text\n")
    monkeypatch.chdir(tmp_path)
    for task in ("arc_eas*", "mine.yaml"):
        with pytest.raises(Exception) as caught:
            evaluate(str(tiny), suites=["lm-eval"], settings={"lm-eval.tasks": [task]}, limit=1)
        assert isinstance(caught.value, ConfigError) or task == "arc_eas*"
    assert not marker.exists()


def test_evaluate_rejects_an_incomplete_model(tiny: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        evaluate(str(without(tiny, tmp_path / "model", "layers.1.")), data=rows, max_length=96)


def _grows(values: dict[str, Any]) -> None:
    replace = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 16}
    values["normalizer"] = {"type": "Sequence", "normalizers": [replace] * 12}


def _has_no_token_for_unknown_words(values: dict[str, Any]) -> None:
    values["added_tokens"] = []
    values["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}


def _ends_the_process(values: dict[str, Any]) -> None:
    values["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA////"}


@pytest.mark.parametrize("change", [_grows, _has_no_token_for_unknown_words, _ends_the_process])
def test_a_tokenizer_that_cannot_be_used_is_refused(
    tiny: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    values = orjson.loads((model / "tokenizer.json").read_bytes())
    change(values)
    (model / "tokenizer.json").write_bytes(orjson.dumps(values))
    with pytest.raises(ConfigError, match="cannot split a short text"):
        read_tokenizer(str(model))
