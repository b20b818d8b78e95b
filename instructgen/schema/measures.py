"""Defines measures of models: values with intervals, and the record of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import JsonValue

from instructgen.schema.records import InputRef, JsonRecord, Plugins


@dataclass(frozen=True, slots=True)
class Estimate(JsonRecord):
    """A value, its 95% bootstrap interval, and the number of rows it was measured on."""

    value: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True, slots=True)
class Measure(JsonRecord):
    """A measure of a model and, if there is one, of a second model on the same rows.

    ``difference`` is the first minus the second. ``better`` is ``higher`` or ``lower``.
    ``details`` are further values of a suite, such as the number of abstentions of a judge.
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

    ``data`` are the names of the datasets, ``format`` is the prompt format.
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
