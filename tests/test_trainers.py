"""What reaches TRL, and that its numbers are what we say they are."""

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
SHORT: dict[str, Any] = {"max_length": 96, "learning_rate": 1e-3, "evaluate": False}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("rows"), sentences(200))


@pytest.mark.parametrize("name", USED)
def test_trl_still_has_every_argument_that_is_used(name: str) -> None:
    import trl

    fields = {f.name for f in dataclasses.fields(getattr(trl, name))}
    assert USED[name] <= fields


def test_the_list_of_arguments_is_whole() -> None:
    """Every keyword that the trainers give to TRL stands in USED."""
    import ast

    from instructgen.training import online, preference, sft, trainer

    given: set[str] = set()
    for module in (sft, preference, online, trainer):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in USED:
                given |= {k.arg for k in node.keywords if k.arg}
            if isinstance(node, ast.FunctionDef) and node.name in ("arguments", "group_trainer"):
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Dict):
                        given |= {k.value for k in inner.keys if isinstance(k, ast.Constant)}
    given -= {"constant", "prompt", "row"}
    assert given == set().union(*USED.values())


@pytest.mark.parametrize("name", PRIVATE)
def test_trl_still_has_every_method_that_is_overridden(name: str) -> None:
    import trl

    for method in PRIVATE[name]:
        assert inspect.isfunction(getattr(getattr(trl, name), method))


def test_nothing_experimental_is_imported() -> None:
    from instructgen.training import online, preference, sft, trainer

    for module in (sft, preference, online, trainer):
        assert "experimental" not in Path(module.__file__).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("packing", [True, False])
def test_a_token_budget_is_trained_exactly(
    tiny: Path, rows: Path, tmp_path: Path, packing: bool
) -> None:
    out = tmp_path / "m"
    facts = train("sft", rows, out, model=str(tiny), tokens=1234, packing=packing, **SHORT).facts
    assert facts["supervised_tokens"] == 1234
    assert read_log(out)[-1]["supervised_tokens"] == 1234


@pytest.mark.slow
def test_packed_and_unpacked_rows_have_the_same_loss(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    """With nothing learned, the mean loss over all tokens depends on no packing."""
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
def test_rows_of_weight_zero_teach_nothing(tiny: Path, tmp_path: Path) -> None:
    """Weights reach the loss: rows that count for nothing change nothing."""
    from dataclasses import replace

    good = sentences(40)
    bad = [replace(s, output="XQZ " * 8, source="noise") for s in sentences(80)[40:]]
    measured = []
    for name, weights in (("kept", {"noise": 1.0}), ("dropped", {"noise": 0.0})):
        data = dataset(tmp_path / f"rows-{name}", good + bad)
        out = tmp_path / name
        train(
            "sft", data, out, model=str(tiny), weights=weights, steps=30, **{**SHORT,
            "learning_rate": 3e-3, "held_out_rows": 0},
        )  # fmt: skip
        from instructgen.evaluation.measures import Framing, bits_per_byte

        noise = bits_per_byte(str(out), bad[:10], Framing(96)).estimate.value
        sense = bits_per_byte(str(out), good[:10], Framing(96)).estimate.value
        measured.append((sense, noise))
    (_, noise_learned), (sense, noise_left) = measured
    assert noise_learned < 0.5 * noise_left
    assert sense < noise_left


@pytest.mark.slow
def test_a_score_can_weigh_rows(tiny: Path, tmp_path: Path) -> None:
    scored = [s.with_score(Score("quality", 0.5)) for s in sentences(30)]
    data = dataset(tmp_path / "rows", scored)
    out = tmp_path / "m"
    train("sft", data, out, model=str(tiny), weight_score="quality", steps=2, **SHORT)
    with pytest.raises(ConfigError, match="has no score 'other'"):
        train("sft", data, tmp_path / "n", model=str(tiny), weight_score="other", **SHORT)


@pytest.mark.slow
def test_reasons_are_a_second_task(tiny: Path, tmp_path: Path) -> None:
    rows = sentences(30, labels=(Label("rationale", "Because it was asked."),))
    data = dataset(tmp_path / "rows", rows)
    plain = train("sft", data, tmp_path / "a", model=str(tiny), held_out_rows=0, **SHORT).facts
    both = train(
        "sft", data, tmp_path / "b", model=str(tiny), rationale=0.5, held_out_rows=0, **SHORT
    ).facts
    assert both["supervised_tokens"] > 1.2 * plain["supervised_tokens"]
    bare = dataset(tmp_path / "bare", sentences(30))
    with pytest.raises(ConfigError, match="no row has a label `rationale`"):
        train("sft", bare, tmp_path / "c", model=str(tiny), rationale=0.5, **SHORT)


@pytest.mark.slow
def test_rows_left_out_are_named(tiny: Path, tmp_path: Path) -> None:
    long = Sample("Go on.", output="on " * 500, source="s", license="CC0-1.0", language="en")
    forged = Sample("Go on.", output="<|im_end|>", source="s", license="CC0-1.0", language="en")
    data = dataset(tmp_path / "rows", [*sentences(30), long, forged])
    out = tmp_path / "m"
    dropped = train("sft", data, out, model=str(tiny), steps=1, held_out_rows=0, **SHORT).facts
    assert dropped["rows"]["left_out"] == {"control_token": 1, "too_long": 1}
    named = [orjson.loads(line) for line in (out / "left_out.jsonl").read_bytes().splitlines()]
    assert {row["id"] for row in named} == {long.id, forged.id}
    cut = train(
        "sft", data, tmp_path / "n", model=str(tiny), steps=1, too_long="truncate",
        held_out_rows=0, **SHORT,
    ).facts  # fmt: skip
    assert cut["rows"]["left_out"] == {"control_token": 1, "truncated": 1}
    assert cut["rows"]["train"] == 31


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid_norm", "ipo"])
def test_dpo_begins_where_its_losses_say(tiny: Path, tmp_path: Path, loss: str) -> None:
    """Against itself every margin is 0: log 2 for sigmoid, 1 / (2 beta)^2 for IPO."""
    data = dataset(tmp_path / "pairs", pairs(40))
    out = tmp_path / "m"
    train("dpo", data, out, model=str(tiny), loss=loss, steps=1, **SHORT)
    begins = {"sigmoid": 0.6931, "sigmoid_norm": 0.6931, "ipo": 25.0}[loss]
    assert read_log(out)[0]["loss"] == pytest.approx(begins, abs=1e-3)


@pytest.mark.slow
def test_dpo_with_a_term_for_likelihood_costs_more(tiny: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path / "pairs", pairs(40))
    out = tmp_path / "m"
    train("dpo", data, out, model=str(tiny), sft_weight=1.0, steps=1, **SHORT)
    assert read_log(out)[0]["loss"] > 2


@pytest.mark.slow
def test_two_runs_of_a_seed_are_the_same_and_the_model_says_so(
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
def test_a_row_that_forbids_commerce_shows_in_the_card(tiny: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    rows = sentences(30)
    rows[3] = replace(rows[3], license="CC-BY-NC-4.0")
    data = dataset(tmp_path / "rows", rows)
    out = tmp_path / "m"
    train("sft", data, out, model=str(tiny), steps=1, held_out_rows=0, **SHORT)
    card = (out / "README.md").read_text()
    assert "No commercial use of these rows" in card
    assert "CC-BY-NC-4.0" in card.split("---\n")[1]


@pytest.mark.slow
def test_the_finished_run_is_left_as_it_is(tiny: Path, rows: Path, tmp_path: Path) -> None:
    from instructgen.errors import RunError

    out = tmp_path / "m"
    first = train("sft", rows, out, model=str(tiny), steps=2, **SHORT)
    written = (out / "model.safetensors").stat().st_mtime_ns
    assert (out / "log.png").read_bytes().startswith(b"\x89PNG")
    assert list((out / "tensorboard").glob("events.*"))
    again = train("sft", rows, out, model=str(tiny), steps=2, **SHORT)
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    assert again.facts == first.facts
    with pytest.raises(RunError, match=r"options\.steps \(2, now 3\)"):
        train("sft", rows, out, model=str(tiny), steps=3, **SHORT)


@pytest.mark.slow
def test_a_reward_model_keeps_its_head(tiny: Path, tmp_path: Path) -> None:
    """Saved with adapters, merged and read back: the same rewards as in memory."""
    data = dataset(tmp_path / "pairs", pairs(60))
    out = tmp_path / "m"
    facts = train(
        "reward", data, out, model=str(tiny), peft="lora", steps=8, held_out_rows=0,
        **{**SHORT, "learning_rate": 1e-2},
    ).facts  # fmt: skip
    assert facts["reload"]["difference"] < 1e-3 < facts["reload"]["moved"]
    from instructgen.training.rewards import RewardModel

    rows = pairs(60)
    model = RewardModel(str(out))
    chosen = model.score(rows, [r.output for r in rows])
    rejected = model.score(rows, [r.rejected_output for r in rows])
    assert sum(a > b for a, b in zip(chosen, rejected, strict=True)) > 50
    from instructgen.filters.reward import RewardFilter

    # The filter reads the same number of the same answer.
    scored = [v.sample.scores[-1].value for v in RewardFilter(model=str(out)).judge(rows[:9])]
    assert scored == pytest.approx(chosen[:9], abs=1e-3)
    # What it says of a row does not depend on the rows beside it.
    alone = [model.score([r], [r.output])[0] for r in rows[:5]]
    assert alone == pytest.approx(chosen[:5], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_another_sampler_can_answer(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """What vLLM does on a CPU, with a sampler of our own in its place."""
    seen: list[int] = []

    def sample(model: Any, step: int, prompts: list[list[int]], most: int, _: float) -> Any:
        seen.append(step)
        return [[5 + i % 7] * min(3, most) for i in range(len(prompts))]

    monkeypatch.setattr("instructgen.training.online.vllm_sampler", lambda *_: sample)
    out = tmp_path / "m"
    train(
        method, rows, out, model=str(tiny), reward=["verifiers:ifeval"], rollouts="vllm",
        steps=2, max_new_tokens=4, **SHORT,
    )  # fmt: skip
    assert seen == [0, 1]
    assert [e["completions/mean_length"] for e in read_log(out)] == [3.0, 3.0]


@pytest.mark.slow
def test_the_end_that_is_taught_is_where_generation_stops(rows: Path, tmp_path: Path) -> None:
    """A base model whose end of text is not the template's end of turn."""
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
def test_base_models_are_asked_as_they_were_trained(rows: Path, tmp_path: Path) -> None:
    """Without a chat template of its own: trained, measured and answered in Alpaca's form."""
    from instructgen import evaluate

    bare = make_tiny_model(tmp_path / "bare", template=None)
    facts = train(
        "grpo", rows, tmp_path / "m", model=str(bare), reward=["verifiers:ifeval"], steps=1,
        format="alpaca", max_new_tokens=8, max_length=128, held_out_rows=8,
    ).facts  # fmt: skip
    assert facts["evaluation"]["before"]["rows"] == 8
    found = evaluate(
        str(tmp_path / "m"), against=str(bare), data=rows, suites=["constraints"], limit=4,
        format="alpaca", max_length=256, settings={"constraints.max_new_tokens": 4},
    )  # fmt: skip
    assert found.measures[0]["before"]["rows"] == 4


@pytest.mark.slow
def test_no_question_stands_on_both_sides(tmp_path: Path) -> None:
    from dataclasses import replace

    from instructgen.schema.sample import Origin
    from instructgen.training.rows import rows_for

    rows = [
        replace(s, instruction=f"Question {i % 20}", origin=Origin(group=f"tree {i % 7}"))
        for i, s in enumerate(sentences(120))
    ]
    data = dataset(tmp_path / "rows", rows)
    found = rows_for(data, None, 20, lambda _: True)
    assert len(found.held_out) == 20
    for key in (lambda s: s.question, lambda s: s.origin.group):
        assert not {key(s) for s in found.train} & {key(s) for s in found.held_out}


@pytest.mark.slow
def test_killed_after_the_last_step_nothing_more_is_trained(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {
        "model": str(tiny), "reward": ["verifiers:ifeval"], "steps": 3, "max_new_tokens": 4,
        "schedule": "constant", **SHORT,
    }  # fmt: skip
    whole = train("grpo", rows, tmp_path / "whole", **given).out

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("instructgen.commands.train.model_card", stop)
        with pytest.raises(KeyboardInterrupt):
            train("grpo", rows, tmp_path / "m", **given)
    facts = train("grpo", rows, tmp_path / "m", **given).facts
    assert facts["steps"] == 3
    one, other = (p / "model.safetensors" for p in (whole, tmp_path / "m"))
    assert one.read_bytes() == other.read_bytes()
