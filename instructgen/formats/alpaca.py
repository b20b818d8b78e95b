"""Reads files with the columns of Stanford Alpaca: instruction, input and output.

Many other datasets use the same columns, so the license of Stanford Alpaca applies only if the
user passes the format ``alpaca``, and not if the format is detected from the columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from instructgen.formats import Format, RowError, text
from instructgen.formats.conversation import answer_of, decoded, with_tags
from instructgen.schema.messages import Message
from instructgen.schema.sample import Sample, Shape


class AlpacaFormat(Format):
    """Rows with ``instruction``, ``input`` and ``output``.

    The optional fields ``system`` and ``history`` of LLaMA-Factory are also read. Stanford Alpaca
    has 52,002 rows written by text-davinci-003. Its license is CC-BY-NC-4.0, which replaced the
    original license, ODC-By (tatsu-lab/stanford_alpaca issue 244).
    """

    name = "alpaca"
    fields = frozenset({"instruction", "output"})
    identifies_dataset = False
    has_metadata = True
    license = "CC-BY-NC-4.0"
    attribution = ("Stanford Alpaca, Taori et al. 2023",)
    method = "alpaca"
    model = "text-davinci-003"
    example: ClassVar[Mapping[str, Any]] = {
        "instruction": "Add the numbers.",
        "input": "2 and 3",
        "output": "5",
    }

    exports: ClassVar[Mapping[str, Shape]] = {"alpaca": "instructions"}
    holds = frozenset({"input", "system", "history", "reasoning_content"})

    @classmethod
    def row(cls, sample: Sample, export: str) -> dict[str, Any]:
        """Return Alpaca's three columns, and earlier messages in the columns of LLaMA-Factory."""
        system = "\n\n".join(m.content for m in sample.history if m.role == "system")
        turns = [m for m in sample.history if m.role in ("user", "assistant")]
        pairs = [
            [question.content, with_tags(replace(answer, tool_calls=()))]
            for question, answer in itertools.pairwise(turns)
            if question.role == "user" and answer.role == "assistant"
        ]
        return {
            "instruction": sample.instruction,
            "input": sample.input,
            "output": with_tags(replace(sample.answer, tool_calls=())),
            **({"system": system} if system else {}),
            **({"history": pairs} if pairs else {}),
        }

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return one sample; its kind (classification or generation) is unknown."""
        # Published Alpaca files contain rows with an empty output.
        answer = answer_of(text(record, "output", filled=False))
        passage = text(record, "input", required=False) or text(record, "context", required=False)
        return [
            Sample(
                instruction=text(record, "instruction"),
                input=passage,
                output=answer.content,
                reasoning_content=answer.reasoning_content,
                tool_calls=answer.tool_calls,
                history=history_of(record),
            )
        ]


def history_of(record: Mapping[str, Any]) -> tuple[Message, ...]:
    """Return the field ``history``, a list of [question, answer] pairs, as messages.

    Raises:
        RowError: a field has another type.
    """
    value = decoded(record.get("history"))
    messages: list[Message] = []
    if value and not isinstance(value, list):
        raise RowError('"history" is not a list of [question, answer] pairs.')
    for pair in value or ():
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError('"history" is not a list of [question, answer] pairs.')
        exchange = {"question": pair[0], "answer": pair[1]}
        messages.append(Message("user", text(exchange, "question")))
        messages.append(answer_of(text(exchange, "answer")))
    return tuple(messages)
