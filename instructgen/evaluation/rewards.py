"""Asks a reward model for the scores of answers through an engine, so that they can be recorded."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import PrivateAttr

from instructgen.engines import Completion, LocalEngine, QueueEngine, Request, Sampling
from instructgen.generation.scoring import read_score, score_completion
from instructgen.schema.sample import Sample, Score
from instructgen.training.rewards import RewardModel, unscored_last

_SCORE = "reward"


class RewardEngine(LocalEngine, QueueEngine):
    """Computes the scores of answers with a reward model; `reward_values` reads the completions."""

    name = "reward_model"

    _loaded: RewardModel | None = PrivateAttr(None)

    def has_chat_template(self) -> bool:
        """Return False: the requests contain rows instead of prompts."""
        return False

    def at_once(self) -> int:
        """Return the number of answers that are scored together."""
        return 16

    def start(self) -> None:
        """Load the reward model, on a GPU if there is one."""
        if self._loaded is None:
            self._loaded = RewardModel(self.model)

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Return the score of each request's row as JSON."""
        self.start()
        assert self._loaded is not None
        rows = [request.row for request in requests if request.row is not None]
        values = self._loaded.scores(rows, [row.output for row in rows])
        return [score_completion(Score(_SCORE, value)) for value in values]

    def close(self) -> None:
        """Release the reward model."""
        super().close()
        self._loaded = None


def reward_requests(tasks: Sequence[Sample], answers: Sequence[str]) -> list[Request]:
    """Return a request for the score of each answer to a task."""
    rows = [task.with_answer(answer) for task, answer in zip(tasks, answers, strict=True)]
    return [Request(row.messages, Sampling(), role="reward", stage=_SCORE, row=row) for row in rows]


def reward_values(completions: Sequence[Completion]) -> list[float]:
    """Return the scores in the completions of a `RewardEngine`; see `RewardModel.score`."""
    return unscored_last([read_score(c, _SCORE).value for c in completions])
