"""Questions about documents, answered with quotes that are checked.

The questions come first, in the style of the user's own. Each is then answered from its passage.
The answer names the words of the passage that it follows from; these must be there. A judge decides
whether the answer follows from the passage.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import orjson
from pydantic import Field, model_validator

from instructgen.engines import Completion, Request, Sampling
from instructgen.generation.answers import answered, find_text
from instructgen.generation.methods import (
    Accept,
    ChatMethod,
    Continue,
    Draft,
    Outcome,
    PromptSetup,
    Propose,
    SamplingOptions,
    Stage,
    Start,
    completion_fault,
    draft_of_seed,
)
from instructgen.generation.prompts import Template, parse_json, parse_numbered, schema_of
from instructgen.generation.seed_pool import Pool
from instructgen.schema.sample import Label, Sample, Score
from instructgen.similarity import tokenize

_MOST_QUOTES = 2
QUESTIONS, ANSWER, JUDGE = "questions", "answer", "faithful"
Kind = Literal["factual", "summary", "comparison", "unanswerable"]
# Questions of the user that a prompt shows, and the most characters of each.
_SHOWN, _LONGEST_SHOWN = 3, 300
# The maximum distance, in segments, of two segments that are compared.
_NEAR = 3
_QUOTES = "\"'“”„«»「」"
_ANSWER_SCHEMA = {
    "type": "object",
    "properties": {
        "evidence": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
        "answerable": {"type": "boolean"},
        "answer": {"type": "string"},
    },
    "required": ["evidence", "answerable", "answer"],
    "additionalProperties": False,
}
_JUDGE_SCHEMA = {
    "type": "object",
    "properties": {
        "reason": {"type": "string", "maxLength": 400},
        "verdict": {"type": "string", "enum": ["yes", "no"]},
    },
    "required": ["reason", "verdict"],
    "additionalProperties": False,
}


class Document(ChatMethod):
    """Writes questions about the segments of documents, and answers with a quote that is checked.

    Segments are used in turn: one of each document, and of a document the first, the last, the
    middle one and so on. So also a small run sees the end of each document.
    """

    name = "document"
    stages = (Stage(QUESTIONS, 2.0), Stage(ANSWER, 0.6), Stage(JUDGE, 0.8, role="judge"))
    starts_from: ClassVar[Start] = "segments"
    finite: ClassVar[bool] = True
    uses_others: ClassVar[bool] = True
    recipe: ClassVar[str] = "grounded"

    shares: dict[Kind, float] = Field(
        {"factual": 0.65, "summary": 0.1, "comparison": 0.1, "unanswerable": 0.15},
        description="Fraction of the segments for each kind of question: factual, summary, "
        "comparison (of two near segments of a document), unanswerable (by the segment).",
    )
    questions: int = Field(
        3, ge=1, le=10, description="Number of factual questions about a segment."
    )
    passage: bool = Field(
        True,
        description="Whether the passage is the input of the row. Without it, the row has only "
        "the question, and unanswerable questions are left out.",
    )
    min_evidence_words: int = Field(5, ge=1, description="Minimum number of words of a quote.")
    max_evidence_share: float = Field(
        0.5, gt=0, le=1, description="Fraction of the segment that a quote must be shorter than."
    )
    asking: SamplingOptions = Field(
        SamplingOptions(temperature=0.8, top_p=0.95, max_tokens=400),
        description="Sampling parameters for questions.",
    )
    answers: SamplingOptions = Field(
        SamplingOptions(temperature=0.3, top_p=0.95, max_tokens=600),
        description="Sampling parameters for answers.",
    )

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        shares = self._shares().values()
        if not all(0 <= share < math.inf for share in shares) or not sum(shares) > 0:
            raise ValueError(
                "shares must have fractions of which at least one is above 0 (without passage, "
                "that of unanswerable questions does not count)"
            )
        return self

    def _shares(self) -> dict[Kind, float]:
        """Return the share of each kind of question that the rows can have."""
        return {k: v for k, v in self.shares.items() if self.passage or k != "unanswerable"}

    def fits(self, seed: Sample) -> bool:
        """Return whether a seed is a segment; the others are the user's questions."""
        return seed.place is not None

    def order(self, pool_seeds: Sequence[Sample], usable: list[int]) -> list[int]:
        """Return the segments so that each document, and each part of it, has its turn."""
        by_document: dict[tuple[str, str], list[int]] = {}
        for position in usable:
            by_document.setdefault(_document(pool_seeds[position]), []).append(position)
        queues = [[places[i] for i in spread(len(places))] for places in by_document.values()]
        longest = max(map(len, queues), default=0)
        return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]

    def start(self, pool: Pool, rng: random.Random, number: int, form: PromptSetup) -> Draft:
        """Take the next segment, and draw the kind of question."""
        draft = draft_of_seed(pool, number, QUESTIONS)
        shares = self._shares()
        (kind,) = rng.choices([*shares], [*shares.values()])
        position = draft.parents[0]
        if kind == "comparison":
            if others := _neighbors(pool, position):
                draft = replace(draft, parents=(position, rng.choice(others)))
            else:
                kind = "factual"
        shown = sorted(rng.sample(pool.others, min(_SHOWN, len(pool.others))))
        segments = [pool.at(p) for p in draft.parents]
        passages = [segment.instruction for segment in segments]
        state: dict[str, Any] = {"kind": kind, "shown": shown, "passages": passages}
        sample = draft.sample.with_label(Label("question_type", kind))
        if (place := segments[0].place) is not None:
            named = {"document": place.document, "heading": place.heading, "page": place.page}
            state["at"] = [s.place.start for s in segments if s.place is not None]
            for key, value in named.items():
                sample = sample.with_label(Label(key, str(value))) if value else sample
        if self.passage:
            sample = replace(sample, input="\n\n".join(passages))
        return replace(draft, sample=sample, state=state)

    def request(self, pool: Pool, draft: Draft, form: PromptSetup) -> Request:
        """Return the request for questions, for an answer or for the verdict about one."""
        template, sample = self.template(draft.sample.language), draft.sample
        passages = _passages(template, draft.state["passages"])
        if draft.stage == QUESTIONS:
            return self._asking(pool, draft, form, template, passages)
        values = {"passages": passages, "question": sample.instruction}
        if draft.stage == ANSWER:
            key = "answer" if form.structured else "answer_plain"
            prompt = template.prompt("document", key, **values)
            schema = _ANSWER_SCHEMA if form.structured else None
            return Request(prompt, self.answers.sampling(), schema, stage=ANSWER)
        absent = draft.state["kind"] == "unanswerable"
        key = "judge_unanswerable" if absent else "judge"
        prompt = template.prompt("document", key, answer=sample.output, **values)
        schema = _JUDGE_SCHEMA if form.judge_structured else None
        return Request(prompt, Sampling(temperature=0.0, max_tokens=300), schema, stage=JUDGE)

    def _asking(
        self, pool: Pool, draft: Draft, form: PromptSetup, template: Template, passages: str
    ) -> Request:
        shown = [pool.at(p).question[:_LONGEST_SHOWN] for p in draft.state["shown"]]
        examples = shown or template.text("document", "examples").split("\n")
        style = "\n".join(f"- {' '.join(example.split())}" for example in examples)
        kind = draft.state["kind"]
        asked = template.text("document", kind, count=str(self.questions))
        key = "questions" if form.structured else "questions_plain"
        prompt = template.prompt("document", key, passages=passages, style=style, asked=asked)
        most = self.questions if kind == "factual" else 1
        schema = schema_of("questions", {"type": "string"}, most) if form.structured else None
        return Request(prompt, self.asking.sampling(), schema, stage=QUESTIONS)

    def read(self, draft: Draft, completion: Completion, form: PromptSetup) -> list[Outcome]:
        """Return the questions as instructions, the checked answer, or the row."""
        if (failed := completion_fault(completion)) is not None:
            return [self.reject(draft.sample, *failed)]
        text = completion.text.strip()
        if draft.stage == QUESTIONS:
            return self._questions(draft, text, form)
        if draft.stage == ANSWER:
            return [self._answer(draft, completion, form)]
        verdict = _verdict(self.template(draft.sample.language), text, form)
        if verdict is None:
            return [self.reject(draft.sample, "unscored", "the judge gave no verdict")]
        sample = draft.sample.with_score(Score("faithful", float(verdict)))
        if not verdict:
            return [self.reject(sample, "unfaithful", "the judge says no", 0.0)]
        return [Accept(sample)]

    def _questions(self, draft: Draft, text: str, form: PromptSetup) -> list[Outcome]:
        most = self.questions if draft.state["kind"] == "factual" else 1
        if form.structured:
            found = [q.strip() for q in parse_json(text, "questions") if isinstance(q, str)]
        else:
            found = _listed(text, most)
        found = [q for q in found if q][:most]
        if not found:
            return [self.reject(draft.sample, "no_question", "the completion has no question")]
        drafts = [replace(draft, sample=replace(draft.sample, instruction=q)) for q in found]
        return [Propose(replace(d, stage=ANSWER)) for d in drafts]

    def _answer(self, draft: Draft, completion: Completion, form: PromptSetup) -> Outcome:
        sample, kind = draft.sample, draft.state["kind"]
        parsed = _parsed(self.template(sample.language), completion.text, form)
        if parsed is None:
            sample = answered(sample, completion)
            return self.reject(sample, "unreadable", "the completion does not have the form")
        quotes, answerable, text = parsed
        sample = answered(sample, replace(completion, text=text))
        if not text:
            return self.reject(sample, "empty_answer", "the answer is empty")
        if kind == "unanswerable":
            if answerable:
                return self.reject(sample, "answerable", "the question has an answer after all")
        elif not answerable:
            return self.reject(sample, "not_answerable", "the passage does not have the answer")
        else:
            fault = self._evidence_fault(draft, quotes)
            sample = _with_evidence(sample, quotes, draft)
            if fault is not None:
                return self.reject(sample, *fault)
        sample = sample.with_label(Label("answerable", "yes" if answerable else "no"))
        return Continue(replace(draft, stage=JUDGE, sample=sample))

    def _evidence_fault(self, draft: Draft, quotes: list[str]) -> tuple[str, str] | None:
        """Return the reason and a sentence if the quotes are not evidence, or None."""
        passages = draft.state["passages"]
        if len(quotes) < len(passages):
            return "evidence_missing", f"{len(quotes)} quotes from {len(passages)} passages"
        if len(quotes) > _MOST_QUOTES:
            return "too_many_quotes", f"there are {len(quotes)} quotes"
        places = []
        for quote in quotes:
            words = len(tokenize(quote))
            if words < self.min_evidence_words:
                return "evidence_too_short", f"a quote has {words} words"
            places.append([find_text(quote, passage) for passage in passages])
            if not any(places[-1]):
                return "evidence_not_found", "a quote is not in the passage"
        for k, passage in enumerate(passages):
            quoted = _words_within(passage, [at for each in places if (at := each[k])])
            if quoted >= self.max_evidence_share * len(tokenize(passage)):
                return "evidence_too_long", f"{quoted} words are quoted, too much of the passage"
        if len(passages) > 1:
            # With an overlap, both passages may contain a quote, which is then not one of each.
            (a, b), (same, other) = (" ".join(q.split()) for q in quotes), places
            of_each = (same[0] and other[1]) or (same[1] and other[0])
            if not of_each or a in b or b in a:
                return "evidence_missing", "one of the passages has no quote of its own"
        return None


def _listed(text: str, most: int) -> list[str]:
    """Return the questions of a numbered list, or the only line; [] for several other lines."""
    # Models write a sentence before the list, and numbers in bold.
    text = re.sub(r"^[ \t]*\*\*(.*?)\*\*[ \t]*$", r"\1", text, flags=re.MULTILINE)
    if (first := re.search(r"^[ \t]*\d+\s?[.)]", text, re.MULTILINE)) is not None:
        return parse_numbered(text[first.start() :], most)
    return [] if "\n" in text.strip() else [text]


def _words_within(passage: str, places: list[tuple[int, int]]) -> int:
    """Return the number of words of a passage that are in any of these places."""
    words, last = 0, 0
    for start, end in sorted(places):
        words += len(tokenize(passage[max(start, last) : end])) if end > last else 0
        last = max(last, end)
    return words


def _with_evidence(sample: Sample, quotes: Sequence[str], draft: Draft) -> Sample:
    """Return the sample with the quotes as labels, each with its position in the document."""
    for number, quote in enumerate(quotes, start=1):
        suffix = "" if number == 1 else f"_{number}"
        sample = sample.with_label(Label(f"evidence{suffix}", quote))
        for passage, start in zip(draft.state["passages"], draft.state["at"], strict=True):
            if (place := find_text(quote, passage)) is not None:
                positions = f"{start + place[0]}:{start + place[1]}"
                sample = sample.with_label(Label(f"evidence_at{suffix}", positions))
                break
    return sample


def _parsed(template: Template, text: str, form: PromptSetup) -> tuple[list[str], bool, str] | None:
    """Return the quotes, whether the question can be answered, and the answer; None if unread."""
    if form.structured:
        try:
            value: Any = orjson.loads(text)
            quotes, answerable = value["evidence"], value["answerable"]
            answer = value["answer"].strip()
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            return None
        if not isinstance(quotes, list) or not all(isinstance(q, str) for q in quotes):
            return None
        return [q for quote in quotes if (q := _unquoted(quote))], answerable is True, answer
    labels = [template.text("document", key) for key in ("evidence", "answer_label")]
    parts = re.split(rf"^[ \t]*{re.escape(labels[1])}[ \t]*[:：]", text, maxsplit=1, flags=re.M)
    if len(parts) != 2:
        return None
    given = re.split(rf"^[ \t]*{re.escape(labels[0])}[ \t]*[:：]", parts[0], flags=re.M)[1:]
    quotes = [quote for part in given if (quote := _unquoted(template.given(part)))]
    return quotes, bool(quotes), parts[1].strip()


def _unquoted(text: str) -> str:
    text = text.strip()
    return (
        text[1:-1].strip() if len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES else text
    )


def _verdict(template: Template, text: str, form: PromptSetup) -> bool | None:
    """Return whether the judge says yes, or None if it says neither yes nor no."""
    if form.judge_structured:
        try:
            verdict: Any = orjson.loads(text)["verdict"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return None
        return {"yes": True, "no": False}.get(verdict) if isinstance(verdict, str) else None
    last = text.rsplit("\n", 1)[-1]
    no = tokenize(template.labels["no"])
    if template.is_yes(last):
        return True
    return False if tokenize(last)[: len(no)] == no else None


def _neighbors(pool: Pool, position: int) -> list[int]:
    """Return the segments of the same document that are at most three places away."""
    near = range(max(0, position - _NEAR), min(len(pool.seeds), position + _NEAR + 1))
    name = _document(pool.at(position))
    return [p for p in near if p != position and all(name) and _document(pool.at(p)) == name]


def _document(segment: Sample) -> tuple[str, str]:
    """Return the name and the digest: two folders may have files of the same name."""
    place = segment.place
    return (place.document, place.sha256) if place is not None else ("", "")


def spread(count: int) -> Iterator[int]:
    """Yield the numbers below ``count``: the first, the last, the middle one, and so on."""
    if count:
        yield 0
    if count > 1:
        yield count - 1
    gaps = [(0, count - 1)]
    while gaps:
        wider: list[tuple[int, int]] = []
        for low, high in gaps:
            if high - low > 1:
                middle = (low + high) // 2
                yield middle
                wider += [(low, middle), (middle, high)]
        gaps = wider


def _passages(template: Template, texts: Sequence[str]) -> str:
    """Return the passages between lines that none of them contains."""
    longest = max((len(run) for text in texts for run in re.findall("=+", text)), default=0)
    line = "=" * max(5, longest + 1)
    shown = "\n".join(f"{text}\n{line}" for text in texts)
    return f"{template.text('document', 'data')}\n\n{line}\n{shown}"
