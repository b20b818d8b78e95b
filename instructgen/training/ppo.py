"""Proximal policy optimisation for language models, small enough to read.

Schulman et al. 2017 (1707.06347), as InstructGPT used it (2203.02155): a policy, a
critic, and the model that the policy began as. Every step samples an answer to each of
a batch of prompts, scores it, and makes a few passes over the batch. The price of
leaving the first model is taken from the reward token by token; the score comes with
the last token. One process.
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

Scores = Callable[[list[str], list[int]], list[float]]
_STATE = "ppo.json"


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimates (Schulman et al. 2016, 1506.02438, eq. 16) and returns.

    Args:
        rewards: (answers, tokens), the reward that follows each token.
        values: (answers, tokens), what the critic expected before each token.
        mask: (answers, tokens), 1 for the tokens of an answer; these come first.
        gamma: discount.
        lam: weight of estimates that look further.

    Returns:
        Advantages and returns, both (answers, tokens) and 0 outside of the mask.
    """
    rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(rewards)
    following = torch.zeros(rewards.shape[0], device=rewards.device)
    for t in reversed(range(rewards.shape[1])):
        after = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(following)
        delta = rewards[:, t] + gamma * after - values[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        advantages[:, t] = following
    return advantages, (advantages + values) * mask


def policy_loss(
    now: torch.Tensor, then: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clipped objective (1707.06347, eq. 7), negated, and the ratios of probabilities.

    All arguments but ``clip`` are (answers, tokens); the first two are log-probabilities.
    """
    ratio = torch.exp((now - then) * mask)
    worst = torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))
    return (worst * mask).sum() / mask.sum(), ratio


def value_loss(
    now: torch.Tensor, then: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, clip: float
) -> torch.Tensor:
    """Half the squared error of the critic, which may move by ``clip`` at most."""
    clipped = then + (now - then).clamp(-clip, clip)
    worst = torch.max((now - returns) ** 2, (clipped - returns) ** 2)
    return 0.5 * (worst * mask).sum() / mask.sum()


def whitened(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """With a mean of 0 and a deviation of 1 over the mask."""
    count = mask.sum()
    mean = (values * mask).sum() / count
    deviation = (((values - mean) * mask) ** 2).sum() / count
    return (values - mean) * torch.rsqrt(deviation + 1e-8) * mask


def _no_dropout(*models: Any) -> None:
    """The probabilities of a step's answers are computed twice and have to agree."""
    for model in models:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0


class ActorCritic(torch.nn.Module):
    """Both models as one, so that one optimiser serves them."""

    def __init__(self, policy: Any, critic: Any) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, width: int, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of the last ``width`` tokens: log-probabilities, values before them, entropies."""
        places = (mask.cumsum(1) - 1).clamp(min=0)
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
        chosen, entropy = _log_probabilities(self.policy, given, width, temperature)
        values = self.critic(**given).logits[:, -width - 1 : -1, 0].float()
        return chosen, values, entropy


def _log_probabilities(
    policy: Any, given: dict[str, Any], width: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = policy(**given).logits[:, -width - 1 : -1].float() / temperature
    every = log_softmax(logits, dim=-1)
    chosen = every.gather(-1, given["input_ids"][:, -width:, None])[..., 0]
    with torch.no_grad():
        entropy = -(every.exp() * every).sum(-1)
    return chosen, entropy


@dataclass(frozen=True, slots=True)
class _Answers:
    """What a step sampled: tensors of (answers, tokens) but for ``scores`` and ``ended``."""

    ids: torch.Tensor
    mask: torch.Tensor
    made: torch.Tensor
    then: torch.Tensor
    reference: torch.Tensor
    values: torch.Tensor
    scores: torch.Tensor
    ended: torch.Tensor

    @property
    def width(self) -> int:
        return int(self.made.shape[1])


class PpoTrainer:
    """Trains a policy; the surface that it shares with TRL's trainers is small.

    Args:
        job: what to train; its options are of `PpoOptions`.
        prompts: as the template renders them.
        scores: of (answers, indices of their prompts).
        sampler: samples instead of transformers.
    """

    def __init__(
        self, job: Job, prompts: Sequence[str], scores: Scores, sampler: Sampler | None = None
    ) -> None:
        options = job.options
        assert isinstance(options, PpoOptions)
        self.options, self.job, self._scores, self._sampler = options, job, scores, sampler
        self.tokenizer = job.tokenizer
        self._prompts = job.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
        self._plan = schedule(
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
            raise ConfigError(f"{error}.", "Give another micro_batch_size.") from error
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        set_seed(options.seed)
        policy, critic, reference = self._models(job)
        both = ActorCritic(policy, critic)
        weights = [p for p in both.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            weights, lr=options.rate(), weight_decay=options.weight_decay, eps=1e-5
        )
        steps = self._plan.steps * options.passes
        self._rates = get_scheduler(
            {"constant": "constant_with_warmup"}.get(options.schedule, options.schedule),
            optimizer,
            num_warmup_steps=int(options.warmup * steps),
            num_training_steps=steps,
        )
        self._both, self._optimizer = self.accelerator.prepare(both, optimizer)
        self._reference = None if reference is None else reference.to(self.accelerator.device)
        self.state = SimpleNamespace(global_step=0)

    @property
    def model(self) -> Any:
        """The policy."""
        return self.accelerator.unwrap_model(self._both).policy

    def _models(self, job: Job) -> tuple[Any, Any, Any]:
        policy = job.model
        folder = policy.config._name_or_path
        dtype = str(policy.dtype).removeprefix("torch.")
        critic = load_model(folder, "value", dtype=dtype, new_head=True)
        # A critic that begins at 0 says nothing wrong of the first answers.
        head = head_of(critic)
        torch.nn.init.zeros_(getattr(critic, head).weight)
        if self.options.gradient_checkpointing:
            policy.gradient_checkpointing_enable()
            critic.gradient_checkpointing_enable()
        if job.peft is None:
            _no_dropout(policy, critic)
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
        _no_dropout(wrapped, wrapped_critic)
        return wrapped, wrapped_critic, None

    # -- a step ---------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | None = None) -> None:
        """Take all steps that are left.

        Raises:
            TrainingError: the loss is no number.
        """
        options, hooks = self.options, self.job.hooks
        if resume_from_checkpoint is not None:
            self._load(Path(resume_from_checkpoint))
        pace = Pace(self._plan.steps, self.state.global_step, self.state.global_step)
        writer = self._tensorboard()
        while self.state.global_step < self._plan.steps:
            at = self.state.global_step * options.batch_size
            rows = self._plan.order[at : at + options.batch_size]
            answers = self._sample(rows)
            entry = self._learn(answers)
            self.state.global_step += 1
            pace.tokens += int(answers.mask.sum())
            for name in ("loss", "grad_norm"):
                check_finite(name, entry[name], self.state.global_step)
            if self.state.global_step % options.log_every == 0:
                entry = {"step": self.state.global_step, **entry}
                pace.step, pace.entry = self.state.global_step, entry
                for name, value in entry.items():
                    writer.add_scalar(f"train/{name}", value, self.state.global_step)
                hooks.log(entry)
                hooks.pace(pace)
            last = self.state.global_step == self._plan.steps
            if last or self.state.global_step % options.checkpoint_every == 0:
                self._save()
        writer.close()

    def _sample(self, rows: Sequence[int]) -> _Answers:
        """An answer to each prompt, what both models and the critic think of it, and its score."""
        options, device = self.options, self.accelerator.device
        prompts = [self._prompts[i] for i in rows]
        made = self._generate(prompts)
        ends = self._ends()
        ended = [bool(ids) and ids[-1] in ends for ids in made]
        texts = self.tokenizer.batch_decode(made, skip_special_tokens=True)
        scores = [
            score - (0.0 if over else options.no_end_penalty)
            for score, over in zip(self._scores(texts, list(rows)), ended, strict=True)
        ]
        pad, left, width = self.tokenizer.pad_token_id, max(map(len, prompts)), max(map(len, made))
        ids, mask = [], []
        for prompt, answer in zip(prompts, made, strict=True):
            before, after = left - len(prompt), width - len(answer)
            ids.append([pad] * before + prompt + answer + [pad] * after)
            mask.append([0] * before + [1] * (len(prompt) + len(answer)) + [0] * after)
        all_ids = torch.tensor(ids, device=device)
        all_mask = torch.tensor(mask, device=device)
        then, values, reference = [], [], []
        with torch.inference_mode():
            for part in self._parts(len(rows)):
                one = self._both(all_ids[part], all_mask[part], width, options.temperature)
                then.append(one[0])
                values.append(one[1])
                given = {"input_ids": all_ids[part], "attention_mask": all_mask[part]}
                given["position_ids"] = (all_mask[part].cumsum(1) - 1).clamp(min=0)
                with self._first_model() as first:
                    reference.append(
                        _log_probabilities(first, given, width, options.temperature)[0]
                    )
        return _Answers(
            ids=all_ids,
            mask=all_mask,
            made=all_mask[:, -width:].float(),
            # Plain tensors again: those of inference mode take no part in learning.
            then=torch.cat(then).clone(),
            reference=torch.cat(reference).clone(),
            values=torch.cat(values).clone(),
            scores=torch.tensor(scores, device=device, dtype=torch.float32),
            ended=torch.tensor(ended, device=device),
        )

    def _learn(self, answers: _Answers) -> dict[str, float]:
        """A few passes over the answers of a step."""
        options, made = self.options, answers.made
        price = options.kl * (answers.then - answers.reference) * made
        rewards = -price
        last = made.sum(1).long() - 1
        rewards[torch.arange(len(last)), last] += answers.scores
        advantages, returns = gae(rewards, answers.values, made, options.gamma, options.lam)
        advantages = whitened(advantages, made)
        losses, critic_losses, ratios, entropies = [], [], [], []
        for _ in range(options.passes):
            self._optimizer.zero_grad()
            for part in self._parts(len(answers.ids)):
                now, values, entropy = self._both(
                    answers.ids[part], answers.mask[part], answers.width, options.temperature
                )
                share = made[part].sum() / made.sum()
                loss, ratio = policy_loss(
                    now, answers.then[part], advantages[part], made[part], options.clip
                )
                critic = value_loss(
                    values, answers.values[part], returns[part], made[part], options.value_clip
                )
                whole = (loss + options.value_weight * critic) * share
                self.accelerator.backward(whole)
                losses.append(float(whole.detach()))
                critic_losses.append(float(critic.detach() * share))
                ratios.append(((ratio * made[part]).sum() / made[part].sum()).detach())
                entropies.append(((entropy * made[part]).sum() / made[part].sum()).detach())
            norm = self.accelerator.clip_grad_norm_(self._both.parameters(), options.max_grad_norm)
            self._optimizer.step()
            self._rates.step()
        divergence = ((answers.then - answers.reference) * made).sum(1).mean()
        return {
            "loss": sum(losses) / options.passes,
            "value_loss": sum(critic_losses) / options.passes,
            "reward": float(answers.scores.mean()),
            "kl": float(divergence),
            "entropy": float(torch.stack(entropies).mean()),
            "ratio_first": float(ratios[0]),
            "ratio": float(ratios[-1]),
            "ended": float(answers.ended.float().mean()),
            "length": float(made.sum(1).mean()),
            "grad_norm": float(norm),
            "learning_rate": float(self._rates.get_last_lr()[0]),
        }

    def _parts(self, count: int) -> list[slice]:
        return [slice(at, at + self._micro) for at in range(0, count, self._micro)]

    # -- sampling -------------------------------------------------------------------------

    def _generate(self, prompts: list[list[int]]) -> list[list[int]]:
        options = self.options
        if self._sampler is not None:
            step = self.state.global_step
            return self._sampler(
                self.model, step, prompts, options.max_new_tokens, options.temperature
            )
        pad, ends, left = self.tokenizer.pad_token_id, self._ends(), max(map(len, prompts))
        ids = torch.tensor([[pad] * (left - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (left - len(p)) + [1] * len(p) for p in prompts])
        device, policy = self.accelerator.device, self.model
        policy.eval()
        with torch.inference_mode():
            output = policy.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                # Not the model's own: penalties and cuts would be another distribution than
                # the one whose ratios are learned from.
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
        made = []
        for row in output[:, left:].tolist():
            end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
            made.append(row[:end])
        return made

    def _ends(self) -> set[int]:
        known = getattr(self.model, "generation_config", None)
        ids = getattr(known, "eos_token_id", None)
        ids = ids if isinstance(ids, list) else [ids]
        return {i for i in (*ids, self.tokenizer.eos_token_id) if i is not None}

    @contextmanager
    def _first_model(self) -> Iterator[Any]:
        """The model that the policy began as: its copy, or the policy without its adapters."""
        if self._reference is not None:
            yield self._reference
        else:
            with self.model.disable_adapter():
                yield self.model

    # -- files ----------------------------------------------------------------------------

    def save_model(self, folder: str) -> None:
        """Save the policy, or its adapters."""
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
        # The rate depends on nothing but the number of steps.
        for _ in range(self.state.global_step * self.options.passes):
            self._rates.step()

    def _tensorboard(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.job.tensorboard))
