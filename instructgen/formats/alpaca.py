"""Alpaca's three columns, as used by Alpaca itself and by many others.

The shape says nothing about whose rows they are: only a source that is named
has Stanford Alpaca's terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructgen.formats import RowError, Source, text
from instructgen.schema.sample import Message, Sample


class AlpacaFormat(Source):
    """Rows of instruction, input and output; what else a row says of itself is kept.

    Stanford Alpaca: 52,002 rows by text-davinci-003, CC-BY-NC-4.0 since it was
    corrected from ODC-By (tatsu-lab/stanford_alpaca issue 244).
    """

    name = "alpaca"
    fields = frozenset({"instruction", "output"})
    telling = False
    license = "CC-BY-NC-4.0"
    attribution = ("Stanford Alpaca, Taori et al. 2023",)
    method = "alpaca"
    model = "text-davinci-003"

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """One sample; of unknown kind."""
        return [
            Sample(
                instruction=text(record, "instruction"),
                input=text(record, "input", required=False),
                # Published Alpaca files hold rows with no output.
                output=text(record, "output", filled=False),
                history=_history(record.get("history")),
                category=text(record, "category", required=False) or None,
                language=text(record, "language", required=False) or "und",
                license=text(record, "license", required=False),
            )
        ]


def _history(value: Any) -> tuple[Message, ...]:
    """Earlier exchanges, as pairs of question and answer."""
    if not value:
        return ()
    if not isinstance(value, list):
        raise RowError('"history" is no list of questions with answers.')
    said: list[Message] = []
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError('"history" is no list of questions with answers.')
        given = {"question": pair[0], "answer": pair[1]}
        said.append(Message("user", text(given, "question")))
        said.append(Message("assistant", text(given, "answer")))
    return tuple(said)
