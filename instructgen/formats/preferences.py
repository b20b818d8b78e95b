"""Reads preferences in the forms of TRL, LLaMA-Factory, Orca and UltraFeedback (binarized)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from instructgen.formats import Format, RowError, number, text
from instructgen.formats.alpaca import history_of
from instructgen.formats.conversation import (
    CONVERSATION,
    Turns,
    has_conversation,
    messages_of,
    preference,
    text_turns,
    tools_of,
)
from instructgen.formats.hh_rlhf import is_transcript
from instructgen.schema.messages import Message
from instructgen.schema.sample import Sample, Score, Shape

_PAIRS = (("chosen", "rejected"), ("chosen_messages", "rejected_messages"))
_PROMPTS = ("prompt", "question", "instruction", "query", "conversations", "messages")
_SCORES = ("score_chosen", "score_rejected")


class Preferences(Format):
    """Rows with ``chosen`` and ``rejected``, each of them text, a message or a list of messages.

    The prompt is in ``prompt``, ``question``, ``instruction`` (with ``input`` and ``history``),
    ``conversations`` or ``messages``; without such a field, both conversations contain it. If the
    answers repeat the prompt, the prompt is kept only once. With ``--as=instructions``, only the
    prompt and the chosen answer are used.
    """

    name = "preferences"
    fields = frozenset({"prompt", "chosen", "rejected"})
    has_metadata = True
    method = "model"
    shapes = ("preferences", "instructions")
    example: ClassVar[Mapping[str, Any]] = {
        "prompt": "Add 2 and 3.",
        "chosen": "5",
        "rejected": "6",
    }

    exports: ClassVar[Mapping[str, Shape]] = {"trl-preference": "preferences"}
    holds = CONVERSATION

    @classmethod
    def row(cls, sample: Sample, export: str) -> dict[str, Any]:
        """Return a preference row in the conversational format of TRL."""
        rejected = sample.rejected_answer
        scores = {
            s.name: s.value for s in sample.scores if s.name in _SCORES and s.value is not None
        }
        return {
            "prompt": messages_of(sample.prompt),
            "chosen": messages_of([sample.answer]),
            "rejected": messages_of([rejected] if rejected is not None else []),
            **tools_of(sample),
            **scores,
        }

    @classmethod
    def matches(cls, record: Mapping[str, Any]) -> int:
        """Return 3 if the record has two answers that are not transcripts of HH-RLHF, or 0."""
        pair = _pair(record)
        if pair is None or ("prompt" not in record and is_transcript(record[pair[0]])):
            return 0
        has_prompt = any(record.get(name) for name in _PROMPTS)
        return 3 * (has_prompt or not isinstance(record[pair[0]], str))

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return one preference, with the scores of both answers if the row has them."""
        pair = _pair(record)
        if pair is None:
            raise RowError('the field "chosen" or "rejected" is missing or empty.')
        prompt = self._prompt(record)
        better, worse = (self._answered(prompt, record, field) for field in pair)
        sample = preference(better, worse)
        scores = [(name, number(record, name)) for name in _SCORES]
        return [
            replace(
                better if self.shape == "instructions" else sample,
                scores=tuple(Score(name, value) for name, value in scores if value is not None),
            )
        ]

    def _prompt(self, record: Mapping[str, Any]) -> Turns:
        field = next((name for name in _PROMPTS if record.get(name)), None)
        if field is None:
            return Turns(())
        if not isinstance(record.get(field), str) or has_conversation(record, field):
            return self.reader.turns(record.get(field), field)
        parts = [text(record, field)]
        if field == "instruction" and (input_ := text(record, "input", required=False)):
            parts.append(input_)
        return Turns((*history_of(record), Message("user", "\n\n".join(parts))))

    def _answered(self, prompt: Turns, record: Mapping[str, Any], field: str) -> Sample:
        """Return the sample whose answer is in the field, which may repeat the prompt."""
        turns = text_turns(self.reader, record, field, "assistant")
        messages = turns.messages
        if prompt.messages and not _begins_with(messages, prompt.messages):
            if messages[0].role != "assistant":
                raise RowError(f'"{field}" begins neither with the prompt nor with an answer.')
            messages = (*prompt.messages, *messages)
        elif len(messages) < 2:
            raise RowError(f'"{field}" is a single message, and the row has no prompt.')
        elif messages[0].role != "system":
            messages = (*(m for m in prompt.messages if m.role == "system"), *messages)
        models = tuple(sorted({*prompt.models, *turns.models}))
        edits = (*prompt.edits, *turns.edits)
        turns = replace(turns, messages=messages, models=models, edits=edits)
        return self.reader.sample(turns, prompt.tools)


def _pair(record: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((p for p in _PAIRS if record.get(p[0]) and record.get(p[1])), None)


def _begins_with(messages: tuple[Message, ...], prompt: tuple[Message, ...]) -> bool:
    """Return whether a conversation begins with the prompt, except for system and white space."""
    rest = [m for m in messages if m.role != "system"]
    expected = [m for m in prompt if m.role != "system"]
    return len(rest) > len(expected) and all(
        a.role == b.role and a.content.split() == b.content.split()
        for a, b in zip(rest, expected, strict=False)
    )
