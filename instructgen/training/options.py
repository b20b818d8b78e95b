"""What can be set of a training run: one class per method, its fields the keys of [train]."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Trainer = Literal["sft", "reward", "dpo", "kto", "grpo", "rloo", "ppo"]
PAIRS = ("reward", "dpo", "kto")
ONLINE = ("grpo", "rloo", "ppo")
Peft = Literal["none", "lora", "qlora", "dora", "ia3", "adapter"]
Format = Literal["chat", "alpaca", "dolly"]
# Without adapters a step moves every weight, and has to be smaller.
_ADAPTER_RATE = 10.0
# Preferences and rewards are learned by smaller steps than answers.
_RATE, _GENTLE_RATE = 2e-5, 2e-6


class TrainOptions(BaseModel):
    """What all methods share."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    # Without adapters, where none is given.
    full_rate: ClassVar[float] = _RATE

    seed: int = Field(0, ge=0, lt=2**32, description="order of rows, new weights, sampling")
    epochs: float = Field(1.0, gt=0, le=1000, description="passes over the rows")
    steps: int | None = Field(
        None, ge=1, le=10**6, description="optimiser steps, instead of epochs"
    )
    learning_rate: float | None = Field(None, gt=0, description="peak; empty: the method's own")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="how the learning rate falls after the warm-up"
    )
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the steps with a rising rate")
    batch_size: int = Field(8, ge=1, description="sequences, pairs or prompts per optimiser step")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="of them at a time on each device; empty: 4 at most, 1 packed sequence",
    )
    max_length: int = Field(
        0, ge=0, description="tokens of a row; 0: 1024, or what the model reads if that is less"
    )
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's")
    format: Format = Field(
        "chat", description="chat: the tokenizer's own template; alpaca, dolly: for base models"
    )
    pad_token: str | None = Field(
        None, description="for a tokenizer without one: a token of its vocabulary, or eos"
    )
    peft: Peft = Field("none", description="which weights are trained")
    lora_rank: int = Field(16, ge=1, le=4096, description="of lora, qlora and dora")
    lora_alpha: int = Field(32, ge=1, description="their scale: alpha / rank")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="their dropout")
    adapter_length: int = Field(10, ge=1, le=4096, description="prompt tokens per layer of adapter")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the weights; auto: float32, bfloat16 under adapters on a GPU"
    )
    gradient_checkpointing: bool = Field(False, description="less memory, a fifth more time")
    checkpoint_every: int = Field(50, ge=1, description="steps between checkpoints")
    log_every: int = Field(1, ge=1, description="steps between log entries")
    held_out_rows: int | None = Field(
        None,
        ge=0,
        description="rows to measure before and after, kept from training; empty: 64, "
        "a tenth at most",
    )
    evaluate: bool = Field(True, description="measure the rows held out, before and after")

    def rate(self) -> float:
        """The peak learning rate: as given, or the method's own."""
        if self.learning_rate is not None:
            return self.learning_rate
        return self.full_rate if self.peft == "none" else self.full_rate * _ADAPTER_RATE


class SftOptions(TrainOptions):
    """Supervised fine-tuning on answers."""

    tokens: int | None = Field(
        None,
        ge=1,
        le=10**10,
        description="supervised tokens to train on, instead of epochs: exactly so many",
    )
    packing: bool = Field(True, description="several rows in a sequence, none seeing another")
    too_long: Literal["drop", "truncate"] = Field(
        "drop", description="what happens to a row of more than max_length tokens"
    )
    weights: dict[str, float] = Field(
        default_factory=dict, description="weight of the rows of a source; others have 1"
    )
    weight_score: str | None = Field(
        None, description="a score whose value multiplies its row's weight"
    )
    rationale: float = Field(
        0.0, ge=0, description="weight of writing the label `rationale` as a second task"
    )

    @model_validator(mode="after")
    def _one_length(self) -> SftOptions:
        if self.tokens is not None and self.steps is not None:
            raise ValueError("give tokens or steps, not both")
        if any(w < 0 for w in self.weights.values()):
            raise ValueError("a weight is below 0")
        return self


class RewardOptions(TrainOptions):
    """A reward model of pairs (Bradley and Terry)."""

    center: float = Field(
        0.0, ge=0, description="pull of the rewards towards a mean of 0 (2312.09244, eq. 2)"
    )


class DpoOptions(TrainOptions):
    """Direct preference optimisation."""

    full_rate: ClassVar[float] = _GENTLE_RATE

    beta: float = Field(0.1, gt=0, description="how much leaving the starting model costs")
    loss: Literal["sigmoid", "sigmoid_norm", "ipo"] = Field(
        "sigmoid", description="sigmoid_norm: by length, as Tulu 3"
    )
    sft_weight: float = Field(0.0, ge=0, description="weight of the chosen answers' likelihood")


class KtoOptions(TrainOptions):
    """Kahneman-Tversky optimisation: every answer by itself is good or bad."""

    full_rate: ClassVar[float] = _GENTLE_RATE

    beta: float = Field(0.1, gt=0, description="how much leaving the starting model costs")
    desirable_weight: float = Field(1.0, ge=0, description="of good answers")
    undesirable_weight: float = Field(1.0, ge=0, description="of bad answers")


class OnlineOptions(TrainOptions):
    """What the methods share that learn from answers they sample."""

    full_rate: ClassVar[float] = _GENTLE_RATE

    max_new_tokens: int = Field(128, ge=1, description="tokens of a sampled answer")
    temperature: float = Field(1.0, ge=0.01, le=100, description="of sampling")
    reward_weights: dict[str, float] = Field(
        default_factory=dict, description="weight of a reward by its name; others have 1"
    )
    rollouts: Literal["transformers", "vllm"] = Field(
        "transformers", description="what samples; vllm reloads the weights at every step"
    )

    @model_validator(mode="after")
    def _can_be_sampled(self) -> Self:
        if self.peft == "adapter":
            raise ValueError("peft = adapter gives no model that an engine could sample; use lora")
        return self


class GroupOptions(OnlineOptions):
    """Of grpo and rloo: answers are compared with the others to their prompt."""

    generations: int = Field(4, ge=2, description="answers to a prompt")
    beta: float = Field(0.0, ge=0, description="weight of the divergence from the first model")
    iterations: int = Field(1, ge=1, description="optimiser steps on the same answers")


class PpoOptions(OnlineOptions):
    """Proximal policy optimisation (Schulman et al. 2017) with a learned critic."""

    kl: float = Field(0.05, ge=0, description="price of leaving the first model, per token")
    clip: float = Field(0.2, gt=0, lt=1, description="how far a step may move a probability")
    value_clip: float = Field(0.2, gt=0, description="how far a step may move a value")
    value_weight: float = Field(0.1, gt=0, description="weight of the critic's loss")
    gamma: float = Field(1.0, gt=0, le=1, description="discount of later rewards")
    lam: float = Field(0.95, ge=0, le=1, description="GAE's: 1 unbiased, 0 least variance")
    passes: int = Field(2, ge=1, description="passes over the same answers")
    no_end_penalty: float = Field(1.0, ge=0, description="taken from an answer that never ended")


OPTIONS: dict[str, type[TrainOptions]] = {
    "sft": SftOptions,
    "reward": RewardOptions,
    "dpo": DpoOptions,
    "kto": KtoOptions,
    "grpo": GroupOptions,
    "rloo": GroupOptions,
    "ppo": PpoOptions,
}
