"""Evol-Instruct (Xu et al. 2023), which makes tasks harder or rarer, round by round.

Each round changes a row with one of five operations, compares the result with its parent, and
answers it. A result that adds nothing, or whose answer is useless, is eliminated (section 3.2 of
the paper); the next round then starts from its parent again.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from instructgen.engines import Completion, Request, Sampling
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
from instructgen.generation.prompts import parse_json, schema_of
from instructgen.generation.seed_pool import Pool
from instructgen.schema.sample import Label, Sample
from instructgen.similarity import tokenize

EVOLVE, COMPARE, ANSWER = "evolve", "compare", "answer"
Operation = Literal["constraints", "deepen", "concretize", "reasoning", "breadth"]
OPERATIONS: tuple[Operation, ...] = (
    "constraints", "deepen", "concretize", "reasoning", "breadth",
)  # fmt: skip
_VERDICTS = ("equal", "different")
_VERDICT_TOKENS = 64
# Words of the request that a model copies into its task.
_FRAME = ("given prompt", "rewritten prompt", "given task", "rewritten task")


class Evol(ChatMethod):
    """Rewrites the instructions of rows into harder or rarer ones, and answers them."""

    name = "evol"
    stages = (Stage(EVOLVE), Stage(COMPARE, role="judge"), Stage(ANSWER))
    starts_from: ClassVar[Start] = "rows"
    finite: ClassVar[bool] = True

    rounds: int = Field(4, ge=1, description="Number of rounds for each seed row.")
    operations: tuple[Operation, ...] = Field(
        OPERATIONS, min_length=1, description="Operations, one of which is drawn for each round."
    )
    compare: bool = Field(
        True,
        description="Whether the judge compares each new task with the one that it was made from. "
        "A small model cannot: the included one finds all tasks equal.",
    )
    evolution: SamplingOptions = Field(
        SamplingOptions(temperature=1.0, top_p=0.95, max_tokens=2048),
        description="Sampling parameters for new instructions.",
    )
    answers: SamplingOptions = Field(
        SamplingOptions(temperature=0.7, top_p=0.95, max_tokens=2048),
        description="Sampling parameters for answers.",
    )

    def fits(self, seed: Sample) -> bool:
        """Return whether a seed is a question with an answer, without earlier messages."""
        return bool(seed.output) and seed.plain and not seed.context

    def start(self, pool: Pool, rng: random.Random, number: int, form: PromptSetup) -> Draft:
        """Take the next row, and draw the operation of each round."""
        draft = draft_of_seed(pool, number, EVOLVE, "instruction", "input", "output")
        drawn = [rng.choice(self.operations) for _ in range(self.rounds)]
        return replace(draft, state={"operations": drawn, "round": 0})

    def request(self, pool: Pool, draft: Draft, form: PromptSetup) -> Request:
        """Return the request for a new instruction, for a comparison, or for an answer."""
        template, parent = self.template(draft.sample.language), draft.sample.question
        if draft.stage == EVOLVE:
            operation = draft.state["operations"][draft.state["round"]]
            values = {"task": parent}
            if operation != "breadth":
                values["operation"] = template.text("evol", operation)
            key = "breadth" if operation == "breadth" else "depth"
            return Request(
                template.prompt("evol", key, **values), self.evolution.sampling(), stage=EVOLVE
            )
        child = draft.state["child"]
        if draft.stage == COMPARE:
            prompt = template.prompt("evol", "compare", first=parent, second=child)
            words = {"type": "string", "enum": [template.text("evol", w) for w in _VERDICTS]}
            return Request(
                prompt,
                Sampling(temperature=0.0, max_tokens=_VERDICT_TOKENS),
                schema_of("answer", words, 1) if form.judge_structured else None,
                stage=COMPARE,
            )
        asked = template.question(Sample(child))
        return Request(asked, self.answers.sampling(), stage=ANSWER)

    def read(self, draft: Draft, completion: Completion, form: PromptSetup) -> list[Outcome]:
        """Return the draft with its new instruction, or the row and the next round."""
        child = replace(draft.sample, instruction=draft.state.get("child", ""), input="", output="")
        failed = completion_fault(completion)
        # The first word of a verdict is enough.
        if failed and (draft.stage != COMPARE or completion.finish_reason == "error"):
            return self._eliminated(draft, child, *failed)
        text = completion.text.strip()
        if draft.stage == EVOLVE:
            child = replace(child, instruction=text)
            if not tokenize(text):
                return self._eliminated(draft, child, "empty", "the new task is empty")
            if any(words in text.lower() for words in _FRAME):
                return self._eliminated(draft, child, "copies_request", "words of the request")
            stage = COMPARE if self.compare else ANSWER
            return [Continue(replace(draft, stage=stage, state={**draft.state, "child": text}))]
        if draft.stage == COMPARE:
            verdict = self._verdict(text, child.language, form)
            if verdict == "different":
                return [Continue(replace(draft, stage=ANSWER))]
            detail = "the new task adds nothing" if verdict == "equal" else f"{text[:40]!r}"
            return self._eliminated(draft, child, verdict, detail)
        if (fault := answer_fault(text)) is not None:
            return self._eliminated(draft, answered(child, completion), *fault)
        operation, round_ = draft.state["operations"][draft.state["round"]], draft.state["round"]
        labels = (Label("operation", operation), Label("round", str(round_ + 1)))
        row = replace(answered(child, completion), labels=labels)
        grown = replace(draft, sample=replace(row, labels=()), ancestors=(row.id, *draft.ancestors))
        return [Accept(row), *self._next_round(grown)]

    def _verdict(self, text: str, language: str, form: PromptSetup) -> str:
        """Return ``equal``, ``different``, or ``unreadable``."""
        said = " ".join(map(str, parse_json(text, "answer"))) if form.judge_structured else text
        for verdict in _VERDICTS:
            words = tokenize(self.template(language).text("evol", verdict))
            if tokenize(said)[: len(words)] == words:
                return verdict
        return "unreadable"

    def _eliminated(self, draft: Draft, child: Sample, reason: str, detail: str) -> list[Outcome]:
        return [self.reject(child, reason, detail), *self._next_round(draft)]

    def _next_round(self, draft: Draft) -> list[Outcome]:
        round_ = draft.state["round"] + 1
        if round_ >= self.rounds:
            return []
        state = {"operations": draft.state["operations"], "round": round_}
        return [Continue(replace(draft, stage=EVOLVE, state=state))]
