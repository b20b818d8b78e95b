"""Estimates time and tokens of a pipeline step from its last run, or from timings on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from instructgen.pipeline.records import StepRecord
from instructgen.pipeline.step import Step

# Seconds to start a command and seconds per unit of an option, measured with the included model
# (135 million parameters) on two x86-64 cores.
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
# Prompt and output tokens per accepted row with the included model and 146 seed tasks.
_TOKENS_PER_ROW = 4_400
_LAST_TIME, _MEASURED_HERE = "as in its last run", "as measured on two CPU cores"


@dataclass(frozen=True, slots=True)
class StepForecast:
    """The estimated seconds and model tokens of a step, and what the estimate is based on."""

    seconds: float
    basis: str
    tokens: int | None = None


def forecast(step: Step, record: StepRecord | None) -> StepForecast | None:
    """Return a forecast of the time and tokens of a step; None if no estimate is possible.

    Args:
        step: the pipeline step to estimate.
        record: the record of the last run of the step, or None if the step has not run.
    """
    options = step.options
    target, tokens = options.get("target"), None
    if isinstance(target, int):
        tokens = target * _TOKENS_PER_ROW
    if record is not None and record.output is not None:
        then: Mapping[str, Any] = record.fingerprint.options
        if then.keys() == options.keys():
            factors = [
                options[k] / then[k]
                for k in ("target", "tokens", "steps")
                if isinstance(then.get(k), int) and isinstance(options[k], int) and then[k] > 0
            ]
            return StepForecast(record.seconds * max([1.0, *factors]), _LAST_TIME, tokens)
    kind = " ".join(step.argv[:2]) if step.command == "train" else step.command
    if kind not in _MEASURED:
        return None
    start, per_unit = _MEASURED[kind]
    settings = step.settings
    sized = [
        (settings[n], rate) for n, rate in per_unit.items() if isinstance(settings.get(n), int)
    ]
    if per_unit and not sized:
        return None
    return StepForecast(start + sum(n * rate for n, rate in sized), _MEASURED_HERE, tokens)
