"""OpenAI's chat format: a list of messages with role and content; also TRL's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from instructgen.formats import Source, text
from instructgen.formats.conversation import sample_of_turns, turns
from instructgen.schema.sample import Sample


class OpenAIChat(Source):
    """Rows of messages; what else a row says of itself is kept."""

    name = "openai-chat"
    fields = frozenset({"messages"})

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """One sample: the last exchange, with what was said before it."""
        sample = sample_of_turns(turns(record.get("messages"), "messages"))
        return [
            replace(
                sample,
                category=text(record, "category", required=False) or None,
                language=text(record, "language", required=False) or "und",
                license=text(record, "license", required=False),
            )
        ]
