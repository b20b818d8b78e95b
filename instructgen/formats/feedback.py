"""Reads feedback: single answers that a person or a model approved or rejected, as for KTO."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from instructgen.formats import (
    Conversion,
    Format,
    RowError,
    UnusedRow,
    bad_record,
    detect_format,
)
from instructgen.formats.conversation import (
    CONVERSATION,
    Turns,
    messages_of,
    text_turns,
    tools_of,
)
from instructgen.formats.fields import truth
from instructgen.formats.metadata import with_metadata
from instructgen.formats.records import Record
from instructgen.schema.sample import Sample, Shape

_LABELS = ("label", "kto_tag")


class Feedback(Format):
    """Rows with a ``label`` (true or false), and a conversation or ``prompt`` and ``completion``.

    The conversation may have any format for conversations or instructions, such as ``messages``,
    ``conversations``, or ``instruction`` and ``output``. With ``--as=instructions``, only rows with
    a positive label are used: an answer with a negative label must not be learned.
    """

    name = "feedback"
    fields = frozenset({"prompt", "completion", "label"})
    has_metadata = True
    method = "model"
    shapes = ("feedback", "instructions")
    example: ClassVar[Mapping[str, Any]] = {
        "prompt": "Add 2 and 3.",
        "completion": "5",
        "label": True,
    }

    exports: ClassVar[Mapping[str, Shape]] = {"trl-feedback": "feedback"}
    holds = CONVERSATION

    @classmethod
    def row(cls, sample: Sample, export: str) -> dict[str, Any]:
        """Return a feedback row in the conversational format of TRL."""
        return {
            "prompt": messages_of(sample.prompt),
            "completion": messages_of([sample.answer]),
            "label": sample.label,
            **tools_of(sample),
        }

    @classmethod
    def matches(cls, record: Mapping[str, Any]) -> int:
        """Return 6 if the record has a label and a conversation without a pair, otherwise 0."""
        if "chosen" in record or not any(name in record for name in _LABELS):
            return 0
        if _has_completion(record):
            # A label that cannot be read is an error, not a column to ignore.
            return 6
        return 6 * (_label(record) is not None and _conversational(record) is not None)

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return one feedback row."""
        label = _label(record)
        if label is None:
            raise RowError(
                "the label is neither good nor bad (such as true and false, or 1 and 0). Name "
                "another format to ignore it."
            )
        if _has_completion(record):
            prompt = text_turns(self.reader, record, "prompt", "user")
            answer = text_turns(self.reader, record, "completion", "assistant")
            models = tuple(sorted({*prompt.models, *answer.models}))
            turns = Turns((*prompt.messages, *answer.messages), prompt.tools, models)
            return [replace(self.reader.sample(turns), label=label)]
        format = _conversational(record)
        if format is None:
            raise RowError("the row has no conversation, and no prompt and completion.")
        return [replace(s, label=label) for s in format(reader=self.reader).samples(record)]

    def convert_all(self, records: Iterable[Record]) -> Iterator[Conversion]:
        """Convert all records; for instructions, rows with a negative label are not used."""
        for record in records:
            try:
                (sample,) = self.samples(record.fields)
                sample = with_metadata(sample, record.fields)
            except RowError as error:
                yield Conversion(record.line, 0, [], [bad_record(record, str(error))])
                continue
            if self.shape == "feedback":
                yield Conversion(record.line, 1, [sample])
            elif sample.label:
                yield Conversion(record.line, 1, [replace(sample, label=None)])
            else:
                reason = "the label is negative, so the answer must not be learned."
                sample = replace(sample, label=None)
                unused = UnusedRow(record.line, "negative_label", reason, sample)
                yield Conversion(record.line, 0, [], [unused])


def _label(record: Mapping[str, Any]) -> bool | None:
    return next((t for n in _LABELS if (t := truth(record.get(n))) is not None), None)


def _has_completion(record: Mapping[str, Any]) -> bool:
    return bool(record.get("prompt")) and record.get("completion") is not None


def _conversational(record: Mapping[str, Any]) -> type[Format] | None:
    """Return the format of the record without its label, if it is a single conversation."""
    rest = {name: value for name, value in record.items() if name not in _LABELS}
    format = detect_format(rest, "instructions")
    return format if format is not None and format.has_metadata and format is not Feedback else None
