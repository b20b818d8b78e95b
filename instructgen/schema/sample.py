"""Defines the rows of a dataset: samples with their provenance, and rejections with reasons.

The id of a row is derived from its content, so the same row has the same id in every run. This
module does not read or write files; `instructgen.schema.arrow` defines the Parquet columns.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

import orjson

Shape = Literal["instructions", "preferences"]


class Kind(StrEnum):
    """The kind of a task: classification if the answer is one of a fixed set of labels."""

    GENERATION = "generation"
    CLASSIFICATION = "classification"


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation: the role of its author, such as ``user``, and its text."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a row: the generation method, the model, and the rows it was created from.

    ``run`` is the id of the run that generated the row. ``parents`` are the ids of the rows that
    were examples in the prompt for the instruction, in their order. ``batch`` and ``request``
    identify the model's completion in the run's journal (its recorded completions), and
    ``prompt_sha256`` is the digest of the prompt of that completion. Human-written rows have the
    method ``human`` and no run. ``record`` identifies an imported row by its id in the original
    dataset, or by its line number. Rows with the same ``group``, such as the paths through one
    conversation tree, must be in the same split.
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
    """A score of a row: the name, and the value or the error that prevented its computation."""

    name: str
    value: float | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """A named text that the source dataset contains about a row, such as its review status."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Edit:
    """A change that a filter made to a row: the filter, the changed field, and a description."""

    filter: str
    field: str
    detail: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of instruction data: an instruction, an optional input, and an answer.

    In a conversation, ``instruction`` is the last message of the user, ``output`` is the answer
    to it, and ``history`` contains the earlier messages, beginning with the system message if
    there is one. A row with a ``rejected_output``, an answer that was judged worse than
    ``output``, is a preference row.

    ``license`` is an SPDX expression, and ``attribution`` contains the names to credit and the
    notices to include. ``generators`` are the models that wrote this row, or that wrote rows from
    which this row was derived. ``language`` is an ISO 639 code, or ``und`` if it is unknown.
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
        """The instruction, followed by a blank line and the input if there is one."""
        return f"{self.instruction}\n\n{self.input}" if self.input else self.instruction

    @property
    def context(self) -> str:
        """The text of all messages in the history, joined by newlines."""
        return "\n".join(message.content for message in self.history)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All messages before the output: the history, and the question as a user message."""
        return (*self.history, Message("user", self.question))

    @property
    def messages(self) -> tuple[Message, ...]:
        """All messages of the row: those of `prompt`, and the output as an assistant message."""
        return (*self.prompt, Message("assistant", self.output))

    @property
    def shape(self) -> Shape:
        """``preferences`` if the row has a rejected output, otherwise ``instructions``."""
        return "instructions" if self.rejected_output is None else "preferences"

    @property
    def id(self) -> str:
        """The first 16 hex digits of a SHA-256 of the instruction, input, answers and history."""
        parts = [self.instruction, self.input, self.output]
        for message in self.history:
            parts += [message.role, message.content]
        if self.rejected_output is not None:
            parts += ["rejected", self.rejected_output, ""]
        return content_id(*parts)

    def score(self, name: str) -> Score | None:
        """Return the score with this name, or None if the row does not have it."""
        return next((s for s in self.scores if s.name == name), None)

    def with_score(self, score: Score) -> Sample:
        """Return a copy of the row with this score. A score with the same name is replaced."""
        others = tuple(s for s in self.scores if s.name != score.name)
        return replace(self, scores=(*others, score))


@dataclass(frozen=True, slots=True)
class Rejection:
    """The reason why a filter rejected a row.

    ``reason`` is a short code, and ``detail`` is a sentence for the user. ``score`` is the
    number that was outside the limits of the filter, if there is one. ``nearest`` is the id of
    the most similar row, if the filter compares rows.
    """

    filter: str
    reason: str
    detail: str = ""
    score: float | None = None
    nearest: str | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A candidate row that was rejected, and the reason for its rejection.

    ``stage`` is the command, or the stage of a generation method, that rejected the row.
    ``number`` counts the rejections of a run, so that two equal rejected rows have different ids.
    """

    sample: Sample
    rejection: Rejection
    stage: str
    number: int

    @property
    def id(self) -> str:
        """The id of the rejection: ``r-`` and 14 hex digits."""
        s, r = self.sample, self.rejection
        parts = (str(self.number), self.stage, r.reason, s.instruction, s.input, s.output)
        return "r-" + content_id(*parts)[:14]


def content_id(*parts: str) -> str:
    """Encode texts as a JSON list, and return the first 16 hex digits of its SHA-256."""
    # In JSON, different lists of texts never give the same bytes.
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()[:16]
