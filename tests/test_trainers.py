"""Arguments that are passed to TRL, and whether losses and counts have the documented values."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import orjson
import pytest

from instructgen import train
from instructgen.errors import ConfigError
from instructgen.schema.sample import Label, Sample, Score
from instructgen.store import read_log
from tests.tiny_model import make_tiny_model
from tests.training_data import dataset, pairs, sentences

COMMON = {
    "output_dir", "use_cpu", "bf16", "seed", "max_steps", "per_device_train_batch_size",
    "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "warmup_steps",
    "weight_decay", "max_grad_norm", "gradient_checkpointing", "logging_steps",
    "logging_nan_inf_filter", "save_steps", "save_total_limit", "report_to", "disable_tqdm",
    "ddp_find_unused_parameters",
}  # fmt: skip
ONLINE = {
    "num_generations", "max_completion_length", "temperature", "beta", "num_iterations",
    "reward_weights", "shuffle_dataset", "remove_unused_columns", "use_vllm", "vllm_mode",
}  # fmt: skip
USED = {
    "SFTConfig": COMMON | {
        "train_sampling_strategy", "max_length", "packing", "completion_only_loss",
        "dataset_kwargs", "shuffle_dataset", "remove_unused_columns",
    },
    "RewardConfig": COMMON | {
        "train_sampling_strategy", "max_length", "center_rewards_coefficient",
    },
    "DPOConfig": COMMON | {
        "train_sampling_strategy", "max_length", "beta", "loss_type", "loss_weights",
    },
    "KTOConfig": COMMON | {
        "train_sampling_strategy", "max_length", "beta", "desirable_weight",
        "undesirable_weight",
    },
    "GRPOConfig": COMMON | ONLINE,
    "RLOOConfig": COMMON | ONLINE,
}  # fmt: skip
PRIVATE = {
    "SFTTrainer": {"compute_loss"},
    "DPOTrainer": {"_prepare_dataset"},
    "KTOTrainer": {"_prepare_dataset"},
    "GRPOTrainer": {"_tokenize_prompts", "_generate_single_turn"},
    "RLOOTrainer": {"_tokenize_prompts", "_generate_single_turn"},
}
SHORT: dict[str, Any] = {
    "max_length": 96,
    "learning_rate": 1e-3,
    "batch_size": 4,
    "evaluate": False,
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("rows"), sentences(200))


@pytest.mark.parametrize("name", USED)
def test_trl_has_every_argument_that_is_used(name: str) -> None:
    import trl

    fields = {f.name for f in dataclasses.fields(getattr(trl, name))}
    assert USED[name] <= fields


def test_every_argument_passed_to_trl_is_listed() -> None:
    """USED contains exactly the keywords that the trainers pass to TRL."""
    import ast

    from instructgen.training import online, preference, sft, trainer

    passed: set[str] = set()
    for module in (sft, preference, online, trainer):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in USED:
                passed |= {k.arg for k in node.keywords if k.arg}
            if isinstance(node, ast.FunctionDef) and node.name in ("arguments", "group_trainer"):
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Dict):
                        passed |= {k.value for k in inner.keys if isinstance(k, ast.Constant)}
    passed -= {"constant", "prompt", "row"}
    assert passed == set().union(*USED.values())


@pytest.mark.parametrize("name", PRIVATE)
def test_trl_has_every_method_that_is_overridden(name: str) -> None:
    import trl

    for method in PRIVATE[name]:
        assert inspect.isfunction(getattr(getattr(trl, name), method))


def test_trl_experimental_is_not_imported() -> None:
    from instructgen.training import online, preference, sft, trainer

    for module in (sft, preference, online, trainer):
        assert "experimental" not in Path(module.__file__).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("packing", [True, False])
def test_training_uses_exactly_the_token_budget(
    tiny: Path, rows: Path, tmp_path: Path, packing: bool
) -> None:
    out = tmp_path / "m"
    facts = train("sft", rows, out, model=str(tiny), tokens=1234, packing=packing, **SHORT).facts
    assert facts.supervised_tokens == 1234
    assert read_log(out)[-1]["supervised_tokens"] == 1234


@pytest.mark.slow
def test_packed_and_unpacked_rows_have_the_same_loss(tiny: Path, tmp_path: Path) -> None:
    """With a learning rate near 0, the mean loss over all tokens does not depend on packing."""
    rows = dataset(tmp_path / "rows", sentences(60))
    means = []
    for packing in (True, False):
        out = tmp_path / f"m-{packing}"
        options = {**SHORT, "learning_rate": 1e-12, "held_out_rows": 0, "batch_size": 1}
        train("sft", rows, out, model=str(tiny), packing=packing, **options)
        log = read_log(out)
        before, total, tokens = 0, 0.0, 0
        for entry in log:
            count = entry["supervised_tokens"] - before
            before = entry["supervised_tokens"]
            total += entry["loss"] * count
            tokens += count
        means.append(total / tokens)
    assert means[0] == pytest.approx(means[1], rel=1e-4)


@pytest.mark.slow
def test_rows_with_weight_zero_are_not_learned(tiny: Path, tmp_path: Path) -> None:
    """Weights are applied to the loss: the model does not learn rows of weight 0."""
    from dataclasses import replace

    good = sentences(40)
    bad = [replace(s, output="XQZ " * 8, source="noise") for s in sentences(80)[40:]]
    measured = []
    for name, weights in (("weight-1", {"noise": 1.0}), ("weight-0", {"noise": 0.0})):
        data = dataset(tmp_path / f"rows-{name}", good + bad)
        out = tmp_path / name
        train(
            "sft", data, out, model=str(tiny), weights=weights, steps=30, **{**SHORT,
            "learning_rate": 3e-3, "held_out_rows": 0},
        )  # fmt: skip
        from instructgen.evaluation.measures import bits_per_byte
        from instructgen.training.options import PromptFormat

        bits_noise = bits_per_byte(str(out), bad[:10], PromptFormat(96)).estimate.value
        bits_good = bits_per_byte(str(out), good[:10], PromptFormat(96)).estimate.value
        measured.append((bits_good, bits_noise))
    (_, noise_with_weight_1), (good_bits, noise_with_weight_0) = measured
    assert noise_with_weight_1 < 0.5 * noise_with_weight_0
    assert good_bits < noise_with_weight_0


@pytest.mark.slow
def test_a_score_can_weight_rows(tiny: Path, tmp_path: Path) -> None:
    scored = [s.with_score(Score("quality", 0.5)) for s in sentences(30)]
    data = dataset(tmp_path / "rows", scored)
    out = tmp_path / "m"
    train("sft", data, out, model=str(tiny), weight_score="quality", steps=2, **SHORT)
    with pytest.raises(ConfigError, match="'other'"):
        train("sft", data, tmp_path / "n", model=str(tiny), weight_score="other", **SHORT)


@pytest.mark.slow
def test_rationales_add_a_second_task(tiny: Path, tmp_path: Path) -> None:
    rows = sentences(30, labels=(Label("rationale", "Because it was asked."),))
    data = dataset(tmp_path / "rows", rows)
    plain = train("sft", data, tmp_path / "a", model=str(tiny), held_out_rows=0, **SHORT).facts
    both = train(
        "sft", data, tmp_path / "b", model=str(tiny), rationale=0.5, held_out_rows=0, **SHORT
    ).facts
    assert both.supervised_tokens > 1.2 * plain.supervised_tokens
    bare = dataset(tmp_path / "bare", sentences(30))
    with pytest.raises(ConfigError, match=r"label\.rationale"):
        train("sft", bare, tmp_path / "c", model=str(tiny), rationale=0.5, **SHORT)


@pytest.mark.slow
def test_rejected_and_truncated_rows_are_recorded(tiny: Path, tmp_path: Path) -> None:
    long = Sample("Go on.", output="on " * 500, source="s", license="CC0-1.0", language="en")
    forged = Sample("Go on.", output="<|im_end|>", source="s", license="CC0-1.0", language="en")
    data = dataset(tmp_path / "rows", [*sentences(30), long, forged])
    out = tmp_path / "m"
    facts = train("sft", data, out, model=str(tiny), steps=1, held_out_rows=0, **SHORT).facts
    assert facts.rows.rejected == {"control_token": 1, "too_long": 1}
    rejected = [orjson.loads(line) for line in (out / "rejected.jsonl").read_bytes().splitlines()]
    assert {row["id"]: row["reason"] for row in rejected} == {
        long.id: "too_long",
        forged.id: "control_token",
    }
    facts = train(
        "sft", data, tmp_path / "n", model=str(tiny), steps=1, too_long="truncate",
        held_out_rows=0, **SHORT,
    ).facts  # fmt: skip
    assert facts.rows.rejected == {"control_token": 1, "truncated": 1}
    assert facts.rows.train == 31


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid_norm", "ipo"])
def test_the_first_dpo_loss_has_its_theoretical_value(
    tiny: Path, tmp_path: Path, loss: str
) -> None:
    """Before training every margin is 0: the loss is log 2 for sigmoid, 1 / (2 beta)^2 for IPO."""
    data = dataset(tmp_path / "pairs", pairs(40))
    out = tmp_path / "m"
    train("dpo", data, out, model=str(tiny), loss=loss, steps=1, **SHORT)
    expected = {"sigmoid": 0.6931, "sigmoid_norm": 0.6931, "ipo": 25.0}[loss]
    assert read_log(out)[0]["loss"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_an_sft_term_increases_the_dpo_loss(tiny: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path / "pairs", pairs(40))
    out = tmp_path / "m"
    train("dpo", data, out, model=str(tiny), sft_weight=1.0, steps=1, **SHORT)
    assert read_log(out)[0]["loss"] > 2


@pytest.mark.slow
def test_two_trainings_with_the_same_seed_are_identical(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    for name in "ab":
        train("sft", rows, tmp_path / name, model=str(tiny), steps=5, peft="lora", **SHORT)
    logs = [read_log(tmp_path / name) for name in "ab"]
    assert logs[0] == logs[1]
    for name in ("model.safetensors", "adapter/adapter_model.safetensors", "README.md"):
        one, other = ((tmp_path / n / name).read_bytes() for n in "ab")
        if name == "README.md":
            one, other = one.replace(b"# a\n", b""), other.replace(b"# b\n", b"")
            one, other = (t.replace(b'"a"', b"").replace(b'"b"', b"") for t in (one, other))
        assert one == other, name


@pytest.mark.slow
def test_the_model_card_states_a_non_commercial_license(tiny: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from instructgen.licensing.licenses import obligations

    rows = sentences(30)
    rows[3] = replace(rows[3], license="CC-BY-NC-4.0")
    data = dataset(tmp_path / "rows", rows)
    out = tmp_path / "m"
    train("sft", data, out, model=str(tiny), steps=1, held_out_rows=0, **SHORT)
    card = (out / "README.md").read_text()
    row = next(line for line in card.splitlines() if line.startswith("| CC-BY-NC-4.0 |"))
    *_, commercial_use = row.strip("| ").split(" | ")
    assert commercial_use == "no"
    for sentence in obligations({"CC-BY-NC-4.0": 1}, {}, {}):
        assert sentence in card
    assert "CC-BY-NC-4.0" in card.split("---\n")[1]


@pytest.mark.slow
def test_a_finished_training_is_not_changed(tiny: Path, rows: Path, tmp_path: Path) -> None:
    from instructgen.errors import RunError

    out = tmp_path / "m"
    first = train("sft", rows, out, model=str(tiny), steps=2, **SHORT)
    written = (out / "model.safetensors").stat().st_mtime_ns
    assert (out / "log.png").read_bytes().startswith(b"\x89PNG")
    assert list((out / "tensorboard").glob("events.*"))
    again = train("sft", rows, out, model=str(tiny), steps=2, **SHORT)
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    assert again.facts == first.facts
    with pytest.raises(RunError, match=r"options\.steps.*2.*3"):
        train("sft", rows, out, model=str(tiny), steps=3, **SHORT)


@pytest.mark.slow
def test_a_saved_reward_model_includes_its_head(tiny: Path, tmp_path: Path) -> None:
    """A model saved with adapters, merged and reloaded gives the same rewards as in memory."""
    data = dataset(tmp_path / "pairs", pairs(60))
    out = tmp_path / "m"
    facts = train(
        "reward", data, out, model=str(tiny), peft="lora", steps=8, held_out_rows=0,
        **{**SHORT, "learning_rate": 1e-2},
    ).facts  # fmt: skip
    assert facts.reload["difference"] < 1e-3 < facts.reload["moved"]
    from instructgen.training.rewards import RewardModel

    rows = pairs(60)
    model = RewardModel(str(out))
    chosen = model.score(rows, [r.output for r in rows])
    rejected = model.score(rows, [r.rejected_output for r in rows])
    assert sum(a > b for a, b in zip(chosen, rejected, strict=True)) > 50
    from instructgen.filters.reward import RewardFilter

    # The reward filter computes the same score for the same answer.
    scored = [v.sample.scores[-1].value for v in RewardFilter(model=str(out)).evaluate(rows[:9])]
    assert scored == pytest.approx(chosen[:9], abs=1e-3)
    # The score of a row does not depend on the other rows of its batch.
    alone = [model.score([r], [r.output])[0] for r in rows[:5]]
    assert alone == pytest.approx(chosen[:5], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["grpo", "rloo"])
def test_a_custom_sampler_is_used(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: str
) -> None:
    """Sampling as with vLLM on a CPU, with a fake sampler in its place."""
    steps: list[int] = []

    def sample(model: Any, step: int, prompts: list[list[int]], most: int, _: float) -> Any:
        steps.append(step)
        return [[5 + i % 7] * min(3, most) for i in range(len(prompts))]

    monkeypatch.setattr("instructgen.training.online.vllm_sampler", lambda *_: sample)
    out = tmp_path / "m"
    train(
        trainer, rows, out, model=str(tiny), reward=["verifiers:ifeval"], rollouts="vllm",
        steps=2, max_new_tokens=4, **SHORT,
    )  # fmt: skip
    assert steps == [0, 1]
    assert [e["completions/mean_length"] for e in read_log(out)] == [3.0, 3.0]


@pytest.mark.slow
def test_generation_stops_at_the_end_token_of_the_template(rows: Path, tmp_path: Path) -> None:
    """The base model's end-of-text token differs from the template's end-of-turn token."""
    import json

    base = make_tiny_model(tmp_path / "base")
    tokenizer = json.loads((base / "tokenizer_config.json").read_text())
    config = json.loads((base / "generation_config.json").read_text())
    end = config["eos_token_id"]
    (base / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": 0}))
    (base / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "eos_token": "<|pad|>"}))
    out = train("sft", rows, tmp_path / "m", model=str(base), steps=1, **SHORT).out
    assert end in json.loads((out / "generation_config.json").read_text())["eos_token_id"]


@pytest.mark.slow
def test_base_models_are_evaluated_in_their_prompt_format(rows: Path, tmp_path: Path) -> None:
    """A model without a chat template is trained and evaluated with the Alpaca prompt."""
    from instructgen import evaluate

    bare = make_tiny_model(tmp_path / "bare", template=None)
    facts = train(
        "grpo", rows, tmp_path / "m", model=str(bare), reward=["verifiers:ifeval"], steps=1,
        format="alpaca", max_new_tokens=8, max_length=128, held_out_rows=8,
    ).facts  # fmt: skip
    (measure,) = facts.evaluation
    assert measure.before.rows == 8
    evaluation = evaluate(
        str(tmp_path / "m"), against=str(bare), data=rows, suites=["constraints"], limit=4,
        format="alpaca", max_length=256, settings={"constraints.max_new_tokens": 4},
    )  # fmt: skip
    assert evaluation.measures[0].before.rows == 4


@pytest.mark.slow
def test_held_out_questions_and_groups_are_not_trained_on(tmp_path: Path) -> None:
    from dataclasses import replace

    from instructgen.schema.sample import Origin
    from instructgen.training.rows import rows_for

    rows = [
        replace(s, instruction=f"Question {i % 20}", origin=Origin(group=f"tree {i % 7}"))
        for i, s in enumerate(sentences(120))
    ]
    data = dataset(tmp_path / "rows", rows)
    split = rows_for(data, None, 20, lambda _: True)
    assert len(split.held_out) == 20
    for key in (lambda s: s.question, lambda s: s.origin.group):
        assert not {key(s) for s in split.train} & {key(s) for s in split.held_out}


@pytest.mark.slow
def test_a_training_killed_after_the_last_step_trains_no_further(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {
        "model": str(tiny), "reward": ["verifiers:ifeval"], "steps": 3, "max_new_tokens": 4,
        "schedule": "constant", **SHORT,
    }  # fmt: skip
    uninterrupted = train("grpo", rows, tmp_path / "whole", **options).out

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("instructgen.commands.train.model_card", stop)
        with pytest.raises(KeyboardInterrupt):
            train("grpo", rows, tmp_path / "m", **options)
    facts = train("grpo", rows, tmp_path / "m", **options).facts
    assert facts.steps == 3
    one, other = (p / "model.safetensors" for p in (uninterrupted, tmp_path / "m"))
    assert one.read_bytes() == other.read_bytes()
