"""The rows: a sample with its provenance, and a rejection with its reason.

Ids are made from content, so the same row has the same id in every run. This
module reads and writes no files; `instructgen.schema.arrow` knows the Parquet columns.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

import orjson

Shape = Literal["instructions", "preferences"]


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
    was. Rows written by people have a method of ``human`` and no run. ``record``
    is where an imported row stood: its id in its dataset, or the number of its
    line. Rows of one ``group``, such as the paths of one tree, belong on the
    same side of a split.
    """

    method: str = "human"
    model: str | None = None
    run: str | None = None
    batch: int | None = None
    request: int | None = None
    parents: tuple[str, ...] = ()
    prompt_sha256: str | None = None
    record: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """A named number about a row, or the error that kept it from being known."""

    name: str
    value: float | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """Something a source says of a row in words, such as its status."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Edit:
    """What a transform did to a row: the filter's name, the field, and what it changed."""

    filter: str
    field: str
    detail: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of instruction data: a task, its input if any, and its answer.

    Of a conversation, ``instruction`` and ``output`` are the last exchange and
    ``history`` all that was said before it, a system message first. With a
    ``rejected_output``, an answer that was liked less than ``output``, the row is a
    preference.

    ``license`` is an SPDX expression, ``attribution`` the credits that go with the
    row. ``generators`` are the models that wrote it or what it was written from.
    ``language`` is an ISO 639 code, or ``und`` where nothing is known.
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
    history: tuple[Message, ...] = ()
    rejected_output: str | None = None
    attribution: tuple[str, ...] = ()
    generators: tuple[str, ...] = ()
    labels: tuple[Label, ...] = ()
    edits: tuple[Edit, ...] = ()

    @property
    def question(self) -> str:
        """The instruction, and its input after a blank line."""
        return f"{self.instruction}\n\n{self.input}" if self.input else self.instruction

    @property
    def context(self) -> str:
        """All that was said before the instruction, as one text."""
        return "\n".join(message.content for message in self.history)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All that the output answers, as a conversation."""
        return (*self.history, Message("user", self.question))

    @property
    def messages(self) -> tuple[Message, ...]:
        """The row as a conversation."""
        return (*self.prompt, Message("assistant", self.output))

    @property
    def shape(self) -> Shape:
        """The kind of dataset that the row fits into."""
        return "instructions" if self.rejected_output is None else "preferences"

    @property
    def id(self) -> str:
        """16 hex digits of the SHA-256 of all that was said."""
        parts = [self.instruction, self.input, self.output]
        for message in self.history:
            parts += [message.role, message.content]
        if self.rejected_output is not None:
            parts += ["rejected", self.rejected_output, ""]
        return content_id(*parts)

    def score(self, name: str) -> Score | None:
        """The score of this name, if the row has one."""
        return next((s for s in self.scores if s.name == name), None)

    def with_score(self, score: Score) -> Sample:
        """With this score in place of one of the same name."""
        others = tuple(s for s in self.scores if s.name != score.name)
        return replace(self, scores=(*others, score))


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
