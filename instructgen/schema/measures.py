"""Defines evaluation results: values with confidence intervals, and the file evaluation.json."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, JsonValue

from instructgen.schema.records import InputRef, JsonRecord, Plugins


def _parsed(value: Any) -> Any:
    if isinstance(value, str):
        low, _, high = value.partition(":")
        with suppress(ValueError):
            return float(low), float(high)
        raise ValueError(f"{value!r} must have the form MIN:MAX, such as 0.1:0.9")
    return value


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= value[0] <= value[1] <= 1:
        raise ValueError("must be two fractions from 0 to 1, the smaller one first")
    return value


# The minimum and maximum fraction of correct answers to a prompt; as text, such as 0.1:0.9.
PassRate = Annotated[tuple[float, float], BeforeValidator(_parsed), AfterValidator(_ordered)]


@dataclass(frozen=True, slots=True)
class Estimate(JsonRecord):
    """A value, its 95% bootstrap confidence interval, and the number of rows it is based on."""

    value: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True, slots=True)
class Measure(JsonRecord):
    """The value of a measure for a model and, if there is one, for a second model on the same rows.

    ``after`` is the value for the first model, ``before`` is the value for the second model, and
    ``difference`` is ``after`` minus ``before``. ``better`` is ``higher`` if higher values are
    better, or ``lower`` if lower values are better. ``suite`` is the name of the evaluation suite
    that computed the values. ``details`` are additional values from the suite, such as the number
    of abstentions of a judge.
    """

    measure: str
    after: Estimate
    before: Estimate | None = None
    difference: Estimate | None = None
    better: str = ""
    suite: str = ""
    details: dict[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EvaluationRecord(JsonRecord):
    """The contents of evaluation.json: the measures from one run of `instructgen evaluate`.

    ``model`` is the evaluated model, and ``against`` is the second model, if there is one.
    ``data`` are the names of the datasets, and ``format`` is the format of the models' prompts.
    """

    model: InputRef
    against: InputRef | None
    data: tuple[str, ...]
    format: str
    seed: int
    measures: tuple[Measure, ...]
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    plugins: Plugins = field(default_factory=dict)
