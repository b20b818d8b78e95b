"""Asks a reward model for the scores of answers through an engine, so that they can be recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import PrivateAttr

from instructgen.engines import Completion, LocalEngine, QueueEngine, Request, Sampling
from instructgen.generation.scoring import read_score, score_completion
from instructgen.schema.sample import Sample, Score
from instructgen.training.rewards import RewardModel, unscored_last

_SCORE = "reward"


class RewardEngine(LocalEngine, QueueEngine):
    """Computes the scores of answers with a reward model; see `reward_scores`."""

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


def reward_scores(
    tasks: Sequence[Sample],
    answers: Sequence[str],
    ask: Callable[[list[Request]], list[Completion]],
) -> list[float]:
    """Return the score of each answer to a task; see `RewardModel.score`.

    Equal answers to a task are scored once: in another batch, the score could differ in its last
    bits, and the answers would not tie.

    Args:
        tasks: the tasks.
        answers: an answer to each of them.
        ask: returns the completions that a `RewardEngine` gives for requests.

    Raises:
        EngineError: the engine cannot continue.
    """
    rows = [task.with_answer(answer) for task, answer in zip(tasks, answers, strict=True)]
    keys = [(task.id, answer) for task, answer in zip(tasks, answers, strict=True)]
    distinct = dict(zip(keys, rows, strict=True))
    requests = [
        Request(row.messages, Sampling(), role="reward", stage=_SCORE, row=row)
        for row in distinct.values()
    ]
    values = unscored_last([read_score(c, _SCORE).value for c in ask(requests)])
    value_of = dict(zip(distinct, values, strict=True))
    return [value_of[key] for key in keys]
