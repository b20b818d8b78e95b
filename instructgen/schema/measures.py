"""Defines evaluation results: values with confidence intervals, and the file evaluation.json."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import JsonValue

from instructgen.schema.records import InputRef, JsonRecord, Plugins


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
