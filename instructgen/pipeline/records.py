"""Defines the contents of pipeline.json: the last run of each step."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import JsonValue

from instructgen.schema.records import JsonRecord


@dataclass(frozen=True, slots=True)
class Fingerprint(JsonRecord):
    """All that determines a step's output: its text, digests of its inputs, and versions."""

    run: str
    options: dict[str, JsonValue]
    inputs: dict[str, str]
    versions: dict[str, str]


@dataclass(slots=True)
class StepRecord(JsonRecord):
    """The last run of a step.

    ``output`` is the digest of the output, None until the step ended. ``seconds`` are the sum
    over all sessions.
    """

    fingerprint: Fingerprint
    output: str | None = None
    seconds: float = 0.0
    ended_early: bool = False


@dataclass(frozen=True, slots=True)
class PipelineState(JsonRecord):
    """The contents of pipeline.json: the records of the steps by name."""

    format: int
    steps: dict[str, StepRecord] = field(default_factory=dict)
