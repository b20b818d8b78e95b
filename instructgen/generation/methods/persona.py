"""Persona-driven generation (PersonaHub, arXiv 2406.20094; Tulu 3, arXiv 2411.15124).

A prompt describes a person, and the model writes what this person could ask. With the kind
``constraints``, the request gets one to three constraints on the form of the answer, and a program
checks whether the answer meets them.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from instructgen.engines import Completion, Request
from instructgen.generation.answers import answer_fault, answered
from instructgen.generation.methods import (
    Accept,
    ChatMethod,
    Draft,
    Outcome,
    PromptSetup,
    Propose,
    SamplingOptions,
    Stage,
    Start,
    child_sample,
    completion_fault,
)
from instructgen.generation.seed_pool import Pool
from instructgen.plugins import find
from instructgen.schema.messages import Message
from instructgen.schema.sample import Label
from instructgen.similarity import rouge_l, tokenize

REQUEST, ANSWER = "request", "answer"
# ROUGE-L to the worked example above which a request is a copy, as for two instructions.
_COPIED = 0.7
Kind = Literal["instruction", "math", "code", "knowledge", "constraints"]


class Persona(ChatMethod):
    """Writes what described people could ask, and answers it."""

    name = "persona"
    stages = (Stage(REQUEST), Stage(ANSWER))
    starts_from: ClassVar[Start] = "personas"

    kind: Kind = Field("instruction", description="What the people ask for.")
    min_met: float = Field(
        1.0, ge=0, le=1, description="Minimum fraction of the constraints that an answer meets."
    )
    requests: SamplingOptions = Field(
        SamplingOptions(temperature=0.7, top_p=0.95, max_tokens=400),
        description="Sampling parameters for requests.",
    )
    answers: SamplingOptions = Field(
        SamplingOptions(temperature=0.7, top_p=0.95, max_tokens=2048),
        description="Sampling parameters for answers.",
    )

    def verifiers(self) -> tuple[str, ...]:
        """Return the verifier that checks constraints."""
        return ("ifeval",) if self.kind == "constraints" else ()

    def start(self, pool: Pool, rng: random.Random, number: int, form: PromptSetup) -> Draft:
        """Draw a person, and the seed of the constraints."""
        position = rng.randrange(len(pool.seeds))
        sample = child_sample(pool, (position,), pool.at(position).language)
        state = {"constraints": rng.getrandbits(31)}
        return Draft(number, REQUEST, sample, (position,), state=state)

    def request(self, pool: Pool, draft: Draft, form: PromptSetup) -> Request:
        """Return the request for what the person asks, or for the answer."""
        if draft.stage == REQUEST:
            template, key = self.template(draft.sample.language), self._key
            example = template.text("persona", "example")
            # One worked example, about another person.
            worked = (
                Message("user", template.text("persona", key, persona=example)),
                Message("assistant", template.text("persona", f"example_{key}")),
            )
            persona = pool.at(draft.parents[0]).instruction
            prompt = template.prompt("persona", key, persona=persona)
            return Request((*worked, *prompt), self.requests.sampling(), stage=REQUEST)
        asked = self.template(draft.sample.language).question(draft.sample)
        return Request(asked, self.answers.sampling(), stage=ANSWER)

    def read(self, draft: Draft, completion: Completion, form: PromptSetup) -> list[Outcome]:
        """Return the request as an instruction, or the row if its answer meets the constraints."""
        sample, text = draft.sample, completion.text.strip()
        failed = completion_fault(completion)
        if draft.stage == REQUEST:
            sample = replace(sample, instruction=text)
            if failed:
                return [self.reject(sample, *failed)]
            if not text:
                return [self.reject(sample, "empty_request", "the request is empty")]
            example = self.template(sample.language).text("persona", f"example_{self._key}")
            if (score := rouge_l(tokenize(text), tokenize(example))) > _COPIED:
                return [self.reject(sample, "copies_example", "it repeats the example", score)]
            if self.kind == "constraints":
                task = self._verifier().task(sample, self._rng(draft))
                if task is None:
                    return [self.reject(sample, "no_constraint", "no constraint fits the request")]
                sample = replace(task, labels=(*task.labels, Label("request", text)))
            return [Propose(replace(draft, stage=ANSWER, sample=sample))]
        sample = answered(sample, completion)
        if (fault := failed or answer_fault(text)) is not None:
            return [self.reject(sample, *fault)]
        if self.kind == "constraints":
            met = self._verifier().check(sample, text)
            if met < self.min_met:
                detail = f"the answer meets {met:.0%} of the constraints"
                return [self.reject(sample, "constraint_missed", detail, met)]
        return [Accept(sample)]

    @property
    def _key(self) -> str:
        return "instruction" if self.kind == "constraints" else self.kind

    def _verifier(self) -> Any:
        return find("verifiers", "ifeval")()

    def _rng(self, draft: Draft) -> random.Random:
        return random.Random(draft.state["constraints"])
