"""Reads the ShareGPT format: conversations with a model. Accepts several names for the keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from instructgen.formats import Format
from instructgen.formats.conversation import (
    CONVERSATION,
    calls_text,
    has_conversation,
    with_tags,
)
from instructgen.schema.messages import Message
from instructgen.schema.sample import Sample, Shape

_FIELDS = ("conversations", "conversation", "turns", "dialog", "dialogue")


class ShareGPT(Format):
    """Rows with ``conversations`` (a list of messages), and optionally ``system`` and ``tools``.

    The turns ``function_call`` and ``observation`` are calls of tools and their results. A
    speaker ``gpt`` is a model whose name is unknown, so such rows do not count as human-written.
    """

    name = "sharegpt"
    fields = frozenset({"conversations"})
    has_metadata = True
    example: ClassVar[Mapping[str, Any]] = {
        "conversations": [
            {"from": "human", "value": "Add 2 and 3."},
            {"from": "gpt", "value": "5"},
        ]
    }

    exports: ClassVar[Mapping[str, Shape]] = {"sharegpt": "instructions"}
    holds = CONVERSATION - {"train", "tool_call_id", "name"}

    @classmethod
    def row(cls, sample: Sample, export: str) -> dict[str, Any]:
        """Return the turns as LLaMA-Factory reads them, and the tools as JSON text."""
        turns = [{"from": _speaker(m), "value": _value(m)} for m in sample.messages]
        return {"conversations": turns, **({"tools": sample.tools} if sample.tools else {})}

    @classmethod
    def matches(cls, record: Mapping[str, Any]) -> int:
        """Return 2 if a field contains a conversation, otherwise 0."""
        return 2 * (_field(record) is not None)

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return one sample: the last exchange, with all other messages of the conversation."""
        field = _field(record) or "conversations"
        return [self.reader.sample(self.reader.turns(record.get(field), field))]


def _speaker(message: Message) -> str:
    if message.tool_calls and not message.content:
        return "function_call"
    speakers = {"user": "human", "assistant": "gpt", "tool": "observation"}
    return speakers.get(message.role, message.role)


def _value(message: Message) -> str:
    if _speaker(message) != "function_call":
        return with_tags(message)
    return with_tags(replace(message, content=calls_text(message), tool_calls=()))


def _field(record: Mapping[str, Any]) -> str | None:
    return next((name for name in _FIELDS if has_conversation(record, name)), None)
