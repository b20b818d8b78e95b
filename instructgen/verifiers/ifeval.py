"""Checks whether an answer meets a constraint on its form, such as its length or case."""

from __future__ import annotations

import random
from dataclasses import replace

from pydantic import Field

from instructgen.schema.sample import Label, Sample
from instructgen.verifiers import Verifier, label
from instructgen.verifiers.constraints import HELD_OUT, LABEL, Constraint, draw


class IfEval(Verifier):
    """Score answers by how well they meet the constraint in the row's label ``constraint``.

    A row without this label gets a random constraint, which is appended to its instruction.
    """

    name = "ifeval"

    held_out: bool = Field(
        False,
        description="Use only the constraints on layout, such as a number of paragraphs, which "
        "are reserved for evaluation.",
    )

    def task(self, sample: Sample, rng: random.Random) -> Sample | None:
        """Return the row with a constraint in its instruction and label ``constraint``, or None.

        The result is None if the label ``constraint`` is invalid, or if ``held_out`` is set and
        the constraint is not reserved for evaluation.
        """
        text = label(sample, LABEL)
        if text is not None:
            try:
                family = Constraint.loads(text).family
            except ValueError:
                return None
            return sample if not self.held_out or family == HELD_OUT else None
        constraint = draw(rng, held_out=self.held_out)
        return replace(
            sample,
            instruction=f"{sample.instruction}\n\n{constraint.words}",
            labels=(*sample.labels, Label(LABEL, constraint.dumps())),
        )

    def check(self, task: Sample, answer: str) -> float:
        """Return how well the answer meets the constraint, from 0 to 1."""
        return Constraint.loads(label(task, LABEL) or "").met(answer)
