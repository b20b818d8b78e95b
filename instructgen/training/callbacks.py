"""Training callbacks: write the log, report checkpoints, and stop at infinite or NaN numbers."""

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
    """Progress and speed of a training run.

    ``tokens`` is the number of tokens that the model has read since training started or resumed,
    ``began_at`` is the step at that time, and ``entry`` is the latest log entry.
    """

    steps: int
    step: int = 0
    began_at: int = 0
    started: float = field(default_factory=time.monotonic)
    tokens: int = 0
    entry: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Seconds since training started or resumed."""
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds until the last step is done; None until the first step is done."""
        done = self.step - self.began_at
        return self.seconds / done * (self.steps - self.step) if done else None

    @property
    def tokens_per_s(self) -> float:
        """Tokens read per second since training started or resumed."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def progress(self) -> Progress:
        """Return the progress for display, with loss, reward and accuracy if they are logged."""
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
    """Functions that a trainer calls while it runs.

    ``log`` receives each log entry, ``saved`` receives the step of each checkpoint after it is
    written, and ``pace`` receives the progress after each logged step.
    """

    log: Callable[[dict[str, Any]], None]
    saved: Callable[[int], None]
    pace: Callable[[Pace], None]


def check_finite(name: str, value: float, step: int) -> None:
    """Raise an error, which stops the training run, if a value is infinite or NaN.

    Raises:
        TrainingError: the value is not finite.
    """
    if not math.isfinite(value):
        raise TrainingError(
            f"The {name} is {value} at step {step}.",
            "Train again with a lower --learning-rate and a different --out.",
        )


class Log(TrainerCallback):
    """Callback that passes log entries, progress and checkpoints to the functions in ``hooks``.

    The callback raises TrainingError if the loss, gradient norm or a trained weight is not finite.

    Args:
        hooks: functions that receive the log entries, the progress and the checkpoints.
        steps: number of optimizer steps in the run.
        supervised: number of tokens that the loss covers, for each step; None if unknown.
        read: number of tokens that the model reads, for each step; None to use TRL's count.
    """

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
        self._num_tokens = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Record the step and the time at which training starts."""
        self._pace.started = time.monotonic()
        self._pace.step = self._pace.began_at = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Check that a log entry is finite, then pass the entry and the progress to the hooks."""
        if not is_main() or "train_runtime" in logs:
            return
        entry = {k: v for k, v in logs.items() if isinstance(v, int | float)}
        for name in ("loss", "grad_norm"):
            check_finite(name, entry.get(name, 0.0), state.global_step)
        # TRL's count restarts from 0 when a run is resumed.
        num_tokens = entry.pop("num_tokens", self._num_tokens)
        self._pace.tokens += max(0, int(num_tokens - self._num_tokens))
        self._num_tokens = num_tokens
        if self._read is not None:
            self._pace.tokens = sum(self._read[self._pace.began_at : state.global_step])
        entry = {"step": state.global_step, **entry}
        if self._supervised is not None:
            entry["supervised_tokens"] = sum(self._supervised[: state.global_step])
        self._pace.step, self._pace.entry = state.global_step, entry
        self._hooks.log(entry)
        self._hooks.pace(self._pace)

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Check that the trained weights are finite, then report the checkpoint as saved."""
        for name, weight in model.named_parameters():
            if weight.requires_grad and not bool(torch.isfinite(weight).all()):
                check_finite(f"weight {name}", math.nan, state.global_step)
        if processes() > 1:
            # Every process writes its own part of the checkpoint.
            torch.distributed.barrier()
        if is_main():
            self._hooks.saved(state.global_step)
