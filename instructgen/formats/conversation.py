"""Converts a conversation to a sample, and accepts common names of roles, such as ``human``."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from instructgen.formats import RowError, text
from instructgen.schema.sample import Edit, Message, Sample

# The role names that FastChat, Axolotl and LLaMA-Factory read, and others that datasets use.
_ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "instruction", "question"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "model", "bot", "bard", "bing", "claude", "answer"),
        "assistant",
    ),
    **dict.fromkeys(("system", "developer"), "system"),
}


def turns(value: Any, field: str, role: str = "role", content: str = "content") -> list[Message]:
    """Convert a list of JSON objects to messages with the role user, assistant or system.

    Args:
        value: the list of objects.
        field: the name of the field that contains the list, for error messages.
        role: the key of the role in each object.
        content: the key of the content, which is text or a list of parts of type ``text``.

    Raises:
        RowError: if the value is not a list of messages, or a role is unknown.
    """
    if not isinstance(value, list) or not value:
        raise RowError(f'"{field}" is not a list of messages.')
    messages = []
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, Mapping):
            raise RowError(f'message {number} of "{field}" is not a JSON object.')
        name = turn.get(role)
        known_role = _ROLES.get(name.strip().lower()) if isinstance(name, str) else None
        if known_role is None:
            raise RowError(
                f'message {number} of "{field}" has the unknown role {str(name)[:40]!r}.'
            )
        fields = {content: _joined_parts(turn.get(content))}
        messages.append(Message(known_role, text(fields, content, filled=False)))
    return messages


def _joined_parts(content: Any) -> Any:
    """Join the texts of a list of OpenAI content parts; return any other value unchanged."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(p, Mapping) and p.get("type") == "text" for p in content):
        raise RowError('a message contains a part whose type is not "text".')
    return "\n".join(text(part, "text", filled=False) for part in content)


def sample_of_turns(messages: Sequence[Message]) -> Sample:
    """Convert a conversation to a sample: the last question and answer, and the history.

    Consecutive messages of one role are joined. Empty messages, an assistant message before
    the first user message, and a last user message without an answer are removed. Each of
    these changes is recorded as an edit.

    Raises:
        RowError: if no user message has an answer, or if a system message is not at the start.
    """
    edits = []
    system = list(itertools.takewhile(lambda m: m.role == "system", messages))
    rest = [m for m in messages[len(system) :] if m.content]
    if len(rest) < len(messages) - len(system):
        edits.append("empty messages were removed")
    if any(m.role == "system" for m in rest):
        raise RowError("a system message is not at the start of the conversation.")
    joined = [
        Message(role, "\n\n".join(m.content for m in group))
        for role, group in itertools.groupby(rest, key=lambda m: m.role)
    ]
    if len(joined) < len(rest):
        edits.append("consecutive messages of one role were joined")
    if joined and joined[0].role == "assistant":
        del joined[0]
        edits.append("an assistant message before the first user message was removed")
    if joined and joined[-1].role == "user":
        del joined[-1]
        edits.append("the last user message, which has no answer, was removed")
    if not joined:
        raise RowError("the conversation has no user message with an answer.")
    *history, question, answer = joined
    first = [Message("system", "\n\n".join(m.content for m in system))] if system else []
    return Sample(
        instruction=question.content,
        output=answer.content,
        history=(*(m for m in first if m.content), *history),
        edits=tuple(Edit("import", "messages", detail) for detail in edits),
    )


def preference(chosen: Iterable[Message], rejected: Iterable[Message]) -> Sample:
    """Combine two conversations that differ only in their last answer into a preference sample.

    Raises:
        RowError: if the conversations differ before the last answer, or are identical.
    """
    better, worse = sample_of_turns(list(chosen)), sample_of_turns(list(rejected))
    if better.prompt != worse.prompt:
        raise RowError('"chosen" and "rejected" differ before the last answer.')
    if better.output == worse.output:
        raise RowError('"chosen" and "rejected" are identical.')
    return replace(better, rejected_output=worse.output)
