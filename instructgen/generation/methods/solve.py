"""Solved problems, whose solutions a verifier has checked (STaR, arXiv 2203.14465).

A problem is solved several times, with different random seeds. One correct solution is kept, and
``pass_rate`` is the fraction of correct ones. Without a known answer, the result that most
solutions have counts as correct (self-consistency, arXiv 2203.11171); the row says so.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import orjson
import regex
from pydantic import Field, field_validator

from instructgen.engines import Completion, Engine, Request, Sampling
from instructgen.generation.executing import VerifierExecutor
from instructgen.generation.methods import (
    Accept,
    ChatMethod,
    Continue,
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
from instructgen.schema.measures import PassRate
from instructgen.schema.sample import Label, Sample, Score

SOLUTIONS, VERIFY = "solutions", "verify"


class Solve(ChatMethod):
    """Solves the problems of the seeds, and keeps solutions that a verifier accepts."""

    name = "solve"
    stages = (Stage(SOLUTIONS), Stage(VERIFY, 0.5, role="executor"))
    starts_from: ClassVar[Start] = "tasks"
    finite: ClassVar[bool] = True
    recipe: ClassVar[str] = "grounded"
    keeps_instructions: ClassVar[bool] = True

    attempts: int = Field(8, ge=1, le=64, description="Number of solutions of each problem.")
    verifier: str = Field("math", description="Verifier that checks the solutions.")
    pass_rate: PassRate = Field(
        (0.0, 1.0),
        description="Minimum and maximum fraction of correct solutions of a kept problem. One "
        "without a correct solution is never kept.",
    )
    min_majority: float = Field(
        0.5,
        ge=0,
        le=1,
        description="For problems without an answer: the fraction of solutions that must have the "
        "same result.",
    )
    keep: Literal["shortest", "random"] = Field(
        "shortest", description="Which of the correct solutions is kept."
    )
    steps: bool = Field(
        True,
        description="Whether the prompt asks for steps and a last line with the answer. Otherwise, "
        "it is the problem alone, as for the verifiers code and ifeval.",
    )
    reasoning: Literal["separate", "in_answer"] = Field(
        "separate",
        description="Where the steps before the last line are: in reasoning_content (separate) or "
        "in the answer (in_answer). What a thinking model thinks is always reasoning_content.",
    )
    solutions: SamplingOptions = Field(
        SamplingOptions(temperature=0.8, top_p=0.95, max_tokens=1024),
        description="Sampling parameters.",
    )

    @field_validator("verifier")
    @classmethod
    def _check_verifier(cls, name: str) -> str:
        find("verifiers", name)
        return name

    def fits(self, seed: Sample) -> bool:
        """Return whether the verifier can check answers to a seed, or compare them.

        A verifier that adds something to the request, such as a constraint, cannot: the model does
        not see it.
        """
        if not seed.plain or seed.context:
            return False
        verifier = self._verifier()
        if (task := verifier.task(seed, random.Random(0))) is not None:
            return bool(task.question == seed.question)
        compared = verifier.task(seed.with_answer("1"), random.Random(0))
        return not seed.output and compared is not None

    def verifiers(self) -> tuple[str, ...]:
        """Return the verifier that checks the solutions."""
        return (self.verifier,)

    def executor(self) -> Engine:
        """Return the engine that runs the verifier."""
        return VerifierExecutor(verifier=self.verifier)

    def start(self, pool: Pool, rng: random.Random, number: int, form: PromptSetup) -> Draft:
        """Take the next problem, and draw the number that chooses among its solutions."""
        draft = draft_of_seed(pool, number, SOLUTIONS, "instruction", "input", "output", "labels")
        return replace(draft, state={"choice": rng.getrandbits(31)})

    def samples(self, draft: Draft, form: PromptSetup) -> int:
        """Return the number of solutions, which are verified in one request."""
        return self.attempts if draft.stage == SOLUTIONS else 1

    def request(self, pool: Pool, draft: Draft, form: PromptSetup) -> Request:
        """Return the request for a solution, or for the verification of all solutions."""
        sample = draft.sample
        if draft.stage == VERIFY:
            # What the row will have: who reads the row must find the result that was verified.
            texts = [self._answered(sample, c).output for c in draft.state["solutions"]]
            prompt = orjson.dumps(texts).decode()
            return Request(prompt, Sampling(), stage=VERIFY, row=sample)
        template = self.template(sample.language)
        asked = template.question(sample)
        if self.steps:
            label = template.text("rationale", "answer")
            asked = template.prompt("rationale", "reasons", question=sample.question, answer=label)
        return Request(asked, self.solutions.sampling(), stage=SOLUTIONS)

    def read(self, draft: Draft, completion: Completion, form: PromptSetup) -> list[Outcome]:
        """See `read_all`."""
        return self.read_all(draft, [completion], form)

    def read_all(
        self, draft: Draft, completions: Sequence[Completion], form: PromptSetup
    ) -> list[Outcome]:
        """Return the draft with its solutions, or the row with the chosen one."""
        if draft.stage == VERIFY:
            return [self._verified(draft, completions[0])]
        whole = [i for i, c in enumerate(completions) if c.finish_reason == "stop"]
        if not whole:
            error = next((c.error for c in completions if c.error), "all were cut off")
            return [self.reject(draft.sample, "unfinished", error)]
        state = {
            **draft.state,
            "solutions": [completions[i] for i in whole],
            "places": whole,
            "asked": len(completions),
        }
        return [Continue(replace(draft, stage=VERIFY, state=state))]

    def _verified(self, draft: Draft, completion: Completion) -> Outcome:
        sample, state = draft.sample, draft.state
        if completion.finish_reason == "error":
            return self.reject(sample, "engine_error", completion.error or "no reason was given")
        found: dict[str, Any] = orjson.loads(completion.text)
        solutions: list[Completion] = state["solutions"]
        if "scores" in found:
            correct = [i for i, score in enumerate(found["scores"]) if score == 1.0]
            sample = sample.with_label(Label("verified_by", "answer"))
        else:
            counts = Counter(first for first in found["same"] if first >= 0)
            ((most, _),) = counts.most_common(1) or [(-1, 0)]
            correct = [i for i, first in enumerate(found["same"]) if first == most >= 0]
            sample = sample.with_label(Label("verified_by", "majority"))
        rate = len(correct) / state["asked"]
        sample = sample.with_score(Score("pass_rate", round(rate, 4)))
        if not correct:
            return self.reject(sample, "no_correct_answer", "no solution is correct", 0.0)
        if "scores" not in found and rate < self.min_majority:
            detail = f"{rate:.0%} of the solutions have the most frequent result"
            return self.reject(sample, "no_majority", detail, rate)
        if not self.pass_rate[0] <= rate <= self.pass_rate[1]:
            reason = "too_hard" if rate < self.pass_rate[0] else "too_easy"
            return self.reject(sample, reason, f"{rate:.0%} of the solutions are correct", rate)
        if self.keep == "shortest":
            best = min(correct, key=lambda i: (len(solutions[i].text), i))
        else:
            best = random.Random(state["choice"]).choice(correct)
        return Accept(self._answered(sample, solutions[best]), of=state["places"][best])

    def _answered(self, sample: Sample, solution: Completion) -> Sample:
        """Return the row with a solution, divided into its reasoning and its answer."""
        text, thoughts = solution.text.strip(), solution.reasoning
        if self.reasoning == "separate" and not thoughts:
            thoughts, text = self._divided(sample, solution)
        return replace(sample, output=text, reasoning_content=thoughts)

    def _divided(self, sample: Sample, solution: Completion) -> tuple[str, str]:
        """Return the steps of a solution and its answer; without a last line, all is the answer."""
        text = solution.text.strip()
        if self.steps:
            label = self.template(sample.language).text("rationale", "answer")
            # A model may write it in bold, or as "Final Answer".
            line = rf"(?im)^[*_# \t]*(?:final )?{regex.escape(label)}[*_ \t]*:(.*)$"
            if lines := list(regex.finditer(line, text)):
                steps = text[: lines[-1].start()].strip()
                answer = lines[-1][1].strip("*_ \t") + text[lines[-1].end() :]
                if steps and answer.strip():
                    return steps, answer.strip()
        return "", text

    def _verifier(self) -> Any:
        return find("verifiers", self.verifier)()
