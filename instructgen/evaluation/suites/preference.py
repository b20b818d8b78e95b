"""How often a model puts the answer first that people liked better."""

from __future__ import annotations

from instructgen.evaluation.measures import pair_accuracy, pair_margins, reward_margins
from instructgen.evaluation.suites import Finding, Subject, Suite
from instructgen.models.loading import is_reward_model
from instructgen.schema.sample import Sample


class Preference(Suite):
    """Pair accuracy: of a reward model by its scores, of a language model by likelihood."""

    name = "preference"
    shape = "preferences"

    def findings(self, subject: Subject, rows: list[Sample]) -> list[Finding]:
        """By token, as longer answers are always less likely; against another model also
        which answer became likelier than it was there.
        """
        if is_reward_model(subject.model):
            made = [pair_accuracy(reward_margins(n, rows, subject.framing)) for n in subject.models]
            return [Finding(made[0], made[1] if len(made) > 1 else None)]
        margins = [pair_margins(name, rows, subject.framing) for name in subject.models]
        made = [pair_accuracy({k: v[1] for k, v in m.items()}) for m in margins]
        if len(made) == 1:
            return [Finding(made[0])]
        gained = {k: v[0] - margins[1][k][0] for k, v in margins[0].items() if k in margins[1]}
        return [Finding(made[0], made[1]), Finding(pair_accuracy(gained, "reward_accuracy"))]
