"""Whether an answer keeps to what its instruction asks of its form."""

from __future__ import annotations

import random
from dataclasses import replace

from pydantic import Field

from instructgen.schema.sample import Label, Sample
from instructgen.verifiers import Verifier, label
from instructgen.verifiers.constraints import HELD_OUT, LABEL, Constraint, draw


class IfEval(Verifier):
    """A row with a label ``constraint`` is judged by it; another is given a constraint."""

    name = "ifeval"

    held_out: bool = Field(False, description="draw from the family kept for evaluation")

    def task(self, sample: Sample, rng: random.Random) -> Sample | None:
        """The row, with a constraint in its instruction and its labels."""
        known = label(sample, LABEL)
        if known is not None:
            try:
                family = Constraint.loads(known).family
            except ValueError:
                return None
            return sample if not self.held_out or family == HELD_OUT else None
        constraint = draw(rng, held_out=self.held_out)
        return replace(
            sample,
            instruction=f"{sample.instruction}\n\n{constraint.words}",
            labels=(*sample.labels, Label(LABEL, constraint.dumps())),
        )

    def judge(self, task: Sample, answer: str) -> float:
        """How far the answer meets the constraint."""
        return Constraint.loads(label(task, LABEL) or "").met(answer)
