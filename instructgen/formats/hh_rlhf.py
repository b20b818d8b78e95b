"""Reads Anthropic's HH-RLHF: pairs of dialogues, one of which was preferred by a person."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from instructgen.errors import ConfigError
from instructgen.formats import Format, RowError, text
from instructgen.formats.conversation import Turns, preference
from instructgen.schema.messages import Message
from instructgen.schema.sample import Sample

_HUMAN = re.compile(r"(?:\A|\n\n)Human:")
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


class HHRLHF(Format):
    """Rows with ``chosen`` and ``rejected``, two transcripts (MIT license, Bai et al. 2022).

    With ``--as=instructions``, only the chosen dialogue is used. With ``--take=first``, only the
    first question and answer of that dialogue are used, and rows whose chosen dialogue contains a
    link are rejected, as in the conversion by Alpaca Libre. Annotators compared only the last
    answers. In a dialogue with several answers, the first one was therefore not compared.
    """

    name = "hh-rlhf"
    fields = frozenset({"chosen", "rejected"})
    example: ClassVar[Mapping[str, Any]] = {
        "chosen": "\n\nHuman: Add 2 and 3.\n\nAssistant: 5",
        "rejected": "\n\nHuman: Add 2 and 3.\n\nAssistant: 6",
    }
    license = "MIT"
    language = "en"
    attribution = ("HH-RLHF, Copyright (c) 2022 Anthropic",)
    method = "model"
    shapes = ("preferences", "instructions")
    takes = ("dialogue", "first")

    @classmethod
    def matches(cls, record: Mapping[str, Any]) -> int:
        """Return 2 if the row has two answers and at least one is a transcript, otherwise 0."""
        answers = [record.get(name) for name in cls.fields]
        return 2 * (None not in answers and any(is_transcript(answer) for answer in answers))

    def __post_init__(self) -> None:
        """Raise ConfigError if ``--take=first`` is used for preferences."""
        super().__post_init__()
        if self.take == "first" and self.shape == "preferences":
            raise ConfigError(
                "hh-rlhf: --take=first cannot be used for preferences, because the first answers "
                "of the chosen and the rejected dialogue are usually identical.",
                "Add --as=instructions, or omit --take.",
            )

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return one sample: a preference, the chosen dialogue, or its first two messages."""
        chosen = _turns(record, "chosen")
        if self.take == "first":
            if "http" in text(record, "chosen"):
                raise RowError('"chosen" contains a link.')
            return [self.reader.sample(Turns(tuple(chosen[:2])))]
        if self.shape == "instructions":
            return [self.reader.sample(Turns(tuple(chosen)))]
        worse = _turns(record, "rejected")
        better, worse_sample = (self.reader.sample(Turns(tuple(t))) for t in (chosen, worse))
        return [preference(better, worse_sample)]


def is_transcript(value: Any) -> bool:
    """Return whether a text contains a turn that begins with "Human:"."""
    return isinstance(value, str) and _HUMAN.search(value) is not None


def _turns(record: Mapping[str, Any], field: str) -> list[Message]:
    before, *parts = _TURN.split(text(record, field))
    if not parts or before.strip():
        raise RowError(f'"{field}" is not a dialogue of "Human:" and "Assistant:" turns.')
    return [
        Message("user" if speaker == "Human" else "assistant", content.strip())
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]
