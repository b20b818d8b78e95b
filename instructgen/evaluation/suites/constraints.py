"""Whether a model keeps to what it is asked of an answer's form, checked by program.

Every row's instruction is given a constraint; one family of them is never drawn by
the rewards that share these checks, and is measured by itself.
"""

from __future__ import annotations

import random

from instructgen.errors import InputError
from instructgen.evaluation.measures import Measured
from instructgen.evaluation.suites import AnsweringSuite, Finding, Subject
from instructgen.schema.sample import Sample
from instructgen.verifiers import label
from instructgen.verifiers.constraints import LABEL, Constraint
from instructgen.verifiers.ifeval import IfEval


class Constraints(AnsweringSuite):
    """The mean degree, from 0 to 1, to which constraints are met."""

    name = "constraints"

    def findings(self, subject: Subject, rows: list[Sample]) -> list[Finding]:
        """Over constraints like those of the rewards, and over the family kept from them."""
        found = []
        for measure, held_out in (("constraints", False), ("constraints_held_out", True)):
            verifier = IfEval(held_out=held_out)
            tasks = [
                task
                for number, row in enumerate(rows)
                if (task := verifier.task(row, random.Random(f"{subject.seed} {number}")))
                is not None
            ]
            tasks = self.askable(subject, tasks)
            if not tasks:
                raise InputError(
                    "no row can be given a constraint.", hint="Give rows without such labels."
                )
            answers = self.answers(subject, tasks)
            scored = {
                name: [verifier.judge(t, a) for t, a in zip(tasks, answers[name], strict=True)]
                for name in subject.models
            }
            made = [
                Measured(measure, scored[name], [1.0] * len(tasks), [t.id for t in tasks])
                for name in subject.models
            ]
            families: dict[str, list[float]] = {}
            for task, value in zip(tasks, scored[subject.model], strict=True):
                family = Constraint.loads(label(task, LABEL) or "").family
                families.setdefault(family, []).append(value)
            facts = {
                "fully_met": sum(v == 1 for v in scored[subject.model]) / len(tasks),
                "by_family": {f: sum(v) / len(v) for f, v in sorted(families.items())},
            }
            found.append(Finding(made[0], made[1] if len(made) > 1 else None, facts=facts))
        return found
