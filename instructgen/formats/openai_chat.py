"""Reads the chat format of OpenAI and TRL: a list of messages with role and content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from instructgen.formats import Format
from instructgen.formats.conversation import (
    CONVERSATION,
    has_conversation,
    messages_of,
    tools_of,
)
from instructgen.schema.sample import Sample, Shape


class OpenAIChat(Format):
    """Rows with ``messages``, and optionally ``tools``, the definitions of tools.

    An assistant message may have ``tool_calls`` and ``reasoning_content``. The loss does not cover
    a message with ``"weight": 0`` or ``"train": false``.
    """

    name = "openai-chat"
    fields = frozenset({"messages"})
    has_metadata = True
    example: ClassVar[Mapping[str, Any]] = {
        "messages": [
            {"role": "user", "content": "Add 2 and 3."},
            {"role": "assistant", "content": "5"},
        ]
    }

    exports: ClassVar[Mapping[str, Shape]] = {"openai": "instructions", "trl": "instructions"}
    holds = CONVERSATION

    @classmethod
    def row(cls, sample: Sample, export: str) -> dict[str, Any]:
        """Return the messages and tools.

        For OpenAI, the arguments of tool calls are JSON texts, and messages that the loss does not
        cover have the weight 0. For TRL, arguments are objects, as chat templates expect.
        """
        messages = messages_of(sample.messages, text=export == "openai")
        for message in messages if export == "openai" else ():
            if message.pop("train", True) is False:
                message["weight"] = 0
        return {"messages": messages, **tools_of(sample)}

    @classmethod
    def matches(cls, record: Mapping[str, Any]) -> int:
        """Return 2 if the field ``messages`` is a list of messages, otherwise 0."""
        return 2 * has_conversation(record, "messages")

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return one sample: the last exchange, with all other messages of the conversation."""
        return [self.reader.sample(self.reader.turns(record.get("messages"), "messages"))]
