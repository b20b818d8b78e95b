"""Reverse instructions (LongForm, arXiv 2304.08460; Humpback, arXiv 2308.06259).

A text that a person wrote is the answer, and the model writes the request that it answers. A judge
then scores how well the two fit. Only pairs with the best score are kept.
"""

from __future__ import annotations

import random
import re
import unicodedata
from dataclasses import replace
from typing import ClassVar, Literal

import orjson
from pydantic import Field

from instructgen.engines import Completion, Request, Sampling
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
from instructgen.schema.sample import Score

INSTRUCTION, SCORE = "instruction", "score"
_SCHEMA = {
    "type": "object",
    "properties": {
        "reason": {"type": "string", "maxLength": 400},
        "score": {"type": "integer", "minimum": 1, "maximum": 5},
    },
    "required": ["reason", "score"],
    "additionalProperties": False,
}
# The ends of a paragraph, of a sentence and of a word.
_ENDS = tuple(map(re.compile, (r"\n\s*\n", r"[.!?。！？؟।…](?=\s|$)|[。！？]", r"\s")))
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_OF_FIVE = re.compile(r"(?:/|out of)\s*5\b")


class Reverse(ChatMethod):
    """Writes the request to which a text is the answer, and keeps pairs that fit."""

    name = "reverse"
    stages = (Stage(INSTRUCTION), Stage(SCORE, role="judge"))
    starts_from: ClassVar[Start] = "documents"
    finite: ClassVar[bool] = True

    kind: Literal["instruction", "chat", "query"] = Field(
        "instruction", description="Kind of request: an instruction, a chat message or a query."
    )
    min_score: int = Field(5, ge=1, le=5, description="Minimum score of a kept pair.")
    max_text_characters: int = Field(
        2200,
        ge=100,
        description="Maximum length of a text. A longer one is cut off after a paragraph, a "
        "sentence or a word.",
    )
    min_characters: int = Field(
        10,
        ge=1,
        description="Minimum length of a request. A character of Chinese, Japanese or Korean, "
        "which is about a word, counts three times.",
    )
    max_characters: int = Field(800, ge=1, description="Maximum length of a request.")
    requests: SamplingOptions = Field(
        SamplingOptions(temperature=0.7, top_p=0.95, max_tokens=400),
        description="Sampling parameters for requests.",
    )

    def start(self, pool: Pool, rng: random.Random, number: int, form: PromptSetup) -> Draft:
        """Take the next text."""
        draft = draft_of_seed(pool, number, INSTRUCTION, "instruction", "output")
        text = _beginning(draft.sample.output or draft.sample.instruction, self.max_text_characters)
        return replace(draft, sample=replace(draft.sample, instruction="", output=text))

    def request(self, pool: Pool, draft: Draft, form: PromptSetup) -> Request:
        """Return the request for an instruction, or for the score of a pair."""
        sample, template = draft.sample, self.template(draft.sample.language)
        if draft.stage == INSTRUCTION:
            prompt = template.prompt("reverse", self.kind, text=sample.output)
            return Request(prompt, self.requests.sampling(), stage=INSTRUCTION)
        prompt = template.prompt(
            "reverse", "score", instruction=sample.instruction, output=sample.output
        )
        schema = _SCHEMA if form.judge_structured else None
        return Request(prompt, Sampling(temperature=0.0, max_tokens=200), schema, stage=SCORE)

    def read(self, draft: Draft, completion: Completion, form: PromptSetup) -> list[Outcome]:
        """Return the draft with its instruction, or the row with its score."""
        sample, text = draft.sample, completion.text.strip()
        if draft.stage == INSTRUCTION:
            sample = replace(sample, instruction=text)
        if (failed := completion_fault(completion)) is not None:
            return [self.reject(sample, *failed)]
        if draft.stage == INSTRUCTION:
            if not self.min_characters <= _length(text) <= self.max_characters:
                return [self.reject(sample, "length", f"the request has {len(text):,} characters")]
            return [Continue(replace(draft, stage=SCORE, sample=sample))]
        score = _score(text, structured=form.judge_structured)
        if score is None:
            return [self.reject(sample, "unscored", "the judge gave no score from 1 to 5")]
        sample = sample.with_score(Score("fit", float(score)))
        if score < self.min_score:
            return [self.reject(sample, "low_score", f"score {score}", float(score))]
        return [Accept(sample)]


def _beginning(text: str, most: int) -> str:
    """Return the beginning of a text, up to the last possible end of a paragraph or sentence."""
    text = text.strip()
    if len(text) <= most:
        return text
    head = text[:most]
    for end in _ENDS:
        places = [match.end() for match in end.finditer(head)]
        # A beginning that is much shorter than allowed would lose most of the text.
        if places and places[-1] > most / 2:
            return head[: places[-1]].rstrip()
    return head


def _length(text: str) -> int:
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + 2 * wide


def _score(text: str, *, structured: bool) -> int | None:
    if structured:
        try:
            value = orjson.loads(text)["score"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return None
        # In Python, true is an integer.
        return value if type(value) is int and 1 <= value <= 5 else None
    numbers = _NUMBER.findall(_OF_FIVE.sub("", text))
    last = numbers[-1] if numbers else ""
    # A number of thousands of digits cannot be converted.
    return int(last) if len(last) <= 2 and last.isdecimal() and 1 <= int(last) <= 5 else None
