"""Reads rows with a prompt and a completion, as TRL and other trainers use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from instructgen.formats import Format, RowError, text
from instructgen.formats.alpaca import history_of
from instructgen.formats.conversation import Turns, has_conversation, text_turns
from instructgen.schema.sample import Sample

_ANSWERS = ("completion", "response")
_PASSAGES = ("input", "context")


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
        """Return one sample; a passage in ``input`` or ``context`` is its input."""
        field = next((name for name in _ANSWERS if record.get(name) is not None), None)
        if field is None:
            raise RowError('the field "completion" is missing.')
        # Some datasets have the last question in "prompt" and the dialogue up to it in "messages".
        name = "messages" if has_conversation(record, "messages") else "prompt"
        prompt = text_turns(self.reader, record, name, "user")
        if prompt.messages[-1].role == "assistant":
            return [self.reader.sample(prompt)]
        answer = text_turns(self.reader, record, field, "assistant")
        models = tuple(sorted({*prompt.models, *answer.models}))
        earlier = history_of(record) if name == "prompt" else ()
        turns = Turns((*earlier, *prompt.messages, *answer.messages), prompt.tools, models)
        sample = self.reader.sample(turns)
        passage = next((t for n in _PASSAGES if (t := text(record, n, required=False))), "")
        return [replace(sample, input=passage)]
