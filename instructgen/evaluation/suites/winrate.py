"""Win rate: how often a judge prefers a model's answers to those of another model."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from instructgen.errors import ConfigError
from instructgen.evaluation.judge import Contest, judge_requests, verdicts
from instructgen.evaluation.measures import MeasuredRows
from instructgen.evaluation.rewards import RewardEngine, reward_scores
from instructgen.evaluation.suites import AnsweringSuite, Finding, Subject
from instructgen.models.loading import is_reward_model
from instructgen.plugins import find
from instructgen.schema.sample import Sample


class WinRate(AnsweringSuite):
    """Measures the win rate against another model; 0.5 means that both models are equally good.

    The judge is a reward model, or a language model that compares two answers in both orders.
    """

    name = "winrate"

    judge: str = Field(
        "",
        description="Model that decides which of two answers is better: the folder of a reward "
        "model, or the name or folder of a language model.",
    )

    def findings(self, subject: Subject, rows: list[Sample]) -> list[Finding]:
        """Measure the win rate, and estimate the win rate for answers of equal length."""
        if subject.against is None:
            raise ConfigError("The suite winrate requires two models.", "Pass --against=MODEL.")
        if not self.judge:
            raise ConfigError(
                "The suite winrate requires a judge: a language model, or a reward model that was "
                "not used in training.",
                "Pass --judge=MODEL, such as --judge=models/rm.",
            )
        rows = self.fitting_tasks(subject, rows)
        answers = self.answers(subject, rows)
        first, second = answers[subject.model], answers[subject.against]
        results, details = self._verdicts(subject, rows, first, second)
        judged = [i for i, value in enumerate(results) if value is not None]
        details |= {"judged": len(judged), "abstained": len(results) - len(judged)}
        if not judged:
            raise ConfigError(
                f"The judge {self.judge} abstained in all {len(results)} comparisons.",
                "Pass a stronger model with --judge=MODEL.",
            )
        values = [float(results[i] or 0.0) for i in judged]
        lengths = [(len(first[i]), len(second[i])) for i in judged]
        details |= {
            "length_controlled": length_controlled(values, lengths),
            "mean_characters": [float(np.mean(side)) for side in zip(*lengths, strict=True)],
        }
        measured = MeasuredRows(
            "winrate", values, [1.0] * len(judged), [rows[i].id for i in judged]
        )
        return [Finding(measured, details=details)]

    def _verdicts(
        self, subject: Subject, rows: list[Sample], first: list[str], second: list[str]
    ) -> tuple[list[float | None], dict[str, Any]]:
        if is_reward_model(self.judge):
            # A reward model scores one answer at a time, so the order has no effect.
            engine = RewardEngine(model=self.judge)
            # Row by row, so that the requests for more rows follow those for fewer.
            tasks = [row for row in rows for _ in range(2)]
            texts = [text for pair in zip(first, second, strict=True) for text in pair]
            values = reward_scores(
                tasks, texts, lambda asked: subject.ask("winrate/rewards", engine, asked, rows)
            )
            pairs = zip(values[::2], values[1::2], strict=True)
            return [float(a > b) + 0.5 * (a == b) for a, b in pairs], {}
        engine = find("engines", self.engine)(
            model=self.judge, max_model_len=4 * subject.prompt_format.max_length
        )
        contests = [Contest(*c) for c in zip(rows, first, second, strict=True)]
        requests = judge_requests(contests)
        return verdicts(subject.ask("winrate/judgments", engine, requests, rows))


def length_controlled(won: list[float], lengths: list[tuple[int, int]]) -> float:
    """Return the win rate for answers of equal length, estimated by a logistic regression.

    Source: Dubois et al. 2024 (arXiv 2404.04475). Here, the regression has a single predictor:
    the length difference divided by its standard deviation, passed through tanh.

    Args:
        won: result of the first model in each comparison: 1 for a win, 0.5 for a tie, 0 for a loss.
        lengths: number of characters in the first and second model's answer, per comparison.
    """
    from scipy.optimize import minimize

    difference = np.array([a - b for a, b in lengths], float)
    deviation = difference.std()
    x = np.tanh(difference / deviation) if deviation > 0 else np.zeros(len(difference))
    y = np.asarray(won, float)

    def cost(weights: Any) -> float:
        z = weights[0] + weights[1] * x
        # A weak L2 penalty keeps the weights finite where length alone decides every contest.
        return float(np.sum(np.logaddexp(0, z) - y * z) + 0.05 * np.sum(weights**2))

    level = minimize(cost, np.zeros(2)).x[0]
    return float(1 / (1 + np.exp(-level)))
