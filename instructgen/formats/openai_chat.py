"""Reads the chat format of OpenAI and TRL: a list of messages with role and content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from instructgen.formats import Format, text
from instructgen.formats.conversation import sample_of_turns, turns
from instructgen.schema.sample import Sample


class OpenAIChat(Format):
    """Rows with ``messages`` and optionally ``category``, ``language`` and ``license``."""

    name = "openai-chat"
    fields = frozenset({"messages"})

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return one sample: the last question and answer, with the earlier messages as history."""
        sample = sample_of_turns(turns(record.get("messages"), "messages"))
        return [
            replace(
                sample,
                category=text(record, "category", required=False) or None,
                language=text(record, "language", required=False) or "und",
                license=text(record, "license", required=False),
            )
        ]
