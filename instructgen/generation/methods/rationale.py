"""Rationales for known answers (Hsieh et al. 2023, arXiv 2305.02301), checked against the answer.

The model explains a question several times, with different random seeds. One explanation that
leads to the answer of the row is kept. ``pass_rate`` is the fraction of those that do.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field, field_validator

from instructgen.engines import Completion, Request
from instructgen.generation.answers import answered
from instructgen.generation.methods import (
    Accept,
    ChatMethod,
    Draft,
    Outcome,
    PromptSetup,
    SamplingOptions,
    Stage,
    Start,
    draft_of_seed,
)
from instructgen.generation.seed_pool import Pool
from instructgen.plugins import find
from instructgen.schema.sample import Label, Sample, Score

REASONS = "reasons"
# Verifiers with a time limit: a replay of the run could decide otherwise.
_TIMED = ("code", "regex")


class Rationale(ChatMethod):
    """Writes explanations that lead to the answers of rows, and keeps a correct one."""

    name = "rationale"
    stages = (Stage(REASONS),)
    starts_from: ClassVar[Start] = "rows"
    finite: ClassVar[bool] = True
    keeps_instructions: ClassVar[bool] = True

    attempts: int = Field(4, ge=1, le=64, description="Number of explanations for each row.")
    verifier: str = Field(
        "math", description="Verifier that compares an explanation with the answer of the row."
    )
    keep_pass_rate_1: bool = Field(
        True, description="Whether to keep a row for which all explanations are correct."
    )
    reasons: SamplingOptions = Field(
        SamplingOptions(temperature=0.8, top_p=0.95, max_tokens=1024),
        description="Sampling parameters.",
    )

    @field_validator("verifier")
    @classmethod
    def _check_verifier(cls, name: str) -> str:
        find("verifiers", name)
        if name in _TIMED:
            raise ValueError(f"the verdicts of {name} depend on the speed of the machine")
        return name

    def fits(self, seed: Sample) -> bool:
        """Return whether the verifier can check the answer of a seed without earlier messages."""
        plain = seed.plain and not seed.context
        return plain and self._verifier().task(seed, random.Random(0)) is not None

    def verifiers(self) -> tuple[str, ...]:
        """Return the verifier that checks the explanations."""
        return (self.verifier,)

    def start(self, pool: Pool, rng: random.Random, number: int, form: PromptSetup) -> Draft:
        """Take the next row."""
        return draft_of_seed(pool, number, REASONS, "instruction", "input", "output", "labels")

    def samples(self, draft: Draft, form: PromptSetup) -> int:
        """Return the number of explanations."""
        return self.attempts

    def request(self, pool: Pool, draft: Draft, form: PromptSetup) -> Request:
        """Return the request for an explanation."""
        template = self.template(draft.sample.language)
        prompt = template.prompt(
            "rationale",
            "reasons",
            question=draft.sample.question,
            answer=template.text("rationale", "answer"),
        )
        return Request(prompt, self.reasons.sampling(), stage=REASONS)

    def read(self, draft: Draft, completion: Completion, form: PromptSetup) -> list[Outcome]:
        """See `read_all`."""
        return self.read_all(draft, [completion], form)

    def read_all(
        self, draft: Draft, completions: Sequence[Completion], form: PromptSetup
    ) -> list[Outcome]:
        """Return the row with the shortest correct explanation, or the reason why it is missing."""
        sample = draft.sample
        verifier = self._verifier()
        task = verifier.task(sample, random.Random(draft.number))
        whole = [i for i, c in enumerate(completions) if c.finish_reason == "stop"]
        if not whole:
            error = next((c.error for c in completions if c.error), "all were cut off")
            return [self.reject(sample, "unfinished", error)]
        texts = {i: completions[i].text.strip() for i in whole}
        correct = [i for i in whole if verifier.check(task, texts[i]) == 1.0]
        rate = len(correct) / len(completions)
        if not correct:
            return [self.reject(sample, "no_correct_answer", "no explanation leads to the answer")]
        if rate == 1.0 and not self.keep_pass_rate_1:
            return [self.reject(sample, "too_easy", "all explanations lead to the answer")]
        best = min(correct, key=lambda i: (len(texts[i]), i))
        labels = (*sample.labels, Label("rationale", texts[best]))
        row = replace(answered(sample, completions[best]), labels=labels)
        row = row.with_score(Score("pass_rate", round(rate, 4)))
        return [Accept(row, of=best)]

    def _verifier(self) -> Any:
        return find("verifiers", self.verifier)()
