"""Magpie (Xu et al. 2024, arXiv 2406.08464), in which the model writes both sides of a dialogue.

The prompt is the beginning of the model's chat template, up to the place where the user speaks.
The model continues it with a message of a user, and then answers this message.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import ClassVar

from pydantic import Field, field_validator

from instructgen.engines import Completion, Request
from instructgen.formats import check_language
from instructgen.generation.answers import answered
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
    completion_fault,
)
from instructgen.generation.seed_pool import Pool
from instructgen.licensing.licenses import check_license
from instructgen.schema.sample import Sample

USER, ANSWER = "user", "answer"


class Magpie(ChatMethod):
    """Lets a chat model write a user's message from nothing, and answers it."""

    name = "magpie"
    stages = (Stage(USER), Stage(ANSWER))
    starts_from: ClassVar[Start] = "nothing"

    language: str = Field("en", description="Language (ISO 639 code) of the rows.")
    license: str = Field(
        "", description="License (SPDX expression) of the rows, which no seeds have given them."
    )
    messages: SamplingOptions = Field(
        SamplingOptions(temperature=1.0, max_tokens=2048),
        description="Sampling parameters for the messages of the user.",
    )
    answers: SamplingOptions = Field(
        SamplingOptions(temperature=0.0, max_tokens=2048),
        description="Sampling parameters for the answers.",
    )

    @field_validator("license")
    @classmethod
    def _check_license(cls, license: str) -> str:
        return check_license(license) if license else license

    @field_validator("language")
    @classmethod
    def _check_language(cls, language: str) -> str:
        check_language(language)
        return language

    def start(self, pool: Pool, rng: random.Random, number: int, form: PromptSetup) -> Draft:
        """Return an empty draft."""
        return Draft(
            number, USER, Sample(instruction="", language=self.language, license=self.license)
        )

    def request(self, pool: Pool, draft: Draft, form: PromptSetup) -> Request:
        """Return the request for a message of the user, or for its answer."""
        if draft.stage == USER:
            stop = (form.turn_end,) if form.turn_end else ()
            return Request(form.user_turn, self.messages.sampling(stop), stage=USER)
        asked = self.template(draft.sample.language).question(draft.sample)
        return Request(asked, self.answers.sampling(), stage=ANSWER)

    def read(self, draft: Draft, completion: Completion, form: PromptSetup) -> list[Outcome]:
        """Return the message of the user as an instruction, or the row with its answer."""
        text = completion.text.strip()
        sample = (
            replace(draft.sample, instruction=text)
            if draft.stage == USER
            else answered(draft.sample, completion)
        )
        # The end of a message that was cut off is unknown, so it is not answered.
        if (failed := completion_fault(completion)) is not None:
            return [self.reject(sample, *failed)]
        if not text:
            return [self.reject(sample, f"empty_{draft.stage}", "the model wrote nothing")]
        if draft.stage == USER:
            return [Propose(replace(draft, stage=ANSWER, sample=sample))]
        return [Accept(sample)]
