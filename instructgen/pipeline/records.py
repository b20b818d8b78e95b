"""Defines the contents of pipeline.json, which describes the last run of each step."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import JsonValue

from instructgen.schema.records import JsonRecord


@dataclass(frozen=True, slots=True)
class Fingerprint(JsonRecord):
    """Everything that determines a step's output; if it changes, the step must run again.

    ``run`` is the command of the step, and ``inputs`` maps each input to its digest.
    """

    run: str
    options: dict[str, JsonValue]
    inputs: dict[str, str]
    versions: dict[str, str]


@dataclass(slots=True)
class StepRecord(JsonRecord):
    """The last run of a step.

    ``output`` is the digest of the output, or None until the step has finished. ``seconds`` is
    the total time of the step, including interrupted attempts. ``ended_early`` is true if the
    command ended without reaching its target, such as a number of rows to generate.
    """

    fingerprint: Fingerprint
    output: str | None = None
    seconds: float = 0.0
    ended_early: bool = False


@dataclass(frozen=True, slots=True)
class PipelineState(JsonRecord):
    """The contents of pipeline.json: its format version, and the record of each step by name."""

    format: int
    steps: dict[str, StepRecord] = field(default_factory=dict)
