"""Every trainer improves a model of a million parameters on held-out rows, with TRL itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from instructgen import train
from instructgen.schema.sample import Label
from instructgen.verifiers.constraints import LABEL, Constraint
from tests.training_data import dataset, pairs, sentences

pytestmark = pytest.mark.slow
LOWER_CASE = Label(LABEL, Constraint("lower_case", {}).dumps())
SHORT: dict[str, Any] = {
    "max_length": 96,
    "learning_rate": 2e-3,
    "held_out_rows": 32,
    "batch_size": 4,
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("rows"), sentences(400))


@pytest.fixture(scope="module")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("preferences"), pairs(400))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset whose tasks all require an answer in lower case."""
    return dataset(tmp_path_factory.mktemp("prompts"), sentences(200, labels=(LOWER_CASE,)))


def test_sft_learns(tiny: Path, rows: Path, tmp_path: Path) -> None:
    facts = train("sft", rows, tmp_path / "m", model=str(tiny), steps=25, **SHORT).facts
    (measure,) = facts.evaluation
    assert measure.difference.high < -1.0
    assert facts.reload["moved"] > 0.1


@pytest.mark.parametrize("peft", ["lora", "qlora", "dora", "ia3", "adapter"])
def test_sft_learns_with_adapters(tiny: Path, rows: Path, tmp_path: Path, peft: str) -> None:
    options = {**SHORT, "learning_rate": 2e-2}
    out = tmp_path / "m"
    facts = train("sft", rows, out, model=str(tiny), peft=peft, steps=12, **options).facts
    (measure,) = facts.evaluation
    assert measure.difference.high < (0 if peft == "adapter" else -0.02)
    assert (out / "adapter" / "adapter_model.safetensors").exists()


def test_reward_model_learns(tiny: Path, preferences: Path, tmp_path: Path) -> None:
    facts = train("reward", preferences, tmp_path / "m", model=str(tiny), steps=25, **SHORT).facts
    (measure,) = facts.evaluation
    assert measure.after.low > 0.8


@pytest.mark.parametrize("trainer", ["dpo", "kto"])
def test_preferences_are_learned(
    tiny: Path, preferences: Path, tmp_path: Path, trainer: str
) -> None:
    facts = train(trainer, preferences, tmp_path / "m", model=str(tiny), steps=25, **SHORT).facts
    measures = {measure.measure: measure for measure in facts.evaluation}
    assert measures["reward_accuracy"].after.low > 0.8


@pytest.mark.parametrize("trainer", ["grpo", "rloo", "ppo"])
def test_rewards_increase(tiny: Path, prompts: Path, tmp_path: Path, trainer: str) -> None:
    facts = train(
        trainer,
        prompts,
        tmp_path / "m",
        model=str(tiny),
        reward=["verifiers:ifeval"],
        steps=14,
        max_new_tokens=12,
        **{**SHORT, "batch_size": 16 if trainer == "ppo" else 8},
        **({"kl_coef": 0.0, "no_end_penalty": 0.0} if trainer == "ppo" else {}),
    ).facts
    (measure,) = facts.evaluation
    assert measure.difference.low > 0
