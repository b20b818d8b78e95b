"""Checks by program whether a model's answers meet constraints on their form.

A constraint is added to every row's instruction. The training rewards that share these checks
never use one family of constraints; that held-out family is measured separately.
"""

from __future__ import annotations

import random
from typing import Any

from instructgen.errors import InputError
from instructgen.evaluation.measures import MeasuredRows
from instructgen.evaluation.suites import AnsweringSuite, Finding, Subject
from instructgen.schema.sample import Sample
from instructgen.verifiers import label
from instructgen.verifiers.constraints import LABEL, Constraint
from instructgen.verifiers.ifeval import IfEval


class Constraints(AnsweringSuite):
    """Measures the mean degree, from 0 to 1, to which answers meet their constraint."""

    name = "constraints"

    def findings(self, subject: Subject, rows: list[Sample]) -> list[Finding]:
        """Measure the constraint families of the training rewards, then the held-out family."""
        findings = []
        for measure, held_out in (("constraints", False), ("constraints_held_out", True)):
            verifier = IfEval(held_out=held_out)
            tasks = [
                task
                for number, row in enumerate(rows)
                if (task := verifier.task(row, random.Random(f"{subject.seed} {number}")))
                is not None
            ]
            tasks = self.fitting_tasks(subject, tasks)
            if not tasks:
                raise InputError(
                    "A constraint cannot be added to any row.",
                    hint=f"Use rows without the label {LABEL!r}, or raise --max-length.",
                )
            answers = self.answers(subject, tasks)
            scored = {
                name: [verifier.check(t, a) for t, a in zip(tasks, answers[name], strict=True)]
                for name in subject.models
            }
            measured = [
                MeasuredRows(measure, scored[name], [1.0] * len(tasks), [t.id for t in tasks])
                for name in subject.models
            ]
            families: dict[str, list[float]] = {}
            for task, value in zip(tasks, scored[subject.model], strict=True):
                family = Constraint.loads(label(task, LABEL) or "").family
                families.setdefault(family, []).append(value)
            details: dict[str, Any] = {
                "fully_met": sum(v == 1 for v in scored[subject.model]) / len(tasks),
                "by_family": {f: sum(v) / len(v) for f, v in sorted(families.items())},
            }
            after, before = measured[0], measured[1] if len(measured) > 1 else None
            findings.append(Finding(after, before, details=details))
        return findings
