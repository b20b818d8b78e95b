"""Reads the ShareGPT format (conversations), with the message keys of published variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from instructgen.formats import Format, RowError, text
from instructgen.formats.conversation import sample_of_turns, turns
from instructgen.schema.sample import Message, Sample

# Names of the keys for role and content, as found in published files.
_KEYS = (("from", "value"), ("role", "content"), ("from", "content"), ("user", "text"))


class ShareGPT(Format):
    """Rows with ``conversations`` (a list of messages) and an optional ``system`` prompt."""

    name = "sharegpt"
    fields = frozenset({"conversations"})

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return one sample: the last exchange, with the earlier messages as history."""
        conversation = record.get("conversations")
        first = conversation[0] if isinstance(conversation, list) and conversation else None
        if not isinstance(first, Mapping):
            raise RowError('"conversations" is not a list of messages (JSON objects).')
        keys = next((k for k in _KEYS if set(k) <= first.keys()), _KEYS[0])
        messages = turns(conversation, "conversations", *keys)
        system = text(record, "system", required=False)
        if system:
            messages.insert(0, Message("system", system))
        sample = sample_of_turns(messages)
        return [
            replace(
                sample,
                category=text(record, "category", required=False) or None,
                language=text(record, "language", required=False) or "und",
                license=text(record, "license", required=False),
            )
        ]
