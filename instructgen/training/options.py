"""Training settings, as classes whose fields are the keys of the table `[train]` in a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from instructgen.schema.measures import PassRate

Trainer = Literal["sft", "reward", "dpo", "kto", "grpo", "rloo", "ppo"]
PAIRS = ("reward", "dpo", "kto")
ONLINE = ("grpo", "rloo", "ppo")
Peft = Literal["none", "lora", "qlora", "dora", "ia3", "adapter"]
Format = Literal["chat", "alpaca", "dolly"]
# Factor on the learning rate with adapters. Full fine-tuning changes every weight, so it needs
# smaller steps.
_ADAPTER_RATE = 10.0
# Learning from preferences and rewards needs smaller steps than learning from answers.
_RATE, _GENTLE_RATE = 2e-5, 2e-6


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """How rows are rendered as text.

    ``format`` is ``chat`` for the tokenizer's own template, or the name of a file in
    ``templates/`` (``alpaca`` or ``dolly``). ``chat_template`` replaces the tokenizer's template:
    a file, or the name of a template that TRL contains. If ``fold_system`` is True, the system
    message becomes the beginning of the first user message. ``max_length`` is the maximum number of
    tokens of a row, and ``pad_token`` is needed only if the tokenizer has no padding token.
    """

    max_length: int = 1024
    format: str = "chat"
    pad_token: str | None = None
    chat_template: str = ""
    fold_system: bool = False


class TrainerOptions(BaseModel):
    """Settings that all trainers share."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    # Default learning rate for full fine-tuning.
    full_rate: ClassVar[float] = _RATE
    # New name of each renamed setting by its old name, for the error message about the old name.
    renamed: ClassVar[Mapping[str, str]] = {}

    seed: int = Field(
        0, ge=0, lt=2**32, description="Random seed for row order, initial weights and sampling."
    )
    pass_rate: PassRate | None = Field(
        None,
        description="Range of the score pass_rate of the rows to train on, such as 0.1:0.9. Other "
        "rows, and rows without this score, are rejected. Default: all rows.",
    )
    epochs: float = Field(1.0, gt=0, le=1000, description="Passes over the training rows.")
    steps: int | None = Field(
        None,
        ge=1,
        le=10**6,
        description="Number of training steps. In ppo, a step trains on one batch of completions "
        "for ppo_epochs passes. Overrides the option epochs.",
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Peak learning rate. Default: 2e-5 for sft and reward, 2e-6 for the other "
        "trainers; ten times as much if peft is not none.",
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine",
        description="Learning rate after the warm-up. cosine and linear: falls to 0; constant: "
        "remains at the peak.",
    )
    warmup: float = Field(
        0.03,
        ge=0,
        lt=1,
        description="Fraction of the steps in which the learning rate rises from 0 to its peak.",
    )
    batch_size: int = Field(
        8,
        ge=1,
        description="Number of examples per training step, over all devices. An example is a "
        "sequence (sft), a pair (reward, dpo), an answer (kto) or a prompt (grpo, rloo, ppo).",
    )
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="Number of examples per device and forward pass; see batch_size. Default: 1 "
        "with packing, otherwise the largest number up to 4 that divides the batch of a device.",
    )
    max_length: int = Field(
        0,
        ge=0,
        description="Maximum number of tokens per row. Default (0): 1024, or the context length of "
        "the model if it is smaller.",
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Maximum norm for gradient clipping.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay for AdamW.")
    format: Format = Field(
        "chat",
        description="Prompt format. chat: the tokenizer's chat template; alpaca or dolly: "
        "a prompt format for base models.",
    )
    chat_template: str = Field(
        "",
        description="Chat template that replaces the one of the tokenizer: a file, or the name of "
        "a template that TRL contains, such as qwen3. The trained model keeps it.",
    )
    fold_system: bool = Field(
        False,
        description="Put the text of the system message at the beginning of the first user "
        "message, for chat templates that have no system role.",
    )
    pad_token: str | None = Field(
        None,
        description="Padding token for a tokenizer that has none: a token in its vocabulary, or "
        "eos for its end-of-sequence token.",
    )
    peft: Peft = Field(
        "none",
        description="Method for parameter-efficient fine-tuning (PEFT). none: full fine-tuning; "
        "adapter: LLaMA-Adapter.",
    )
    lora_rank: int = Field(16, ge=1, le=4096, description="Rank of LoRA, QLoRA and DoRA adapters.")
    lora_alpha: int = Field(
        32, ge=1, description="LoRA updates are multiplied by lora_alpha / lora_rank."
    )
    lora_dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout probability in the LoRA layers."
    )
    adapter_length: int = Field(
        10, ge=1, le=4096, description="Learned prompt tokens per layer, for peft=adapter."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Data type of the weights. auto: bfloat16 when training adapters on a GPU, "
        "otherwise float32.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Recompute activations to save memory, at the cost of about 20% more time.",
    )
    checkpoint_every: int = Field(50, ge=1, description="Number of steps between checkpoints.")
    log_every: int = Field(1, ge=1, description="Number of steps between log entries.")
    held_out_rows: int | None = Field(
        None,
        ge=0,
        description="Maximum number of held-out rows for evaluation before and after training. "
        "Default: 64, but at most a tenth of the rows if they are taken from the training data.",
    )
    evaluate: bool = Field(
        True, description="Evaluate the model on the held-out rows before and after training."
    )

    def prompt_format(self) -> PromptFormat:
        """Return how rows are rendered and how long they may be."""
        return PromptFormat(**{f.name: getattr(self, f.name) for f in fields(PromptFormat)})

    def rate(self) -> float:
        """Return the peak learning rate; its default depends on the trainer and on ``peft``."""
        if self.learning_rate is not None:
            return self.learning_rate
        return self.full_rate if self.peft == "none" else self.full_rate * _ADAPTER_RATE


class SftOptions(TrainerOptions):
    """Settings for supervised fine-tuning (SFT)."""

    tokens: int | None = Field(
        None,
        ge=1,
        le=10**10,
        description="Exact number of supervised tokens (tokens that the loss covers) to train on. "
        "Overrides the option epochs.",
    )
    packing: bool = Field(
        True, description="Pack several rows into one sequence, without attention between rows."
    )
    too_long: Literal["drop", "truncate"] = Field(
        "drop",
        description="What to do with rows that have more tokens than max_length: drop or truncate "
        "them.",
    )
    weights: dict[str, float] = Field(
        default_factory=dict,
        description="Loss weight of the rows of each source, such as { dolly = 0.5 }. Sources that "
        "are not listed have weight 1.",
    )
    weight_score: str | None = Field(
        None,
        description="Name of a score of the rows, such as the score of a filter. The loss weight "
        "of each row is multiplied by the value of this score.",
    )
    rationale: float = Field(
        0.0,
        ge=0,
        description="Loss weight of a second task, in which the model writes the text of a row's "
        "label `rationale`. Default (0): no second task.",
    )

    @model_validator(mode="after")
    def _check_amounts(self) -> SftOptions:
        if self.tokens is not None and self.steps is not None:
            raise ValueError(
                "the options tokens and steps cannot be combined; pass only one of them"
            )
        if any(w < 0 for w in self.weights.values()):
            raise ValueError("weights: the loss weight of each source must be 0 or more")
        return self


class RewardOptions(TrainerOptions):
    """Settings for reward models, which learn from preference pairs (Bradley-Terry)."""

    center: float = Field(
        0.0,
        ge=0,
        description="Coefficient of the loss term that centers the rewards at 0 "
        "(arXiv 2312.09244, eq. 2).",
    )


class DpoOptions(TrainerOptions):
    """Settings for direct preference optimization (DPO)."""

    full_rate: ClassVar[float] = _GENTLE_RATE

    beta: float = Field(
        0.1,
        gt=0,
        description="Coefficient of the implicit KL penalty against the model before training.",
    )
    loss: Literal["sigmoid", "sigmoid_norm", "ipo"] = Field(
        "sigmoid",
        description="Loss function. sigmoid: original DPO loss; sigmoid_norm: the same with "
        "log-probabilities divided by length, as in Tulu 3; ipo: loss of IPO.",
    )
    sft_weight: float = Field(
        0.0, ge=0, description="Weight of an additional SFT loss on the chosen answers."
    )


class KtoOptions(TrainerOptions):
    """Settings for Kahneman-Tversky optimization (KTO), which learns from good and bad answers.

    The rows are feedback rows, or preference rows, each of which gives a good and a bad answer.
    """

    full_rate: ClassVar[float] = _GENTLE_RATE

    beta: float = Field(
        0.1,
        gt=0,
        description="Coefficient of the implicit KL penalty against the model before training.",
    )
    desirable_weight: float = Field(1.0, ge=0, description="Loss weight of chosen answers.")
    undesirable_weight: float = Field(1.0, ge=0, description="Loss weight of rejected answers.")


class OnlineOptions(TrainerOptions):
    """Settings for `grpo`, `rloo` and `ppo`, which sample completions and learn from rewards."""

    full_rate: ClassVar[float] = _GENTLE_RATE

    max_new_tokens: int = Field(128, ge=1, description="Maximum number of tokens per completion.")
    temperature: float = Field(1.0, ge=0.01, le=100, description="Sampling temperature.")
    reward_weights: dict[str, float] = Field(
        default_factory=dict,
        description="Weight of each reward by name, such as { math = 0.5 }. Rewards that are not "
        "listed have weight 1.",
    )
    rollouts: Literal["transformers", "vllm"] = Field(
        "transformers",
        description="Library that samples the completions. vllm: the weights of the model "
        "are loaded into vLLM again after every step that changed them.",
    )

    @model_validator(mode="after")
    def _check_peft(self) -> Self:
        if self.peft == "adapter":
            raise ValueError("peft=adapter cannot be used with grpo, rloo or ppo; use peft=lora")
        return self


class GroupOptions(OnlineOptions):
    """Settings for `grpo` and `rloo`, which compare the completions of a prompt with each other."""

    generations: int = Field(4, ge=2, description="Number of completions per prompt (group size).")
    beta: float = Field(
        0.0, ge=0, description="Coefficient of the KL penalty against the model before training."
    )
    iterations: int = Field(
        1, ge=1, description="Number of optimizer steps per batch of completions."
    )


class PpoOptions(OnlineOptions):
    """Settings for proximal policy optimization (PPO; Schulman et al. 2017), with a critic."""

    renamed: ClassVar[Mapping[str, str]] = {
        "kl": "kl_coef",
        "clip": "clip_range",
        "passes": "ppo_epochs",
    }

    kl_coef: float = Field(
        0.05,
        ge=0,
        description="Coefficient of the per-token KL penalty against the model before training.",
    )
    clip_range: float = Field(
        0.2, gt=0, lt=1, description="Clipping range of the probability ratio in the policy loss."
    )
    value_clip: float = Field(
        0.2, gt=0, description="Clipping range of the predicted value in the value loss."
    )
    value_weight: float = Field(0.1, gt=0, description="Weight of the value loss.")
    gamma: float = Field(1.0, gt=0, le=1, description="Discount factor for later rewards.")
    lam: float = Field(
        0.95,
        ge=0,
        le=1,
        description="Lambda of generalized advantage estimation. 1: no bias; 0: lowest variance.",
    )
    ppo_epochs: int = Field(
        2, ge=1, description="Number of passes over each batch of sampled completions."
    )
    no_end_penalty: float = Field(
        1.0,
        ge=0,
        description="Penalty subtracted from the score of a completion that does not end with an "
        "end-of-sequence token.",
    )


OPTIONS: dict[str, type[TrainerOptions]] = {
    "sft": SftOptions,
    "reward": RewardOptions,
    "dpo": DpoOptions,
    "kto": KtoOptions,
    "grpo": GroupOptions,
    "rloo": GroupOptions,
    "ppo": PpoOptions,
}
