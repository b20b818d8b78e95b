"""What a trainer calls while it works: the log, the seal of a checkpoint, the check of numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainerCallback

from instructgen.errors import TrainingError
from instructgen.schema.progress import Progress
from instructgen.training.launch import is_main, processes


@dataclass(slots=True)
class Pace:
    """How far a training run is, and how fast: steps, tokens read, the last entry of its log."""

    steps: int
    step: int = 0
    began_at: int = 0
    started: float = field(default_factory=time.monotonic)
    tokens: int = 0
    entry: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Since training began or went on."""
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float | None:
        """At the pace so far; None before the first step."""
        done = self.step - self.began_at
        return self.seconds / done * (self.steps - self.step) if done else None

    @property
    def tokens_per_s(self) -> float:
        """Tokens read per second."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def progress(self) -> Progress:
        """As an event, with the numbers of the log that people look at."""
        shown: dict[str, float] = {
            k: self.entry[k] for k in ("loss", "reward", "accuracy") if k in self.entry
        }
        return Progress(
            "train",
            self.step,
            self.steps,
            "steps",
            figures={**shown, "tokens": self.tokens, "tokens/s": round(self.tokens_per_s)},
            seconds_left=self.seconds_left if self.step < self.steps else None,
        )


@dataclass(frozen=True)
class Hooks:
    """What a trainer calls while it works.

    ``log`` takes an entry of numbers, ``saved`` the step of a checkpoint that was
    written, ``pace`` how far it is after each step.
    """

    log: Callable[[dict[str, Any]], None]
    saved: Callable[[int], None]
    pace: Callable[[Pace], None]


def check_finite(name: str, value: float, step: int) -> None:
    """Stop a run whose numbers are none.

    Raises:
        TrainingError: it is not finite.
    """
    if not math.isfinite(value):
        raise TrainingError(
            f"The {name} is {value} at step {step}.",
            "Give a lower learning_rate, and another --out.",
        )


class Log(TrainerCallback):
    """Takes entries to the log, seals checkpoints, and stops on a loss that is no number."""

    def __init__(
        self,
        hooks: Hooks,
        steps: int,
        supervised: Sequence[int] | None = None,
        read: Sequence[int] | None = None,
    ) -> None:
        self._hooks = hooks
        self._pace = Pace(steps)
        self._supervised, self._read = supervised, read
        self._seen = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note where training begins."""
        self._pace.started = time.monotonic()
        self._pace.step = self._pace.began_at = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Check an entry, and hand it to the log and to who watches."""
        if not is_main() or "train_runtime" in logs:
            return
        entry = {k: v for k, v in logs.items() if isinstance(v, int | float)}
        for name in ("loss", "grad_norm"):
            check_finite(name, entry.get(name, 0.0), state.global_step)
        # TRL's own count begins anew when a run is resumed.
        seen = entry.pop("num_tokens", self._seen)
        self._pace.tokens += max(0, int(seen - self._seen))
        self._seen = seen
        if self._read is not None:
            self._pace.tokens = sum(self._read[self._pace.began_at : state.global_step])
        entry = {"step": state.global_step, **entry}
        if self._supervised is not None:
            entry["supervised_tokens"] = sum(self._supervised[: state.global_step])
        self._pace.step, self._pace.entry = state.global_step, entry
        self._hooks.log(entry)
        self._hooks.pace(self._pace)

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Check the weights, and have the checkpoint sealed."""
        for name, weight in model.named_parameters():
            if weight.requires_grad and not bool(torch.isfinite(weight).all()):
                check_finite(f"weight {name}", math.nan, state.global_step)
        if processes() > 1:
            # The others write their own share of it.
            torch.distributed.barrier()
        if is_main():
            self._hooks.saved(state.global_step)
