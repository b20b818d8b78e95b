"""Checks answers to held-out problems and programming tasks with verifiers: accuracy, pass@k."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from pydantic import Field, field_validator

from instructgen.errors import InputError
from instructgen.evaluation.measures import MeasuredRows
from instructgen.evaluation.suites import AnsweringSuite, Finding, Subject
from instructgen.plugins import find
from instructgen.schema.sample import Sample


class Verifiers(AnsweringSuite):
    """Measures the fraction of correct answers, and of tasks with a correct one among k (pass@k).

    pass@k is estimated without bias from all answers to a task (Chen et al. 2021, arXiv
    2107.03374, section 2.1).
    """

    name = "verifiers"

    verifiers: tuple[str, ...] = Field(
        ("code", "math"),
        min_length=1,
        description="Verifiers. Each row is checked by the first one that can check it.",
    )
    samples: int = Field(1, ge=1, le=200, description="Number of answers to each task.")
    k: tuple[int, ...] = Field((1,), min_length=1, description="The numbers k of pass@k.")
    temperature: float = Field(
        0.8, gt=0, description="Sampling temperature if there are several answers to a task."
    )

    @field_validator("verifiers")
    @classmethod
    def _check_verifiers(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            find("verifiers", name)
        return names

    @field_validator("k")
    @classmethod
    def _check_k(cls, numbers: tuple[int, ...]) -> tuple[int, ...]:
        if min(numbers) < 1 or len(set(numbers)) < len(numbers):
            raise ValueError("must be different numbers from 1")
        return numbers

    def findings(self, subject: Subject, rows: list[Sample]) -> list[Finding]:
        """Return the accuracy and, for each k, pass@k."""
        if max(self.k) > self.samples:
            raise InputError(
                f"pass@{max(self.k)} needs as many answers to each task.",
                hint=f"Pass --set verifiers.samples={max(self.k)} or more.",
            )
        checked = {row.id: found for row in rows if (found := self._verifier_of(row)) is not None}
        fitting = self.fitting_tasks(subject, [task for _, task in checked.values()])
        verifier_of = {task.id: verifier for verifier, task in checked.values()}
        if not fitting:
            raise InputError(
                f"No row can be checked by {', '.join(self.verifiers)}.",
                hint="Use problems with a result, or tasks with the label test.",
            )
        for verifier in {type(v): v for v in verifier_of.values()}.values():
            verifier.require()
        temperature = self.temperature if self.samples > 1 else 0.0
        answers = self.answers(subject, fitting, samples=self.samples, temperature=temperature)
        correct = {
            name: [
                sum(verifier_of[task.id].check(task, a) == 1.0 for a in several)
                for task, several in zip(fitting, _grouped(given, self.samples), strict=True)
            ]
            for name, given in answers.items()
        }
        by_verifier: dict[str, list[float]] = {}
        for task, count in zip(fitting, correct[subject.model], strict=True):
            name = str(verifier_of[task.id].name)
            by_verifier.setdefault(name, []).append(count / self.samples)
        details: dict[str, Any] = {
            "by_verifier": {n: sum(v) / len(v) for n, v in sorted(by_verifier.items())},
            "samples": self.samples,
        }
        names = {"accuracy": 1} | {f"pass@{k}": k for k in self.k if k > 1}
        ids = [task.id for task in fitting]
        findings = []
        for measure, k in names.items():
            measured = [
                MeasuredRows(
                    measure,
                    [pass_at(k, self.samples, c) for c in correct[name]],
                    [1.0] * len(fitting),
                    ids,
                )
                for name in subject.models
            ]
            before = measured[1] if len(measured) > 1 else None
            findings.append(Finding(measured[0], before, details=details))
        return findings

    def _verifier_of(self, row: Sample) -> tuple[Any, Sample] | None:
        """Return the first verifier that can check answers to a row, and the row as a task."""
        for name in self.verifiers:
            verifier = find("verifiers", name)()
            if (task := verifier.task(row, random.Random(0))) is not None:
                return verifier, task
        return None


def _grouped(answers: Sequence[str], size: int) -> list[Sequence[str]]:
    return [answers[at : at + size] for at in range(0, len(answers), size)]


def pass_at(k: int, samples: int, correct: int) -> float:
    """Return the probability that one of k answers, drawn from the samples, is correct."""
    if samples - correct < k:
        return 1.0
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)
