"""Defines the contents of pipeline.json: the last run of each step."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import JsonValue

from instructgen.schema.records import JsonRecord


@dataclass(frozen=True, slots=True)
class Fingerprint(JsonRecord):
    """Everything that determines a step's output: its text, digests of its inputs, and versions."""

    run: str
    options: dict[str, JsonValue]
    inputs: dict[str, str]
    versions: dict[str, str]


@dataclass(slots=True)
class StepRecord(JsonRecord):
    """The last run of a step.

    ``output`` is the digest of the output; it is None until the step has finished. ``seconds`` is
    the total time of all sessions. ``ended_early`` is true if the command ended without reaching
    its target.
    """

    fingerprint: Fingerprint
    output: str | None = None
    seconds: float = 0.0
    ended_early: bool = False


@dataclass(frozen=True, slots=True)
class PipelineState(JsonRecord):
    """The contents of pipeline.json: its format, and a record for each step by name."""

    format: int
    steps: dict[str, StepRecord] = field(default_factory=dict)
