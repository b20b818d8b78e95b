"""Bits per byte of given answers: how well a model would have guessed what people wrote."""

from __future__ import annotations

from instructgen.evaluation.measures import bits_per_byte
from instructgen.evaluation.suites import Finding, Subject, Suite
from instructgen.schema.sample import Sample


class Likelihood(Suite):
    """Lower is better; the same for every tokenizer."""

    name = "likelihood"

    def findings(self, subject: Subject, rows: list[Sample]) -> list[Finding]:
        """One measure, over bytes of answers."""
        made = [bits_per_byte(name, rows, subject.framing) for name in subject.models]
        return [Finding(made[0], made[1] if len(made) > 1 else None, higher=False)]
