"""The engine that computes the scores of a run's model filters, such as ``ifd``.

A score near a threshold may differ on another machine, which would change the rows of a resumed
run. Therefore, scores are requested and recorded in the journal like completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from pydantic import PrivateAttr

from instructgen.engines import Completion, QueueEngine, Request, Sampling
from instructgen.filters import AskingFilter, Filter, ScoringFilter
from instructgen.schema.sample import Sample, Score

SCORE = "score "


class ScoringEngine(QueueEngine):
    """Computes the scores of rows with the filters of a run; `read_score` parses a completion."""

    name = "scores"

    _filters: dict[str, ScoringFilter] = PrivateAttr(default_factory=dict)

    @classmethod
    def of(cls, filters: Sequence[Filter]) -> ScoringEngine | None:
        """Return an engine for the filters that compute scores, or None without such filters."""
        engine = cls()
        engine._filters = {
            SCORE + f.score_name: f
            for f in filters
            if isinstance(f, ScoringFilter) and not isinstance(f, AskingFilter)
        }
        return engine if engine._filters else None

    def has_chat_template(self) -> bool:
        """Return False: the requests contain rows instead of prompts."""
        return False

    def at_once(self) -> int:
        """Return the number of rows that are scored together."""
        return 16

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Return the score of each request's row as JSON."""
        completions: dict[int, Completion] = {}
        for stage in dict.fromkeys(request.stage for request in requests):
            rows: dict[int, Any] = {i: r.row for i, r in enumerate(requests) if r.stage == stage}
            scores = self._filters[stage].scores(list(rows.values()))
            for i, score in zip(rows, scores, strict=True):
                completions[i] = score_completion(score)
        return [completions[i] for i in range(len(requests))]


def score_request(f: ScoringFilter, row: Sample) -> Request:
    """Return the request for the score of a row, for a `ScoringEngine`."""
    stage = SCORE + f.score_name
    return Request(row.messages, Sampling(), role="reward", stage=stage, row=row)


def score_completion(score: Score) -> Completion:
    """Return a completion that contains a score, for `read_score`."""
    return Completion(orjson.dumps({"value": score.value, "error": score.error}).decode(), "stop")


def read_score(completion: Completion, name: str) -> Score:
    """Return the score with this name that a completion of `score_completion` contains."""
    if completion.finish_reason == "error":
        return Score(name, None, completion.error or "the score could not be computed")
    value = orjson.loads(completion.text)
    return Score(name, value["value"], value["error"])
