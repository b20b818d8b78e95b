"""What pipeline.json records about the steps of a pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import JsonValue

from instructgen.schema.records import JsonRecord


@dataclass(frozen=True, slots=True)
class Fingerprint(JsonRecord):
    """What determines a step's output: its text, and digests and versions of what it uses."""

    run: str
    options: dict[str, JsonValue]
    inputs: dict[str, str]
    versions: dict[str, str]


@dataclass(slots=True)
class StepRecord(JsonRecord):
    """The last run of a step. ``output`` is the digest of its output, None before its end.

    ``seconds`` are those of all sessions of the run.
    """

    fingerprint: Fingerprint
    output: str | None = None
    seconds: float = 0.0
    ended_early: bool = False


@dataclass(frozen=True, slots=True)
class PipelineState(JsonRecord):
    """The steps of a pipeline by name: pipeline.json."""

    format: int
    steps: dict[str, StepRecord] = field(default_factory=dict)
