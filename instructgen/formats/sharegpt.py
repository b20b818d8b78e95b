"""ShareGPT's format: conversations of people with models, speakers by any of their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from instructgen.formats import RowError, Source, text
from instructgen.formats.conversation import sample_of_turns, turns
from instructgen.schema.sample import Message, Sample

# Keys of the speaker and of what is said, in the wild.
_KEYS = (("from", "value"), ("role", "content"), ("from", "content"), ("user", "text"))


class ShareGPT(Source):
    """Rows of conversations, in other files called conversation, with a system prompt or not."""

    name = "sharegpt"
    fields = frozenset({"conversations"})

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """One sample: the last exchange, with what was said before it."""
        said = record.get("conversations")
        first = said[0] if isinstance(said, list) and said else None
        if not isinstance(first, Mapping):
            raise RowError('"conversations" is no list of messages.')
        keys = next((k for k in _KEYS if set(k) <= first.keys()), _KEYS[0])
        found = turns(said, "conversations", *keys)
        system = text(record, "system", required=False)
        if system:
            found.insert(0, Message("system", system))
        sample = sample_of_turns(found)
        return [
            replace(
                sample,
                category=text(record, "category", required=False) or None,
                language=text(record, "language", required=False) or "und",
                license=text(record, "license", required=False),
            )
        ]
