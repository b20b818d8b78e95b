"""Defines evaluation results: values with confidence intervals, and the evaluation record."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import JsonValue

from instructgen.schema.records import InputRef, JsonRecord, Plugins


@dataclass(frozen=True, slots=True)
class Estimate(JsonRecord):
    """A value, its 95% bootstrap interval, and the number of rows it was computed on."""

    value: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True, slots=True)
class Measure(JsonRecord):
    """The value of a measure for a model and, if given, for a second model on the same rows.

    ``after`` is the value for the model, ``before`` the value for the second model, and
    ``difference`` is ``after`` minus ``before``. ``better`` states which values are better:
    ``higher`` or ``lower``. ``details`` are additional values from a suite, such as the number
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
    """The contents of evaluation.json: the measures of one evaluation.

    ``against`` is the second model, if any. ``data`` are the names of the datasets, and
    ``format`` is the prompt format.
    """

    model: InputRef
    against: InputRef | None
    data: tuple[str, ...]
    format: str
    seed: int
    measures: tuple[Measure, ...]
    notes: tuple[str, ...]
    versions: dict[str, str]
    plugins: Plugins = field(default_factory=dict)
