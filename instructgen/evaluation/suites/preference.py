"""Pair accuracy: how often a model ranks the chosen answer of a pair above the rejected one."""

from __future__ import annotations

from instructgen.evaluation.measures import pair_accuracy, pair_margins, reward_margins
from instructgen.evaluation.suites import Finding, Subject, Suite
from instructgen.models.loading import is_reward_model
from instructgen.schema.sample import Sample


class Preference(Suite):
    """Measures pair accuracy: by the scores of a reward model, or by the likelihoods of answers."""

    name = "preference"
    shape = "preferences"

    def findings(self, subject: Subject, rows: list[Sample]) -> list[Finding]:
        """Measure pair accuracy; for language models, by the mean log-likelihood per token.

        The sum would favor short answers. With a second language model, also measure how often the
        first model favors the chosen answer more strongly than the second model does.
        """
        if is_reward_model(subject.model):
            measured = [
                pair_accuracy(reward_margins(name, rows, subject.prompt_format))
                for name in subject.models
            ]
            return [Finding(measured[0], measured[1] if len(measured) > 1 else None)]
        margins = [pair_margins(name, rows, subject.prompt_format) for name in subject.models]
        measured = [pair_accuracy({k: v[1] for k, v in m.items()}) for m in margins]
        if len(measured) == 1:
            return [Finding(measured[0])]
        gains = {k: v[0] - margins[1][k][0] for k, v in margins[0].items() if k in margins[1]}
        return [Finding(measured[0], measured[1]), Finding(pair_accuracy(gains, "reward_accuracy"))]
