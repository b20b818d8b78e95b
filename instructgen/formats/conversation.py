"""Turns of a conversation, by whatever names a dataset calls the speakers, as a sample."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from instructgen.formats import RowError, text
from instructgen.schema.sample import Edit, Message, Sample

# As FastChat, Axolotl and LLaMA-Factory read them, and what stands in files besides.
_ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "instruction", "question"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "model", "bot", "bard", "bing", "claude", "answer"),
        "assistant",
    ),
    **dict.fromkeys(("system", "developer"), "system"),
}


def turns(value: Any, field: str, role: str = "role", content: str = "content") -> list[Message]:
    """The messages of a list of records, their roles in our words.

    Args:
        value: the list.
        field: its name, for messages.
        role: the key of who speaks.
        content: the key of what is said; text, or a list of parts of type text.

    Raises:
        RowError: it is no such list, or somebody speaks who is none of the three.
    """
    if not isinstance(value, list) or not value:
        raise RowError(f'"{field}" is no list of messages.')
    found = []
    for place, turn in enumerate(value, start=1):
        if not isinstance(turn, Mapping):
            raise RowError(f'"{field}" {place} is no message.')
        name = turn.get(role)
        speaker = _ROLES.get(name.strip().lower()) if isinstance(name, str) else None
        if speaker is None:
            raise RowError(
                f'"{field}" {place} is said by {str(name)[:40]!r}, whom we cannot place.'
            )
        said = {content: _joined(turn.get(content))}
        found.append(Message(speaker, text(said, content, filled=False)))
    return found


def _joined(content: Any) -> Any:
    """The text of OpenAI's content parts; anything else as it is."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(p, Mapping) and p.get("type") == "text" for p in content):
        raise RowError("a message holds more than text.")
    return "\n".join(text(part, "text", filled=False) for part in content)


def sample_of_turns(messages: Sequence[Message]) -> Sample:
    """A conversation as a sample: the last question with its answer, the rest as history.

    Several messages of one speaker in a row become one. What comes before the
    first question, and a last question without an answer, is left out. Each of
    these is recorded as an edit.

    Raises:
        RowError: nothing is asked, or nothing answered.
    """
    edits = []
    system = list(itertools.takewhile(lambda m: m.role == "system", messages))
    rest = [m for m in messages[len(system) :] if m.content]
    if len(rest) < len(messages) - len(system):
        edits.append("empty messages were left out")
    if any(m.role == "system" for m in rest):
        raise RowError("a system message stands inside the conversation.")
    joined = [
        Message(role, "\n\n".join(m.content for m in said))
        for role, said in itertools.groupby(rest, key=lambda m: m.role)
    ]
    if len(joined) < len(rest):
        edits.append("messages of one speaker in a row were joined")
    if joined and joined[0].role == "assistant":
        del joined[0]
        edits.append("an answer before the first question was left out")
    if joined and joined[-1].role == "user":
        del joined[-1]
        edits.append("the last question, which has no answer, was left out")
    if not joined:
        raise RowError("the conversation has no question with an answer.")
    *history, question, answer = joined
    first = [Message("system", "\n\n".join(m.content for m in system))] if system else []
    return Sample(
        instruction=question.content,
        output=answer.content,
        history=(*(m for m in first if m.content), *history),
        edits=tuple(Edit("import", "messages", detail) for detail in edits),
    )


def preference(chosen: Iterable[Message], rejected: Iterable[Message]) -> Sample:
    """Two conversations that differ in their last answer as a preference.

    Raises:
        RowError: they differ before it, or not at all.
    """
    better, worse = sample_of_turns(list(chosen)), sample_of_turns(list(rejected))
    if better.prompt != worse.prompt:
        raise RowError('"chosen" and "rejected" differ before the last answer.')
    if better.output == worse.output:
        raise RowError('"chosen" and "rejected" are the same.')
    return replace(better, rejected_output=worse.output)
