"""Reads rows with a prompt and a completion, as TRL and other trainers use them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from instructgen.formats import Format, RowError, text
from instructgen.formats.conversation import Turns, split_reasoning, tools_text, with_system
from instructgen.schema.messages import Message
from instructgen.schema.sample import Sample

_ANSWERS = ("completion", "response")


class PromptCompletion(Format):
    """Rows with ``prompt``, and ``completion`` or ``response``: texts or lists of messages."""

    name = "prompt-completion"
    fields = frozenset({"prompt", "completion"})
    has_metadata = True
    example: ClassVar[Mapping[str, Any]] = {"prompt": "Add 2 and 3.", "completion": "5"}

    @classmethod
    def matches(cls, record: Mapping[str, Any]) -> int:
        """Return 2 if the record has a prompt and one answer, otherwise 0."""
        return 2 * ("prompt" in record and any(name in record for name in _ANSWERS))

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return one sample."""
        field = next((name for name in _ANSWERS if record.get(name) is not None), None)
        if field is None:
            raise RowError('the field "completion" is missing.')
        prompt = self._turns(record, "prompt", "user")
        answer = self._turns(record, field, "assistant")
        models = tuple(sorted({*prompt.models, *answer.models}))
        turns = Turns((*prompt.messages, *answer.messages), prompt.tools, models)
        return [self.reader.sample(with_system(turns, record), tools_text(record.get("tools")))]

    def _turns(self, record: Mapping[str, Any], field: str, role: str) -> Turns:
        if not isinstance(record.get(field), str):
            return self.reader.turns(record.get(field), field)
        content = text(record, field, filled=role == "user")
        reasoning, content = split_reasoning(content) if role == "assistant" else ("", content)
        return Turns((Message(role, content, reasoning),))
