"""UltraFeedback as published: one instruction, four answers, each with ratings by a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from instructgen.formats import RowError, Source, number, text
from instructgen.formats.conversation import preference
from instructgen.schema.sample import Message, Sample, Score


class UltraFeedback(Source):
    """Rows of instruction and completions (MIT, Cui et al. 2023).

    The best and the worst answer by overall_score make a preference; the models
    that wrote the two are its generators. An overall_score of 10 was a fault of
    the first version (OpenBMB/UltraFeedback, README), and counts as unknown.
    """

    name = "ultrafeedback"
    fields = frozenset({"instruction", "completions"})
    license = "MIT"
    language = "en"
    attribution = ("UltraFeedback, OpenBMB 2023",)
    method = "model"
    shapes = ("preferences", "instructions")

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """One preference, or the best answer."""
        given = record.get("completions")
        if not isinstance(given, list) or not all(isinstance(c, Mapping) for c in given):
            raise RowError('"completions" is no list of answers.')
        rated = []
        for completion in given:
            score = number(completion, "overall_score")
            if score is not None and score != 10:
                rated.append((score, text(completion, "model", required=False), completion))
        rated.sort(key=lambda r: r[0])
        if len(rated) < 2 or rated[0][0] == rated[-1][0]:
            raise RowError('"completions" has no better and worse answer by "overall_score".')
        (low, worse_by, worse), (high, better_by, better) = rated[0], rated[-1]
        question = Message("user", text(record, "instruction"))
        sample = preference(
            [question, Message("assistant", text(better, "response"))],
            [question, Message("assistant", text(worse, "response"))],
        )
        wrote = {better_by, worse_by}
        scores = [Score("score_chosen", high), Score("score_rejected", low)]
        if self.shape == "instructions":
            sample, wrote = replace(sample, rejected_output=None), {better_by}
            del scores[1]
        origin = replace(sample.origin, method="model", model=better_by or None)
        return [
            replace(
                sample,
                scores=tuple(scores),
                generators=tuple(sorted(filter(None, wrote))),
                origin=origin,
            )
        ]
