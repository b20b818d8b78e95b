"""The rows: a sample with its provenance, a rejection with its reason, and their Parquet schemas.

Ids are made from content, so the same row has the same id in every run. This
module reads and writes no files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson


class Kind(StrEnum):
    """Whether a task is answered with one of a fixed set of labels."""

    GENERATION = "generation"
    CLASSIFICATION = "classification"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row comes from.

    ``parents`` are the ids of the demonstrations its instruction was written
    from, in prompt order. ``batch`` and ``request`` find the completion that
    wrote the row in the run's journal; ``prompt_sha256`` proves which prompt it
    was. Rows written by people have a method of ``human`` and no run.
    """

    method: str = "human"
    model: str | None = None
    run: str | None = None
    batch: int | None = None
    request: int | None = None
    parents: tuple[str, ...] = ()
    prompt_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """A named number about a row, or the error that kept it from being known."""

    name: str
    value: float | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of instruction data: a task, its input if any, and its answer.

    ``license`` is an SPDX expression. ``language`` is an ISO 639 code, or
    ``und`` where nothing is known.
    """

    instruction: str
    input: str = ""
    output: str = ""
    kind: Kind | None = None
    category: str | None = None
    language: str = "und"
    source: str = ""
    license: str = ""
    origin: Origin = field(default_factory=Origin)
    scores: tuple[Score, ...] = ()

    @property
    def messages(self) -> tuple[Message, ...]:
        """The row as a conversation: the input follows its instruction after a blank line."""
        question = f"{self.instruction}\n\n{self.input}" if self.input else self.instruction
        return (Message("user", question), Message("assistant", self.output))

    @property
    def id(self) -> str:
        """16 hex digits of the SHA-256 of instruction, input and output."""
        return content_id(self.instruction, self.input, self.output)


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why something is not in the dataset.

    ``reason`` is a short code, ``detail`` a sentence for people. ``score`` is
    the number that decided and ``nearest`` the id of the row it was compared
    with, where the filter compares.
    """

    filter: str
    reason: str
    detail: str = ""
    score: float | None = None
    nearest: str | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A candidate together with the reason it was rejected.

    ``stage`` is the stage of the method it was lost at. ``number`` counts the
    rejections of a run, so that two equal candidates have two ids.
    """

    sample: Sample
    rejection: Rejection
    stage: str
    number: int

    @property
    def id(self) -> str:
        """``r-`` and 14 hex digits."""
        s, r = self.sample, self.rejection
        parts = (str(self.number), self.stage, r.reason, s.instruction, s.input, s.output)
        return "r-" + content_id(*parts)[:14]


def content_id(*parts: str) -> str:
    """16 hex digits of the SHA-256 of the parts; no two lists of parts share a text to hash."""
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()[:16]


def sample_row(sample: Sample) -> dict[str, Any]:
    """A sample as a row of the dataset's Parquet schema."""
    return {
        "id": sample.id,
        "messages": [{"role": m.role, "content": m.content} for m in sample.messages],
        **_fields(sample),
        "scores": [{"name": s.name, "value": s.value, "error": s.error} for s in sample.scores],
    }


def sample_of(row: Mapping[str, Any]) -> Sample:
    """The sample that `sample_row` made this row from."""
    origin = dict(row["origin"])
    return Sample(
        instruction=row["instruction"],
        input=row["input"],
        output=row["output"],
        kind=None if row["kind"] is None else Kind(row["kind"]),
        category=row["category"],
        language=row["language"],
        source=row["source"],
        license=row["license"],
        origin=Origin(**{**origin, "parents": tuple(origin["parents"])}),
        scores=tuple(Score(**score) for score in row.get("scores") or ()),
    )


def rejected_row(rejected: Rejected) -> dict[str, Any]:
    """A rejected candidate as a row of the ``rejected`` Parquet schema."""
    r = rejected.rejection
    return {
        "id": rejected.id,
        "stage": rejected.stage,
        "filter": r.filter,
        "reason": r.reason,
        "detail": r.detail,
        "score": r.score,
        "nearest": r.nearest,
        **_fields(rejected.sample),
    }


def _fields(sample: Sample) -> dict[str, Any]:
    o = sample.origin
    return {
        "instruction": sample.instruction,
        "input": sample.input,
        "output": sample.output,
        "kind": None if sample.kind is None else str(sample.kind),
        "category": sample.category,
        "language": sample.language,
        "source": sample.source,
        "license": sample.license,
        "origin": {
            "method": o.method,
            "model": o.model,
            "run": o.run,
            "batch": o.batch,
            "request": o.request,
            "parents": list(o.parents),
            "prompt_sha256": o.prompt_sha256,
        },
    }


def sample_schema() -> Any:
    """The Arrow schema of a dataset's ``data`` parts."""
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    score = pa.struct([("name", pa.string()), ("value", pa.float64()), ("error", pa.string())])
    return pa.schema(
        [
            ("id", pa.string()),
            ("messages", pa.list_(message)),
            *_schema_fields(),
            ("scores", pa.list_(score)),
        ]
    )


def rejected_schema() -> Any:
    """The Arrow schema of a dataset's ``rejected`` parts."""
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.string()),
            ("stage", pa.string()),
            ("filter", pa.string()),
            ("reason", pa.string()),
            ("detail", pa.string()),
            ("score", pa.float64()),
            ("nearest", pa.string()),
            *_schema_fields(),
        ]
    )


def _schema_fields() -> list[tuple[str, Any]]:
    import pyarrow as pa

    text = pa.string()
    origin = pa.struct(
        [
            ("method", text),
            ("model", text),
            ("run", text),
            ("batch", pa.int64()),
            ("request", pa.int64()),
            ("parents", pa.list_(text)),
            ("prompt_sha256", text),
        ]
    )
    names = (
        "instruction",
        "input",
        "output",
        "kind",
        "category",
        "language",
        "source",
        "license",
    )
    return [*((name, text) for name in names), ("origin", origin)]
