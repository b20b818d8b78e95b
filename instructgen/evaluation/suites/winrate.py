"""How often a model's answers are liked better than another's."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from instructgen.errors import ConfigError
from instructgen.evaluation.answers import completions
from instructgen.evaluation.judge import Contest, judge_requests, verdicts
from instructgen.evaluation.measures import Measured
from instructgen.evaluation.suites import AnsweringSuite, Finding, Subject
from instructgen.models.loading import is_reward_model
from instructgen.plugins import find
from instructgen.schema.sample import Sample
from instructgen.training.rewards import RewardModel


class WinRate(AnsweringSuite):
    """Half is a draw. Judged by a reward model, or by a language model in both orders."""

    name = "winrate"

    judge: str = Field("", description="a reward model's folder, or a model to ask")

    def findings(self, subject: Subject, rows: list[Sample]) -> list[Finding]:
        """The win rate, and what it would be at equal lengths."""
        if subject.against is None:
            raise ConfigError("A win rate needs two models.", "Give --against.")
        if not self.judge:
            raise ConfigError(
                "A win rate needs a judge: a reward model other than the one trained with, "
                "or a language model.",
                "Give --judge models/rm.",
            )
        rows = self.askable(subject, rows)
        answers = self.answers(subject, rows)
        mine, theirs = answers[subject.model], answers[subject.against]
        won, facts = self._won(subject, rows, mine, theirs)
        known = [i for i, value in enumerate(won) if value is not None]
        facts |= {"judged": len(known), "abstained": len(won) - len(known)}
        if not known:
            raise ConfigError(
                f"{self.judge} decided none of {len(won)} contests.", "Give a stronger --judge."
            )
        values = [float(won[i] or 0.0) for i in known]
        lengths = [(len(mine[i]), len(theirs[i])) for i in known]
        facts |= {
            "length_controlled": length_controlled(values, lengths),
            "mean_characters": [float(np.mean(side)) for side in zip(*lengths, strict=True)],
        }
        made = Measured("winrate", values, [1.0] * len(known), [rows[i].id for i in known])
        return [Finding(made, facts=facts)]

    def _won(
        self, subject: Subject, rows: list[Sample], mine: list[str], theirs: list[str]
    ) -> tuple[list[float | None], dict[str, Any]]:
        if is_reward_model(self.judge):
            # A score looks at one answer at a time: there is no order to swap.
            model = RewardModel(self.judge)
            pairs = zip(model.score(rows, mine), model.score(rows, theirs), strict=True)
            return [float(a > b) + 0.5 * (a == b) for a, b in pairs], {}
        engine = find("engines", self.engine)(
            model=self.judge, max_model_len=4 * subject.framing.max_length
        )
        contests = [Contest(*c) for c in zip(rows, mine, theirs, strict=True)]
        found, facts = verdicts(completions(engine, judge_requests(contests)))
        engine.close()
        return found, facts


def length_controlled(won: list[float], lengths: list[tuple[int, int]]) -> float:
    """The win rate that a logistic model of the lengths expects at equal lengths.

    After Dubois et al. 2024 (2404.04475), with one term for the difference in length:
    tanh of it, by its deviation.
    """
    from scipy.optimize import minimize

    difference = np.array([a - b for a, b in lengths], float)
    deviation = difference.std()
    x = np.tanh(difference / deviation) if deviation > 0 else np.zeros(len(difference))
    y = np.asarray(won, float)

    def cost(weights: Any) -> float:
        z = weights[0] + weights[1] * x
        # A little pull to 0, for sets in which length tells all.
        return float(np.sum(np.logaddexp(0, z) - y * z) + 0.05 * np.sum(weights**2))

    level = minimize(cost, np.zeros(2)).x[0]
    return float(1 / (1 + np.exp(-level)))
