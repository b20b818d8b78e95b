"""Reads files with the columns of Stanford Alpaca: instruction, input and output.

Many other datasets use the same columns. The license of Stanford Alpaca is therefore recorded only
if the user passes the format ``alpaca``, and not if the format is detected from the columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructgen.formats import Format, RowError, text
from instructgen.schema.sample import Message, Sample


class AlpacaFormat(Format):
    """Rows with ``instruction``, ``input`` and ``output``.

    The optional fields ``category``, ``language`` and ``license`` are also read. Stanford Alpaca
    has 52,002 rows written by text-davinci-003. Its license is CC-BY-NC-4.0, which replaced the
    original license, ODC-By (tatsu-lab/stanford_alpaca issue 244).
    """

    name = "alpaca"
    fields = frozenset({"instruction", "output"})
    identifies_dataset = False
    license = "CC-BY-NC-4.0"
    attribution = ("Stanford Alpaca, Taori et al. 2023",)
    method = "alpaca"
    model = "text-davinci-003"

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return one sample, without information on whether it is a classification task."""
        return [
            Sample(
                instruction=text(record, "instruction"),
                input=text(record, "input", required=False),
                # Published Alpaca files contain rows with an empty output.
                output=text(record, "output", filled=False),
                history=_history(record.get("history")),
                category=text(record, "category", required=False) or None,
                language=text(record, "language", required=False) or "und",
                license=text(record, "license", required=False),
            )
        ]


def _history(value: Any) -> tuple[Message, ...]:
    """Convert a list of [question, answer] pairs to user and assistant messages."""
    if not value:
        return ()
    if not isinstance(value, list):
        raise RowError('"history" is not a list of [question, answer] pairs.')
    messages: list[Message] = []
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError('"history" is not a list of [question, answer] pairs.')
        exchange = {"question": pair[0], "answer": pair[1]}
        messages.append(Message("user", text(exchange, "question")))
        messages.append(Message("assistant", text(exchange, "answer")))
    return tuple(messages)
