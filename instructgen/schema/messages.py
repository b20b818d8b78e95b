"""Defines the messages of a conversation: roles, texts, reasoning and tool calls.

A message has the form that OpenAI's chat API and the chat templates of Hugging Face use. This
module converts messages to that form and back; it does not know the formats of other projects.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that an assistant message contains.

    ``arguments`` is a JSON object as text (see `json_text`). ``id`` identifies the call in the
    conversation, so that a tool message can name the call that it answers; it may be empty.
    """

    name: str
    arguments: str = "{}"
    id: str = ""

    def to_dict(self, *, text: bool = False) -> dict[str, Any]:
        """Return the call as OpenAI and chat templates write it.

        Args:
            text: whether the arguments are JSON text, as in OpenAI's files, or an object, as in
                the chat templates of Hugging Face.
        """
        arguments = self.arguments if text else json.loads(self.arguments)
        call = {"type": "function", "function": {"name": self.name, "arguments": arguments}}
        return {"id": self.id, **call} if self.id else call


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    ``role`` is ``system``, ``user``, ``assistant`` or ``tool``. An assistant message may have
    ``reasoning_content`` (the reasoning before the answer) and ``tool_calls``. A tool message
    contains the result of a call: ``tool_call_id`` is the id of the call, and ``name`` the name of
    the tool, if they are known. If ``train`` is False, the training loss does not cover the
    message.
    """

    role: str
    content: str
    reasoning_content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    train: bool = True

    @property
    def plain(self) -> bool:
        """Whether the message consists only of a role and a text."""
        extra = self.reasoning_content or self.tool_calls or self.tool_call_id or self.name
        return self.role != "tool" and not extra and self.train

    @property
    def extras(self) -> dict[str, Any]:
        """Everything in the message except its role and text, without empty fields."""
        values = {
            "reasoning_content": self.reasoning_content,
            "tool_calls": [call.to_dict(text=True) for call in self.tool_calls],
            "tool_call_id": self.tool_call_id,
            "name": self.name,
        }
        extras: dict[str, Any] = {name: value for name, value in values.items() if value}
        return extras if self.train else {**extras, "train": False}

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts of the message: content, reasoning, and the names and arguments of calls."""
        calls = [f"{call.name} {call.arguments}" for call in self.tool_calls]
        return tuple(text for text in (self.reasoning_content, self.content, *calls) if text)

    def to_dict(self, *, text: bool = False) -> dict[str, Any]:
        """Return the message as a dict with role, content and the fields that are not empty.

        Args:
            text: whether the arguments of tool calls are JSON text; see `ToolCall.to_dict`.
        """
        message = {"role": self.role, "content": self.content, **self.extras}
        if self.tool_calls:
            message["tool_calls"] = [call.to_dict(text=text) for call in self.tool_calls]
        return message

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Message:
        """Convert a dict that `to_dict` returned back to a message."""
        calls = value.get("tool_calls") or ()
        return cls(
            value["role"],
            value["content"],
            value.get("reasoning_content") or "",
            tuple(_call_of(call) for call in calls),
            value.get("tool_call_id") or "",
            value.get("name") or "",
            value.get("train", True) is not False,
        )


def _call_of(value: Mapping[str, Any]) -> ToolCall:
    function = value["function"]
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json_text(arguments)
    return ToolCall(function["name"], text, value.get("id") or "")


def json_text(value: Any) -> str:
    """Return a value as compact JSON text, with the keys of objects in their order.

    Raises:
        ValueError: the value contains NaN, an infinite number or a lone surrogate.
        TypeError: the value contains something that JSON cannot express.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text.encode()
    return text


def texts_of(messages: Iterable[Message]) -> str:
    """Return all texts of the messages, joined by newlines."""
    return "\n".join(text for message in messages for text in message.texts)
