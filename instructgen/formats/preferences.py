"""Reads preference rows (a prompt and two answers), as in binarized UltraFeedback and TRL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from instructgen.formats import Format, RowError, number, text
from instructgen.formats.conversation import preference, turns
from instructgen.schema.sample import Message, Sample, Score


class Preferences(Format):
    """Rows with ``prompt``, ``chosen`` and ``rejected``, each of them text or a list of messages.

    If the answers repeat the prompt, the prompt is kept only once. With ``--as=instructions``,
    only the prompt and the chosen answer are used.
    """

    name = "preferences"
    fields = frozenset({"prompt", "chosen", "rejected"})
    method = "model"
    shapes = ("preferences", "instructions")

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return the row as one sample, with the scores of both answers if the row has them."""
        prompt = _messages(record, "prompt", "user")
        sample = preference(
            _conversation(prompt, record, "chosen"), _conversation(prompt, record, "rejected")
        )
        scores = [(name, number(record, name)) for name in ("score_chosen", "score_rejected")]
        if self.shape == "instructions":
            sample = replace(sample, rejected_output=None)
        return [
            replace(
                sample,
                scores=tuple(Score(name, value) for name, value in scores if value is not None),
                language=text(record, "language", required=False) or "und",
                license=text(record, "license", required=False),
            )
        ]


def _messages(record: Mapping[str, Any], field: str, role: str) -> list[Message]:
    if isinstance(record.get(field), str):
        return [Message(role, text(record, field))]
    return turns(record.get(field), field)


def _conversation(prompt: list[Message], record: Mapping[str, Any], field: str) -> list[Message]:
    answer = _messages(record, field, "assistant")
    if answer[: len(prompt)] == prompt and len(answer) > len(prompt):
        return answer
    if len(answer) != 1 or answer[0].role != "assistant":
        raise RowError(f'"{field}" must be one assistant message, or "prompt" plus the answer.')
    return [*prompt, *answer]
