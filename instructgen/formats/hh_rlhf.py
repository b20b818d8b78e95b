"""Anthropic's HH-RLHF: pairs of dialogues, the one that a person liked better and the other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from instructgen.errors import ConfigError
from instructgen.formats import RowError, Source, text
from instructgen.formats.conversation import preference, sample_of_turns
from instructgen.schema.sample import Message, Sample

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


class HHRLHF(Source):
    """Rows of chosen and rejected, each a transcript (MIT, Bai et al. 2022).

    As instructions a row is its chosen dialogue. ``first`` takes the first exchange
    of it alone and no row with a link, which is Alpaca Libre's conversion; people
    judged the last answer, so that this one is only context where there are more.
    """

    name = "hh-rlhf"
    fields = frozenset({"chosen", "rejected"})
    license = "MIT"
    language = "en"
    attribution = ("HH-RLHF, Copyright (c) 2022 Anthropic",)
    method = "model"
    shapes = ("preferences", "instructions")
    takes = ("dialogue", "first")

    def __post_init__(self) -> None:
        """Refuse what cannot be told apart: the first exchange is the same in both dialogues."""
        super().__post_init__()
        if self.take == "first" and self.shape == "preferences":
            raise ConfigError("hh-rlhf: --take first gives instructions.", "Add --as instructions.")

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """One preference or dialogue."""
        chosen = _turns(record, "chosen")
        if self.take == "first":
            if "http" in text(record, "chosen"):
                raise RowError("the dialogue holds a link.")
            return [sample_of_turns(chosen[:2])]
        if self.shape == "instructions":
            return [sample_of_turns(chosen)]
        return [preference(chosen, _turns(record, "rejected"))]


def _turns(record: Mapping[str, Any], field: str) -> list[Message]:
    before, *parts = _TURN.split(text(record, field))
    if not parts or before.strip():
        raise RowError(f'"{field}" is no dialogue of Human and Assistant.')
    return [
        Message("user" if speaker == "Human" else "assistant", said.strip())
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]
