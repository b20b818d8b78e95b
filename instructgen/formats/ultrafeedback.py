"""Reads UltraFeedback as published: an instruction and four answers, each rated by a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from instructgen.formats import Format, RowError, number, text
from instructgen.formats.conversation import Turns, preference
from instructgen.schema.messages import Message
from instructgen.schema.sample import Sample, Score


class UltraFeedback(Format):
    """Rows with ``instruction`` and ``completions`` (license MIT, Cui et al. 2023).

    The answers with the highest and the lowest ``overall_score`` form a preference pair. The models
    that wrote them are recorded as the generators of the row. An ``overall_score`` of 10 was an
    error in the first version (OpenBMB/UltraFeedback, README) and is treated as missing.
    """

    name = "ultrafeedback"
    fields = frozenset({"instruction", "completions"})
    example: ClassVar[Mapping[str, Any]] = {
        "instruction": "Add 2 and 3.",
        "completions": [
            {"model": "a", "response": "5", "overall_score": 9.0},
            {"model": "b", "response": "6", "overall_score": 1.0},
        ],
    }
    license = "MIT"
    language = "en"
    attribution = ("UltraFeedback, OpenBMB 2023",)
    method = "model"
    shapes = ("preferences", "instructions")

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return one sample: a preference pair, or an instruction row with only the best answer."""
        answers = record.get("completions")
        if not isinstance(answers, list) or not all(isinstance(c, Mapping) for c in answers):
            raise RowError('"completions" is not a list of JSON objects.')
        rated = []
        for completion in answers:
            score = number(completion, "overall_score")
            if score is not None and score != 10:
                rated.append((score, text(completion, "model", required=False), completion))
        rated.sort(key=lambda r: r[0])
        if len(rated) < 2 or rated[0][0] == rated[-1][0]:
            raise RowError(
                '"completions" must have two answers with different values of "overall_score".'
            )
        (low, worse_model, worse), (high, better_model, better) = rated[0], rated[-1]
        question = Message("user", text(record, "instruction"))
        pair = [Message("assistant", text(a, "response")) for a in (better, worse)]
        chosen, rejected = (self.reader.sample(Turns((question, answer))) for answer in pair)
        sample = preference(chosen, rejected)
        models = {better_model, worse_model}
        scores = [Score("score_chosen", high), Score("score_rejected", low)]
        if self.shape == "instructions":
            sample, models = replace(sample, rejected_output=None), {better_model}
            del scores[1]
        origin = replace(sample.origin, method="model", model=better_model or None)
        return [
            replace(
                sample,
                scores=tuple(scores),
                generators=tuple(sorted(filter(None, models))),
                origin=origin,
            )
        ]
