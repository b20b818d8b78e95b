"""Defines the rows of a dataset: samples with their provenance, and rejections with reasons.

The id of a row is derived from its content, so the same row has the same id in every run. This
module does not read or write files; `instructgen.schema.arrow` defines the Parquet columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

import orjson

from instructgen.schema.copies import changed
from instructgen.schema.messages import Message, ToolCall, texts_of

# The maximum number of characters of rows that are handled together.
CHARACTERS_AT_ONCE = 2**25
Shape = Literal["instructions", "preferences", "feedback", "documents"]
SHAPES: tuple[Shape, ...] = ("instructions", "preferences", "feedback", "documents")


class Kind(StrEnum):
    """The kind of a task: classification if the answer is one of a fixed set of labels."""

    GENERATION = "generation"
    CLASSIFICATION = "classification"


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a row: the generation method, the model, and the rows it was created from.

    ``run`` is the id of the run that generated the row. ``parents`` are the ids of the rows that
    were examples in the prompt for the instruction, in their order. ``request`` is the number of
    the model's completion in the run's journal (its recorded completions), and ``draft`` the
    number of the draft that it belongs to (in rows of earlier versions, of a batch).
    ``prompt_sha256`` is the digest of the prompt of that completion. Human-written rows have the
    method ``human`` and no run. ``record`` identifies an imported row by its id in the original
    dataset, or by its line number. Rows with the same ``group``, such as the paths through one
    conversation tree, must be in the same split.
    """

    method: str = "human"
    model: str | None = None
    run: str | None = None
    draft: int | None = None
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
class FilterValue:
    """The number that a filter compared with its thresholds, such as the words of a text.

    ``filter`` is the name of the filter, followed by what it measured if it has the choice, such as
    ``size/output``.
    """

    filter: str
    value: float


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
class Place:
    """Where a text is in a document: the file, its digest, and the positions in the text of it.

    ``heading`` are the headings above the text, joined by `` > ``, and ``page`` is the number of
    the page where it begins, from 1; None for documents without pages.
    """

    document: str
    sha256: str
    start: int
    end: int
    heading: str = ""
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of instruction data: an instruction, an optional input, and an answer.

    In a conversation, ``instruction`` is the last message of the user, and ``output`` is the last
    answer. ``history`` contains the messages before the instruction, beginning with the system
    message if there is one, and ``steps`` the messages between the instruction and the answer,
    such as calls of tools and their results. ``reasoning_content`` and ``tool_calls`` belong to
    the answer, as in `Message`; ``train`` states whether the loss covers it. ``tools`` contains
    the definitions of the tools that the conversation may use, as the JSON text of a list, or "".

    A row with a ``rejected_output``, an answer that was judged worse than ``output``, is a
    preference row. A row with a ``label`` is a feedback row: True means that a person or a model
    approved the answer, False that the answer is bad and must not be imitated.

    A row with a ``place`` is a segment of a document. Its text is the ``instruction``, and it has
    no answer.

    ``license`` is an SPDX expression, and ``attribution`` contains the names and notices to give
    credit to. ``generators`` are the models that wrote the row, or rows from which it was
    derived. ``language`` is an ISO 639 code, or ``und`` if the language is unknown;
    ``language_confidence`` is the likelihood of the language if a program identified it.
    ``filter_values`` are the numbers on which filters decided, so that the effect of another
    threshold can be computed from a dataset; scores of models are in ``scores``.
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
    language_confidence: float | None = None
    label: bool | None = None
    steps: tuple[Message, ...] = ()
    reasoning_content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    train: bool = True
    rejected_reasoning_content: str = ""
    rejected_tool_calls: tuple[ToolCall, ...] = ()
    tools: str = ""
    filter_values: tuple[FilterValue, ...] = ()
    place: Place | None = None

    @property
    def question(self) -> str:
        """The instruction, followed by a blank line and the input if there is one."""
        return f"{self.instruction}\n\n{self.input}" if self.input else self.instruction

    @property
    def context(self) -> str:
        """The text of all messages in the history and the steps, joined by newlines."""
        return texts_of((*self.history, *self.steps))

    @property
    def calls(self) -> str:
        """The text of the tool calls and the reasoning of both answers, or ""."""
        if self._simple_answers:
            return ""
        answers = (self.answer, self.rejected_answer)
        return texts_of(replace(a, content="") for a in answers if a is not None and not a.plain)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All messages before the answer: history, question (a user message) and steps."""
        return (*self.history, Message("user", self.question), *self.steps)

    @property
    def answer(self) -> Message:
        """The output as an assistant message, with its reasoning and tool calls."""
        return Message(
            "assistant", self.output, self.reasoning_content, self.tool_calls, train=self.train
        )

    @property
    def rejected_answer(self) -> Message | None:
        """The rejected output as an assistant message, or None if the row has none."""
        if self.rejected_output is None:
            return None
        return Message(
            "assistant",
            self.rejected_output,
            self.rejected_reasoning_content,
            self.rejected_tool_calls,
        )

    @property
    def messages(self) -> tuple[Message, ...]:
        """All messages of the row: those of `prompt`, and then the answer."""
        return (*self.prompt, self.answer)

    @property
    def shape(self) -> Shape:
        """``documents`` for a segment, ``preferences`` with a rejected output, or ``feedback``."""
        if self.place is not None:
            return "documents"
        if self.rejected_output is not None:
            return "preferences"
        return "instructions" if self.label is None else "feedback"

    @property
    def plain(self) -> bool:
        """Whether the conversation consists only of roles and texts, without tools."""
        simple = not self.tools and self.train and self._simple_answers
        return simple and all(m.plain for m in (*self.history, *self.steps))

    @property
    def _simple_answers(self) -> bool:
        calls = self.tool_calls or self.rejected_tool_calls
        return not (calls or self.reasoning_content or self.rejected_reasoning_content)

    @property
    def characters(self) -> int:
        """The number of characters of the row, to limit how many rows are held in memory."""
        texts = (self.instruction, self.input, self.output, self.rejected_output or "")
        marks = (self.source, self.license, self.category or "", self.tools, self.calls)
        lists = (*self.attribution, *self.generators, *(v.value for v in self.labels))
        return sum(map(len, (*texts, *marks, *lists, self.context)))

    @property
    def id(self) -> str:
        """The first 16 hex digits of the SHA-256 of all texts of the row."""
        parts = [self.instruction, self.input, self.output]
        for message in self.history:
            parts += [message.role, message.content, *_extras(message)]
        if self.rejected_output is not None:
            parts += ["rejected", self.rejected_output, ""]
        if not self.plain or self.steps:
            # No role is empty, so these parts never equal those of another plain row.
            parts += ["", "answer", *_extras(self.answer), "", "tools", self.tools]
            for message in self.steps:
                parts += [message.role, message.content, *_extras(message)]
            if (rejected := self.rejected_answer) is not None:
                parts += ["", "rejected", *_extras(rejected)]
        if self.label is not None:
            parts += ["", "label", str(self.label)]
        if self.place is not None:
            parts += ["", "place", self.place.document, str(self.place.start)]
        return content_id(*parts)

    def with_answer(self, output: str, rejected: str | None = None) -> Sample:
        """Return a copy of the row with other answers, which consist only of text."""
        return changed(
            self,
            output=output,
            reasoning_content="",
            tool_calls=(),
            train=True,
            rejected_output=rejected,
            rejected_reasoning_content="",
            rejected_tool_calls=(),
        )

    def score(self, name: str) -> Score | None:
        """Return the score with this name, or None if the row does not have it."""
        return next((s for s in self.scores if s.name == name), None)

    def with_score(self, score: Score) -> Sample:
        """Return a copy of the row with this score. A score with the same name is replaced."""
        others = tuple(s for s in self.scores if s.name != score.name)
        return changed(self, scores=(*others, score))

    def with_filter_values(self, values: Mapping[str, float]) -> Sample:
        """Return a copy of the row with these values, which replace those of the same filters."""
        merged = {v.filter: v.value for v in self.filter_values} | dict(values)
        return changed(self, filter_values=tuple(FilterValue(*item) for item in merged.items()))

    def with_label(self, label: Label) -> Sample:
        """Return a copy of the row with this label. A label with the same name is replaced."""
        others = tuple(each for each in self.labels if each.name != label.name)
        return changed(self, labels=(*others, label))


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


def _extras(message: Message) -> tuple[str, ...]:
    return () if message.plain else ("", orjson.dumps(message.extras).decode())


def content_id(*parts: str) -> str:
    """Encode texts as a JSON list, and return the first 16 hex digits of its SHA-256."""
    # In JSON, different lists of texts never give the same bytes.
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()[:16]
