"""Proximal policy optimization (PPO) for language models, in a single process.

The method of Schulman et al. 2017 (arXiv 1707.06347) as used for InstructGPT (arXiv 2203.02155).
There is a policy, a critic and a reference model, which is the policy before training. Each step
samples one completion per prompt of a batch, scores the completions, and trains on them for a few
epochs. The reward of each token is its negative KL penalty against the reference model; the reward
of a completion's last token also includes the score.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn.functional import log_softmax
from transformers import (
    GenerationConfig,
    get_scheduler,
    set_seed,
)

from instructgen.errors import ConfigError
from instructgen.models.loading import head_of, load_model
from instructgen.store import step_of
from instructgen.training.callbacks import Pace, check_finite
from instructgen.training.options import PpoOptions
from instructgen.training.rollouts import Sampler
from instructgen.training.schedule import micro_batch, schedule
from instructgen.training.trainer import Job

# (completions, row number of each prompt) -> one score per completion.
Scores = Callable[[list[str], list[int]], list[float]]
_STATE = "ppo.json"


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute generalized advantage estimates (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

    Args:
        rewards: reward after each token, of shape (completions, tokens).
        values: value that the critic predicts before each token, of the same shape.
        mask: 1 for the tokens of a completion, and 0 for the padding after them.
        gamma: discount factor.
        lam: GAE lambda, the weight of longer-horizon estimates.

    Returns:
        Advantages and returns, both of shape (completions, tokens) and 0 for padding.
    """
    rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(rewards)
    advantage = torch.zeros(rewards.shape[0], device=rewards.device)
    for t in reversed(range(rewards.shape[1])):
        after = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(advantage)
        delta = rewards[:, t] + gamma * after - values[:, t]
        advantage = (delta + gamma * lam * advantage) * mask[:, t]
        advantages[:, t] = advantage
    return advantages, (advantages + values) * mask


def policy_loss(
    now: torch.Tensor, then: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the negated clipped objective (arXiv 1707.06347, eq. 7) and the probability ratios.

    ``now`` and ``then`` are log-probabilities under the current and the sampling policy. All
    tensors have the shape (completions, tokens).
    """
    ratio = torch.exp((now - then) * mask)
    worst = torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))
    return (worst * mask).sum() / mask.sum(), ratio


def value_loss(
    now: torch.Tensor, then: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, clip: float
) -> torch.Tensor:
    """Return half the mean squared error of the values, with their change limited to ``clip``."""
    clipped = then + (now - then).clamp(-clip, clip)
    worst = torch.max((now - returns) ** 2, (clipped - returns) ** 2)
    return 0.5 * (worst * mask).sum() / mask.sum()


def whitened(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the values scaled to mean 0 and variance 1 where the mask is 1, and 0 elsewhere."""
    count = mask.sum()
    mean = (values * mask).sum() / count
    variance = (((values - mean) * mask) ** 2).sum() / count
    return (values - mean) * torch.rsqrt(variance + 1e-8) * mask


def _disable_dropout(*models: Any) -> None:
    """Disable dropout: the ratio of new to old probabilities must be 1 before the first update."""
    for model in models:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0


class ActorCritic(torch.nn.Module):
    """Policy and critic as one module, so that one optimizer updates both."""

    def __init__(self, policy: Any, critic: Any) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, width: int, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return log-probabilities, values and entropies for the last ``width`` tokens.

        ``ids`` and ``mask`` have the shape (completions, prompt and completion tokens), the
        results (completions, width). Each value is predicted from the text before its token.
        """
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        chosen, entropy = _log_probabilities(self.policy, inputs, width, temperature)
        values = self.critic(**inputs).logits[:, -width - 1 : -1, 0].float()
        return chosen, values, entropy


def _log_probabilities(
    policy: Any, inputs: dict[str, Any], width: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = policy(**inputs).logits[:, -width - 1 : -1].float() / temperature
    log_probs = log_softmax(logits, dim=-1)
    chosen = log_probs.gather(-1, inputs["input_ids"][:, -width:, None])[..., 0]
    with torch.no_grad():
        entropy = -(log_probs.exp() * log_probs).sum(-1)
    return chosen, entropy


@dataclass(frozen=True, slots=True)
class _Rollouts:
    """The completions of one step, as tensors with one row per completion.

    ``ids`` and ``mask`` cover prompt and completion tokens; ``completion_mask``, the
    log-probabilities and ``values`` cover only the completion tokens.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    completion_mask: torch.Tensor
    old_log_probs: torch.Tensor
    reference_log_probs: torch.Tensor
    values: torch.Tensor
    scores: torch.Tensor
    ended: torch.Tensor

    @property
    def width(self) -> int:
        return int(self.completion_mask.shape[1])


class PpoTrainer:
    """Trains a policy with PPO, with the same methods as the trainers from TRL.

    Args:
        job: model and settings; its options must be `PpoOptions`.
        prompts: prompts, rendered by the chat template.
        scores: function that returns one score per completion.
        sampler: function that samples the completions (see `rollouts.Sampler`); None to sample
            with transformers.

    Raises:
        ConfigError: ``micro_batch_size`` does not divide ``batch_size``, or the critic cannot
            be loaded.
    """

    def __init__(
        self, job: Job, prompts: Sequence[str], scores: Scores, sampler: Sampler | None = None
    ) -> None:
        options = job.options
        assert isinstance(options, PpoOptions)
        self.options, self.job, self._scores, self._sampler = options, job, scores, sampler
        self.tokenizer = job.tokenizer
        self._prompts = job.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
        self._schedule = schedule(
            len(prompts),
            options.batch_size,
            options.seed,
            epochs=options.epochs,
            steps=options.steps,
            whole=True,
        )
        try:
            self._micro, _ = micro_batch(options.batch_size, options.micro_batch_size, 1)
        except ValueError as error:
            raise ConfigError(
                f"{error}.", "Change the option batch_size or micro_batch_size."
            ) from error
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        set_seed(options.seed)
        policy, critic, reference = self._models(job)
        models = ActorCritic(policy, critic)
        weights = [p for p in models.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            weights, lr=options.rate(), weight_decay=options.weight_decay, eps=1e-5
        )
        self.rows = len(set(self._schedule.order))
        steps = self._schedule.steps * options.ppo_epochs
        self._lr_scheduler = get_scheduler(
            {"constant": "constant_with_warmup"}.get(options.schedule, options.schedule),
            optimizer,
            num_warmup_steps=int(options.warmup * steps),
            num_training_steps=steps,
        )
        self._actor_critic, self._optimizer = self.accelerator.prepare(models, optimizer)
        self._reference = None if reference is None else reference.to(self.accelerator.device)
        self.state = SimpleNamespace(global_step=0)

    @property
    def model(self) -> Any:
        """The policy that is trained, with its adapters if it has any."""
        return self.accelerator.unwrap_model(self._actor_critic).policy

    def _models(self, job: Job) -> tuple[Any, Any, Any]:
        """Return the policy, the critic and the reference model (None if adapters are trained)."""
        policy = job.model
        folder = policy.config._name_or_path
        dtype = str(policy.dtype).removeprefix("torch.")
        critic = load_model(folder, "value", dtype=dtype, new_head=True)
        # A critic that predicts 0 at first does not bias the first updates.
        head = head_of(critic)
        torch.nn.init.zeros_(getattr(critic, head).weight)
        if self.options.gradient_checkpointing:
            policy.gradient_checkpointing_enable()
            critic.gradient_checkpointing_enable()
        if job.peft is None:
            _disable_dropout(policy, critic)
            reference = copy.deepcopy(policy).eval().requires_grad_(False)
            return policy, critic, reference
        from peft import LoraConfig, get_peft_model

        wrapped = get_peft_model(policy, job.peft)
        adapters = LoraConfig(
            task_type="TOKEN_CLS",
            r=self.options.lora_rank,
            lora_alpha=self.options.lora_alpha,
            target_modules="all-linear",
            modules_to_save=[head],
        )
        wrapped_critic = get_peft_model(critic, adapters)
        _disable_dropout(wrapped, wrapped_critic)
        return wrapped, wrapped_critic, None

    # -- training -------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | None = None) -> None:
        """Train to the last step; start from a checkpoint if its folder is passed.

        Raises:
            TrainingError: the loss or the gradient norm is not finite.
        """
        options, hooks = self.options, self.job.hooks
        if resume_from_checkpoint is not None:
            self._load(Path(resume_from_checkpoint))
        pace = Pace(self._schedule.steps, self.state.global_step, self.state.global_step)
        writer = self._tensorboard()
        while self.state.global_step < self._schedule.steps:
            at = self.state.global_step * options.batch_size
            rows = self._schedule.order[at : at + options.batch_size]
            rollouts = self._sample(rows)
            entry = self._update(rollouts)
            self.state.global_step += 1
            pace.tokens += int(rollouts.mask.sum())
            for name in ("loss", "grad_norm"):
                check_finite(name, entry[name], self.state.global_step)
            if self.state.global_step % options.log_every == 0:
                entry = {"step": self.state.global_step, **entry}
                pace.step, pace.entry = self.state.global_step, entry
                for name, value in entry.items():
                    writer.add_scalar(f"train/{name}", value, self.state.global_step)
                hooks.log(entry)
                hooks.pace(pace)
            last = self.state.global_step == self._schedule.steps
            if last or self.state.global_step % options.checkpoint_every == 0:
                self._save()
        writer.close()

    def _sample(self, rows: Sequence[int]) -> _Rollouts:
        """Sample one completion per prompt, and compute scores, log-probabilities and values."""
        options, device = self.options, self.accelerator.device
        prompts = [self._prompts[i] for i in rows]
        completions = self._generate(prompts)
        ends = self._end_ids()
        ended = [bool(ids) and ids[-1] in ends for ids in completions]
        texts = self.tokenizer.batch_decode(completions, skip_special_tokens=True)
        scores = [
            score - (0.0 if has_end else options.no_end_penalty)
            for score, has_end in zip(self._scores(texts, list(rows)), ended, strict=True)
        ]
        pad = self.tokenizer.pad_token_id
        left, width = max(map(len, prompts)), max(map(len, completions))
        ids, mask = [], []
        for prompt, completion in zip(prompts, completions, strict=True):
            before, after = left - len(prompt), width - len(completion)
            ids.append([pad] * before + prompt + completion + [pad] * after)
            mask.append([0] * before + [1] * (len(prompt) + len(completion)) + [0] * after)
        all_ids = torch.tensor(ids, device=device)
        all_mask = torch.tensor(mask, device=device)
        old_log_probs, values, reference = [], [], []
        with torch.inference_mode():
            for part in self._micro_batches(len(rows)):
                now = self._actor_critic(all_ids[part], all_mask[part], width, options.temperature)
                old_log_probs.append(now[0])
                values.append(now[1])
                inputs = {"input_ids": all_ids[part], "attention_mask": all_mask[part]}
                inputs["position_ids"] = (all_mask[part].cumsum(1) - 1).clamp(min=0)
                with self._reference_model() as model:
                    reference.append(
                        _log_probabilities(model, inputs, width, options.temperature)[0]
                    )
        return _Rollouts(
            ids=all_ids,
            mask=all_mask,
            completion_mask=all_mask[:, -width:].float(),
            # Cloned, because tensors created in inference mode cannot be used in autograd.
            old_log_probs=torch.cat(old_log_probs).clone(),
            reference_log_probs=torch.cat(reference).clone(),
            values=torch.cat(values).clone(),
            scores=torch.tensor(scores, device=device, dtype=torch.float32),
            ended=torch.tensor(ended, device=device),
        )

    def _update(self, rollouts: _Rollouts) -> dict[str, float]:
        """Train on the completions of a step, and return the entry for the log."""
        options, mask = self.options, rollouts.completion_mask
        log_ratio = (rollouts.old_log_probs - rollouts.reference_log_probs) * mask
        rewards = -(options.kl_coef * log_ratio)
        last = mask.sum(1).long() - 1
        rewards[torch.arange(len(last)), last] += rollouts.scores
        advantages, returns = gae(rewards, rollouts.values, mask, options.gamma, options.lam)
        advantages = whitened(advantages, mask)
        losses, critic_losses, ratios, entropies = [], [], [], []
        for _ in range(options.ppo_epochs):
            self._optimizer.zero_grad()
            for part in self._micro_batches(len(rollouts.ids)):
                log_probs, values, entropy = self._actor_critic(
                    rollouts.ids[part], rollouts.mask[part], rollouts.width, options.temperature
                )
                part_mask, old_log_probs = mask[part], rollouts.old_log_probs[part]
                share = part_mask.sum() / mask.sum()
                loss, ratio = policy_loss(
                    log_probs, old_log_probs, advantages[part], part_mask, options.clip_range
                )
                critic = value_loss(
                    values, rollouts.values[part], returns[part], part_mask, options.value_clip
                )
                total = (loss + options.value_weight * critic) * share
                self.accelerator.backward(total)
                losses.append(float(total.detach()))
                critic_losses.append(float(critic.detach() * share))
                ratios.append(((ratio * part_mask).sum() / part_mask.sum()).detach())
                entropies.append(((entropy * part_mask).sum() / part_mask.sum()).detach())
            weights = self._actor_critic.parameters()
            norm = self.accelerator.clip_grad_norm_(weights, options.max_grad_norm)
            self._optimizer.step()
            self._lr_scheduler.step()
        return {
            "loss": sum(losses) / options.ppo_epochs,
            "value_loss": sum(critic_losses) / options.ppo_epochs,
            "reward": float(rollouts.scores.mean()),
            "kl": float(log_ratio.sum(1).mean()),
            "entropy": float(torch.stack(entropies).mean()),
            "ratio_first": float(ratios[0]),
            "ratio": float(ratios[-1]),
            "ended": float(rollouts.ended.float().mean()),
            "length": float(mask.sum(1).mean()),
            "grad_norm": float(norm),
            "learning_rate": float(self._lr_scheduler.get_last_lr()[0]),
        }

    def _micro_batches(self, count: int) -> list[slice]:
        return [slice(at, at + self._micro) for at in range(0, count, self._micro)]

    # -- sampling -------------------------------------------------------------------------

    def _generate(self, prompts: list[list[int]]) -> list[list[int]]:
        options = self.options
        if self._sampler is not None:
            step = self.state.global_step
            return self._sampler(
                self.model, step, prompts, options.max_new_tokens, options.temperature
            )
        pad, ends, left = self.tokenizer.pad_token_id, self._end_ids(), max(map(len, prompts))
        ids = torch.tensor([[pad] * (left - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (left - len(p)) + [1] * len(p) for p in prompts])
        device, policy = self.accelerator.device, self.model
        policy.eval()
        with torch.inference_mode():
            output = policy.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                # The model's own settings, such as top-p or penalties, would sample from a
                # distribution other than the one whose ratios the loss uses.
                generation_config=GenerationConfig(
                    do_sample=True,
                    temperature=options.temperature,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=options.max_new_tokens,
                    pad_token_id=pad,
                    eos_token_id=sorted(ends),
                ),
            )
        policy.train()
        completions = []
        for row in output[:, left:].tolist():
            end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
            completions.append(row[:end])
        return completions

    def _end_ids(self) -> set[int]:
        config = getattr(self.model, "generation_config", None)
        ids = getattr(config, "eos_token_id", None)
        ids = ids if isinstance(ids, list) else [ids]
        return {i for i in (*ids, self.tokenizer.eos_token_id) if i is not None}

    @contextmanager
    def _reference_model(self) -> Iterator[Any]:
        """Yield the policy before training: a copy, or the policy with its adapters disabled."""
        if self._reference is not None:
            yield self._reference
        else:
            with self.model.disable_adapter():
                yield self.model

    # -- files ----------------------------------------------------------------------------

    def save_model(self, folder: str) -> None:
        """Save the policy, or only its adapters if it has any."""
        self.model.save_pretrained(folder)

    def _save(self) -> None:
        folder = self.job.checkpoints / f"checkpoint-{self.state.global_step}"
        self.accelerator.save_state(str(folder))
        (folder / _STATE).write_text(json.dumps({"step": self.state.global_step}))
        self.job.hooks.saved(self.state.global_step)
        for old in sorted(self.job.checkpoints.glob("checkpoint-*"), key=step_of)[:-2]:
            shutil.rmtree(old)

    def _load(self, folder: Path) -> None:
        self.accelerator.load_state(str(folder))
        self.state.global_step = json.loads((folder / _STATE).read_text())["step"]
        # The state of the learning rate depends only on the number of steps.
        for _ in range(self.state.global_step * self.options.ppo_epochs):
            self._lr_scheduler.step()

    def _tensorboard(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.job.tensorboard))
