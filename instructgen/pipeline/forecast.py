"""What a step will take: as long as the last time, or by what was measured on two CPU cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from instructgen.pipeline.step import Step

# Seconds of a command's start, and per unit of the option that it grows with, measured with
# the embedded model (135 million parameters) on two cores of x86-64.
_MEASURED: dict[str, tuple[float, dict[str, float]]] = {
    "import": (3, {}),
    "merge": (4, {}),
    "curate": (8, {}),
    "dedup": (8, {}),
    "export": (2, {}),
    "report": (25, {}),
    "evaluate": (30, {"limit": 0.4}),
    "generate": (25, {"target": 4.5}),
    "prefer": (30, {"limit": 4.0}),
    "train sft": (40, {"tokens": 0.011, "steps": 9.0}),
    "train reward": (40, {"steps": 10.0}),
    "train dpo": (40, {"steps": 18.0}),
    "train kto": (40, {"steps": 18.0}),
    "train grpo": (60, {"steps": 15.0}),
    "train rloo": (60, {"steps": 15.0}),
    "train ppo": (60, {"steps": 25.0}),
}
# Tokens of prompts and completions with the embedded model and 146 seed tasks: per row that
# the loop keeps, and per request of the sixteen batches before the first row.
_TOKENS_PER_ROW, _TOKENS_PER_REQUEST, _FIRST_BATCHES, _BATCH = 4_400, 1_100, 16, 32
_LAST_TIME, _MEASURED_HERE = "as the last time", "as measured on two CPU cores"


@dataclass(frozen=True, slots=True)
class StepForecast:
    """Seconds, tokens that a model will read and write, and where the figures come from."""

    seconds: float
    basis: str
    tokens: int | None = None


def forecast(step: Step, known: Mapping[str, Any] | None) -> StepForecast | None:
    """What a step will take; None where nothing is known that it could be told from.

    Args:
        step: the step.
        known: what its last run left in the state.
    """
    options = step.options
    target, tokens = options.get("target"), None
    if isinstance(target, int):
        batch = options.get("batch_size", _BATCH)
        first = _FIRST_BATCHES * (batch if isinstance(batch, int) else _BATCH)
        tokens = target * _TOKENS_PER_ROW + first * _TOKENS_PER_REQUEST
    if known is not None and known["output"] is not None:
        then = known["asked"]["options"]
        if then.keys() == options.keys():
            grown = [
                options[k] / then[k]
                for k in ("target", "tokens", "steps")
                if isinstance(then.get(k), int) and isinstance(options[k], int) and then[k] > 0
            ]
            return StepForecast(known["seconds"] * max([1.0, *grown]), _LAST_TIME, tokens)
    kind = " ".join(step.argv[:2]) if step.command == "train" else step.command
    if kind not in _MEASURED:
        return None
    start, each = _MEASURED[kind]
    given = step.params
    sized = [(given[n], rate) for n, rate in each.items() if isinstance(given.get(n), int)]
    if each and not sized:
        return None
    return StepForecast(start + sum(n * rate for n, rate in sized), _MEASURED_HERE, tokens)
