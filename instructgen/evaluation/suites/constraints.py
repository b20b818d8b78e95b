"""Checks programmatically whether a model's answers meet constraints on their form.

A constraint, such as a required format, is added to the instruction of each row that has none.
Training rewards add constraints of all families except one, which is reserved for evaluation. This
held-out family (``layout``) is measured separately.
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
    """Measures how well answers meet the constraint in their instruction: a mean from 0 to 1."""

    name = "constraints"

    def findings(self, subject: Subject, rows: list[Sample]) -> list[Finding]:
        """Return a result for the constraints used in training, and one for the held-out family."""
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
                    "No row can be used: each has an unsuitable constraint or is too long.",
                    hint=f"Use rows without the label {LABEL!r}, or increase --max-length.",
                )
            record = "answers_held_out" if held_out else "answers"
            answers = self.answers(subject, tasks, record=record)
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
