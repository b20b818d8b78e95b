"""Self-chat (Baize, arXiv 2304.01196): a model continues a conversation on both sides.

Each message is one request. The user has a prompt of its own, and the assistant sees the
conversation as usual.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import ClassVar

from pydantic import Field, field_validator

from instructgen.engines import Completion, Request
from instructgen.generation.answers import answer_fault, answered
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
    completion_fault,
    draft_of_seed,
)
from instructgen.generation.seed_pool import Pool
from instructgen.schema.messages import Message
from instructgen.schema.sample import Sample

USER, ASSISTANT = "user", "assistant"


class SelfChat(ChatMethod):
    """Writes conversations that begin with the instruction of a seed."""

    name = "self_chat"
    stages = (Stage(ASSISTANT), Stage(USER))
    starts_from: ClassVar[Start] = "tasks"
    finite: ClassVar[bool] = True

    turns: tuple[int, int] = Field(
        (2, 4),
        description="Minimum and maximum number of turns (a message of the user with its answer).",
    )
    messages: SamplingOptions = Field(
        SamplingOptions(temperature=0.9, top_p=0.95, max_tokens=300),
        description="Sampling parameters for the messages of the user.",
    )
    answers: SamplingOptions = Field(
        SamplingOptions(temperature=0.7, top_p=0.95, max_tokens=1024),
        description="Sampling parameters for answers.",
    )

    @field_validator("turns")
    @classmethod
    def _check_turns(cls, turns: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= turns[0] <= turns[1] <= 20:
            raise ValueError("must be two numbers from 1 to 20, the smaller one first")
        return turns

    def fits(self, seed: Sample) -> bool:
        """Return whether a seed has no calls of tools."""
        return not seed.tools and not seed.steps

    def start(self, pool: Pool, rng: random.Random, number: int, form: PromptSetup) -> Draft:
        """Take the next seed as the first message, and draw the number of turns."""
        draft = draft_of_seed(pool, number, ASSISTANT, "instruction", "input", "history")
        sample = replace(draft.sample, instruction=draft.sample.question, input="")
        return replace(draft, sample=sample, state={"turns": rng.randint(*self.turns)})

    def request(self, pool: Pool, draft: Draft, form: PromptSetup) -> Request:
        """Return the request for the next message of the user or of the assistant."""
        sample = draft.sample
        if draft.stage == ASSISTANT:
            asked = self.template(sample.language).question(sample)
            return Request(asked, self.answers.sampling(), stage=ASSISTANT)
        conversation = "\n\n".join(f"[{m.role}] {m.content}" for m in sample.messages)
        prompt = self.template(sample.language).prompt(
            "self_chat", "user", conversation=conversation
        )
        return Request(prompt, self.messages.sampling(), stage=USER)

    def read(self, draft: Draft, completion: Completion, form: PromptSetup) -> list[Outcome]:
        """Return the conversation with the new message, or the row after the last turn."""
        sample, text = draft.sample, completion.text.strip()
        if (failed := completion_fault(completion)) is not None:
            return [self.reject(sample, *failed)]
        if draft.stage == USER:
            if not text:
                return [self.reject(sample, "empty_message", "the user wrote nothing")]
            history = (*sample.history, Message("user", sample.instruction), sample.answer)
            asked = replace(sample, history=history, instruction=text).with_answer("")
            return [Continue(replace(draft, stage=ASSISTANT, sample=asked))]
        sample = answered(sample, completion)
        if (fault := answer_fault(text)) is not None:
            return [self.reject(sample, *fault)]
        turns = sum(m.role == "user" for m in sample.history) + 1
        if turns < draft.state["turns"]:
            return [Continue(replace(draft, stage=USER, sample=sample))]
        return [Accept(sample)]
