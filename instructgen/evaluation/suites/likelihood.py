"""Measures how well a model predicts the answers in a dataset, in bits per byte."""

from __future__ import annotations

from instructgen.evaluation.measures import bits_per_byte
from instructgen.evaluation.suites import Finding, Subject, Suite
from instructgen.schema.sample import Sample


class Likelihood(Suite):
    """Measures bits per byte of the answers (lower is better), comparable across tokenizers."""

    name = "likelihood"

    def findings(self, subject: Subject, rows: list[Sample]) -> list[Finding]:
        """Measure the bits per UTF-8 byte of all answers, for each model."""
        measured = [bits_per_byte(name, rows, subject.prompt_format) for name in subject.models]
        return [Finding(measured[0], measured[1] if len(measured) > 1 else None, higher=False)]
