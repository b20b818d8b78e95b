"""Base classes for filters, which decide for each sample whether to keep or reject it.

Each filter has its own file in this package. The fields of its class are the options that a
recipe can set for it. The recipes in the top-level folder ``filters/`` set the thresholds that
are used in practice.

A `Transform` changes samples, a `ScoringFilter` attaches a score to each sample (an `AskingFilter`
asks a language model for it), a `ComparingFilter` compares each sample with earlier ones, and a
`SelectingFilter` receives all samples before it decides.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self

from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from instructgen.engines import Completion, Request
from instructgen.schema.messages import Message, json_text
from instructgen.schema.sample import Edit, Rejection, Sample, Score
from instructgen.schema.state import StatefulModel
from instructgen.similarity import Match, Pairs

Stage = Literal["instruction", "row"]
Scope = Literal["instruction", "row", "both"]
# Words of an n-gram. A text is stored once per word of an n-gram, so the bound limits the memory.
LONGEST_NGRAM = 100


class Verdict(NamedTuple):
    """The result of a filter for one sample: the (possibly changed) sample and any rejection.

    ``rejection`` is None if the filter keeps the sample. ``value`` is the number that the filter
    compared with its thresholds, or None for a filter without thresholds.
    """

    sample: Sample
    rejection: Rejection | None = None
    value: float | None = None


class Filter(StatefulModel, ABC):
    """Base class for all filters; a filter keeps a sample, or rejects it and gives the reason.

    ``scope`` states what the filter evaluates: ``instruction`` (a new instruction that has no
    answer yet), ``row`` (the finished row), or ``both``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str]
    scope: ClassVar[Scope] = "instruction"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Raise TypeError if a subclass overrides `evaluate` under its old name, ``judge``."""
        if "judge" in vars(cls):
            raise TypeError(f"{cls.__name__}.judge: rename the method to evaluate")
        super().__init_subclass__(**kwargs)

    @abstractmethod
    def reason(self, sample: Sample) -> Rejection | None:
        """Return a `Rejection` with the reason, or None to keep the sample."""

    def evaluate(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Return one verdict for each sample, in order."""
        verdicts = []
        for sample in samples:
            rejection = self.reason(sample)
            value = self.value(sample) if rejection is None else rejection.score
            verdicts.append(Verdict(sample, rejection, value))
        return verdicts

    @property
    def value_name(self) -> str:
        """Return the name under which rows store the value of the filter."""
        return self.name

    def value(self, sample: Sample) -> float | None:
        """Return the number that was compared with the thresholds to keep a sample, or None."""
        return None

    def values(self, verdict: Verdict) -> dict[str, float]:
        """Return the value of a verdict under its name, for the row's ``filter_values``."""
        return {} if verdict.value is None else {self.value_name: float(verdict.value)}

    def thresholds(self) -> tuple[float, ...]:
        """Return the thresholds. Reports show rows whose values are close to one of them."""
        return ()

    def remember(self, sample: Sample) -> None:
        """Store a seed task or a sample that all filters kept, to compare later samples with it."""

    def named(self) -> tuple[Literal["score", "label"], str] | None:
        """Return the score or label that the filter reads from rows, or None if it reads none.

        If no row of a dataset has it, the command `curate` raises an error.
        """
        return None

    def files(self) -> tuple[Path, ...]:
        """Return the paths of the files that the verdicts depend on."""
        return ()

    def reject(
        self, reason: str, detail: str = "", score: float | None = None, nearest: str | None = None
    ) -> Rejection:
        """Create a rejection by this filter; ``nearest`` is the id of the most similar sample."""
        return Rejection(self.name, reason, detail, score, nearest)


class Transform(Filter):
    """Base class for filters that change samples and list the changes in the field ``edits``.

    A sample whose instruction or answer is empty after the change is rejected.
    """

    scope: ClassVar[Scope] = "row"

    @abstractmethod
    def change(self, text: str, field: str) -> tuple[str, list[str]]:
        """Return the changed text of a field, and one description for each kind of change.

        If nothing needs to change, the text is returned unchanged.
        """

    def reason(self, sample: Sample) -> Rejection | None:
        """Return a rejection (``empty_instruction`` or ``empty_output``), or None."""
        return self.evaluate([sample])[0].rejection

    def evaluate(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Return one verdict for each sample, in order."""
        return [self._apply(sample) for sample in samples]

    def _apply(self, sample: Sample) -> Verdict:
        new: dict[str, Any] = {}
        edits: list[Edit] = []
        for field in ("instruction", "input", "output", "rejected_output"):
            text = getattr(sample, field)
            if text:
                changed, details = self.change(text, field)
                if changed != text:
                    new[field] = changed
                    edits += [Edit(self.name, field, detail) for detail in details]
        for field in ("history", "steps"):
            messages = tuple(self._changed(m) for m in getattr(sample, field))
            if messages != getattr(sample, field):
                new[field] = messages
                edits.append(Edit(self.name, field, "messages changed by the same rules"))
        answers = {"": sample.answer, "rejected_": sample.rejected_answer}
        for prefix, answer in answers.items():
            if answer is not None and not answer.plain:
                changed_answer = self._changed(replace(answer, content=""))
                for part in ("reasoning_content", "tool_calls"):
                    if getattr(changed_answer, part) != getattr(answer, part):
                        new[prefix + part] = getattr(changed_answer, part)
                        edits.append(Edit(self.name, prefix + part, "changed by the same rules"))
        if not edits:
            return Verdict(sample)
        sample = replace(sample, **new, edits=(*sample.edits, *edits))
        # An answer may consist of tool calls only.
        required = {"instruction": True, "output": not sample.tool_calls}
        required["rejected_output"] = "rejected_output" in new and not sample.rejected_tool_calls
        for field, is_required in required.items():
            if is_required and not (getattr(sample, field) or "").strip():
                return Verdict(
                    sample, self.reject(f"empty_{field}", f"the {field} is empty after the change")
                )
        return Verdict(sample)

    def _changed(self, message: Message) -> Message:
        """Return a message with all its texts changed, also those in arguments of tool calls."""

        def change(value: Any) -> Any:
            if isinstance(value, str):
                return self.change(value, "history")[0]
            if isinstance(value, list):
                return [change(v) for v in value]
            return {k: change(v) for k, v in value.items()} if isinstance(value, dict) else value

        calls = tuple(
            replace(call, arguments=json_text(change(json.loads(call.arguments))))
            for call in message.tool_calls
        )
        return replace(
            message,
            content=change(message.content),
            reasoning_content=change(message.reasoning_content),
            tool_calls=calls,
        )


class ScoringFilter(Filter):
    """Base class for filters that score each row and reject rows whose score is out of bounds.

    If a score cannot be computed, the error is stored instead of a value, and ``on_error``
    determines whether the row is kept. A score that a row already has is not computed again, so
    a dataset can be curated with different bounds without computing its scores again.
    """

    scope: ClassVar[Scope] = "row"

    on_error: Literal["keep", "reject"] = Field(
        "keep", description="Whether to keep or reject a row whose score cannot be computed."
    )
    min: float | None = Field(None, description="Reject rows whose score is below this value.")
    max: float | None = Field(None, description="Reject rows whose score is above this value.")

    @property
    @abstractmethod
    def score_name(self) -> str:
        """Return the name under which the score is stored, such as ``ifd/smollm2``."""

    @abstractmethod
    def scores(self, samples: Sequence[Sample]) -> list[Score]:
        """Return the score of each sample, in order."""

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min = {self.min:g} must not be above max = {self.max:g}")
        return self

    def values(self, verdict: Verdict) -> dict[str, float]:
        """Return nothing: the value of the filter is one of the row's scores."""
        return {}

    def reason(self, sample: Sample) -> Rejection | None:
        """Return a rejection (``too_low``, ``too_high``, ``no_score``), or None to keep the row."""
        return self.evaluate([sample])[0].rejection

    def thresholds(self) -> tuple[float, ...]:
        """Return the bounds ``min`` and ``max``, except those that are not set."""
        return tuple(b for b in (self.min, self.max) if b is not None)

    def evaluate(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Return one verdict for each sample, in order."""
        missing = [i for i, s in enumerate(samples) if s.score(self.score_name) is None]
        scored = list(samples)
        # Without a sample to score, a filter must not load its model.
        scores = self.scores([samples[i] for i in missing]) if missing else []
        for i, score in zip(missing, scores, strict=True):
            scored[i] = samples[i].with_score(score)
        return [self._verdict(sample) for sample in scored]

    def _verdict(self, sample: Sample) -> Verdict:
        score = sample.score(self.score_name)
        assert score is not None  # `evaluate` adds the score first
        if score.value is None:
            rejection = self.reject("no_score", score.error or "the score is missing")
            return Verdict(sample, rejection if self.on_error == "reject" else None)
        if (low := self.min) is not None and score.value < low:
            detail = f"{score.name} is {score.value:.4g}, below {low:g}"
            return Verdict(sample, self.reject("too_low", detail, score.value), score.value)
        if (high := self.max) is not None and score.value > high:
            detail = f"{score.name} is {score.value:.4g}, above {high:g}"
            return Verdict(sample, self.reject("too_high", detail, score.value), score.value)
        return Verdict(sample, None, score.value)


class AskingFilter(ScoringFilter):
    """Base class for filters that ask a language model, the judge, for the score of each row.

    The commands send the requests, and record them in a journal, so that each is paid for once.
    ``model`` is part of the names of the scores.
    """

    model: str = Field(
        "",
        description="Model that scores the rows. Default: the model of --judge or of the table "
        "[judge]; in generate, the model that writes the rows if there is neither.",
    )

    @abstractmethod
    def request(self, sample: Sample, *, structured: bool) -> Request:
        """Return the request for the score; ``structured``: the engine enforces JSON schemas."""

    @abstractmethod
    def read(self, sample: Sample, completion: Completion) -> Sample:
        """Return the sample with the score, or the error, that the completion contains."""

    def label_names(self) -> tuple[str, ...]:
        """Return the names of the labels that `read` adds."""
        return ()

    def too_low(self, sample: Sample) -> Rejection | None:
        """Return a rejection because of a score other than the main one, or None."""
        return None

    def scores(self, samples: Sequence[Sample]) -> list[Score]:
        """Return an error for each sample: only commands can ask a model."""
        error = "only generate and curate ask the judge"
        return [Score(self.score_name, None, error) for _ in samples]

    def _verdict(self, sample: Sample) -> Verdict:
        verdict = super()._verdict(sample)
        if verdict.rejection is None and (rejection := self.too_low(sample)) is not None:
            return Verdict(sample, rejection, verdict.value)
        return verdict


class SelectingFilter(Filter):
    """Base class for filters that compare all rows of a dataset before they reject any row.

    Only the command `curate` can use them. The rows that reach such a filter are in a temporary
    file until it has decided.
    """

    scope: ClassVar[Scope] = "row"

    def reason(self, sample: Sample) -> Rejection | None:
        """Raise NotImplementedError: this filter cannot evaluate a single row."""
        raise NotImplementedError(f"The filter {self.name} works only in the command curate.")

    @abstractmethod
    def select(
        self, samples: Iterable[Sample], folder: Path | None = None
    ) -> Mapping[int, Rejection]:
        """Return the rejection of each sample that is rejected, by its position.

        Args:
            samples: the samples, which can be iterated over once.
            folder: folder of temporary files; None for the system's folder for such files.
        """


class Index(Protocol):
    """Interface of the similarity indexes in `instructgen.similarity`."""

    def add(self, texts: Sequence[str], /) -> None:
        """Append texts to the index, one row per text."""

    def nearest(self, texts: Sequence[str], /) -> list[Match | None]:
        """For each text, return the most similar row of the index above the threshold, or None."""

    def pairs(self, texts: Sequence[str], /) -> Pairs:
        """Return all pairs of a text and an index row whose similarity is above the threshold."""


class EarlierSample(NamedTuple):
    """The stored part of an earlier sample: its id and the texts that are used in comparisons."""

    id: str
    texts: tuple[str, ...]


class EarlierMatch(NamedTuple):
    """An earlier sample that is similar to a new one, and the similarity score of the two."""

    score: float
    seen: EarlierSample


class ComparingFilter(Filter):
    """Base class for filters that compare each sample's text with those of earlier kept samples.

    ``needs`` lists the fields of a kept sample that are stored, because `decide` uses them.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    # Longer texts are rejected. ROUGE-L accepts at most 100,000 words, and in scripts
    # without spaces each character may count as a word.
    max_characters: ClassVar[int] = 100_000

    _index: Index = PrivateAttr()
    # The earlier samples, by their row in the index. Ids are stored as integers to save
    # memory with millions of rows. Pending texts are added in one batch at the next lookup.
    _ids: array[int] = PrivateAttr(default_factory=lambda: array("Q"))
    _texts: list[tuple[str, ...]] = PrivateAttr(default_factory=list)
    _pending: list[str] = PrivateAttr(default_factory=list)

    @abstractmethod
    def index(self) -> Index:
        """Return a new, empty index of texts, for the search for similar earlier samples."""

    @abstractmethod
    def decide(self, sample: Sample, matches: Sequence[EarlierMatch]) -> Rejection | None:
        """Return a rejection, or None; ``matches`` are similar earlier samples, oldest first."""

    def text(self, sample: Sample) -> str:
        """Return the text that is compared with earlier ones: by default, the instruction."""
        return sample.instruction

    def model_post_init(self, context: object) -> None:
        """Create the empty index of earlier samples."""
        super().model_post_init(context)
        self._index = self.index()

    def search_in(self, index: Index) -> None:
        """Store and search texts in another index, which must be empty, like this one's."""
        self._index = index

    def reason(self, sample: Sample) -> Rejection | None:
        """Compare the sample with all stored samples; return a rejection, or None to keep it."""
        return BlockMatches(self, [sample]).reason(0, sample)

    def remember(self, sample: Sample) -> None:
        """Store the sample so that later samples are compared with it."""
        self._ids.append(int(sample.id, 16))
        if self.needs:
            self._texts.append(self._needed_fields(sample))
        self._pending.append(self.text(sample))

    def too_long(self, sample: Sample) -> Rejection | None:
        """Return a rejection (``too_long``) if the text is too long to compare, otherwise None."""
        length = len(self.text(sample))
        if length <= self.max_characters:
            return None
        return self.reject(
            "too_long",
            f"the text has {length:,} characters; at most {self.max_characters:,} can be compared",
        )

    def seen(self, sample: Sample) -> EarlierSample:
        """Return the id of a sample and its fields in ``needs``, for `decide`."""
        return EarlierSample(sample.id, self._needed_fields(sample))

    def pairs(self, texts: Sequence[str]) -> list[list[EarlierMatch]]:
        """For each text, return the stored samples above the similarity threshold, oldest first."""
        if self._pending:
            self._index.add(self._pending)
            self._pending.clear()
        matches: list[list[EarlierMatch]] = [[] for _ in texts]
        if self._ids:
            for text, row, score in zip(
                *(a.tolist() for a in self._index.pairs(texts)), strict=True
            ):
                fields = self._texts[row] if self.needs else ()
                matches[text].append(
                    EarlierMatch(score, EarlierSample(f"{self._ids[row]:016x}", fields))
                )
        return matches

    def pairs_among(self, texts: Sequence[str]) -> Pairs:
        """Return the pairs of a text and a text before it above the threshold of the index."""
        index = self.index()
        index.add(texts)
        pairs = index.pairs(texts)
        precedes = pairs.row < pairs.text
        return Pairs(*(array[precedes] for array in pairs))

    def _needed_fields(self, sample: Sample) -> tuple[str, ...]:
        return tuple(getattr(sample, field) for field in self.needs)


class BlockMatches:
    """The similar earlier samples of each sample of a block, found with one search of the index.

    A sample is compared with the samples that the filter remembers, and with the samples before it
    in the block that were kept. Samples with an id in ``exempt`` are ignored.
    """

    def __init__(
        self, f: ComparingFilter, samples: Sequence[Sample], exempt: Set[str] = frozenset()
    ) -> None:
        self._filter, self._samples, self._exempt = f, list(samples), exempt
        self._texts = [f.text(sample) for sample in samples]
        self._kept: set[int] = set()
        # Whether a kept sample was changed after its text was compared with the others.
        self._outdated = False
        comparable = [i for i, s in enumerate(samples) if f.too_long(s) is None]
        texts = [self._texts[i] for i in comparable]
        self._earlier = dict(zip(comparable, f.pairs(texts), strict=True))
        self._in_block: dict[int, list[tuple[float, int]]] = {i: [] for i in comparable}
        if len(comparable) > 1:
            for t, r, s in zip(*(a.tolist() for a in f.pairs_among(texts)), strict=True):
                self._in_block[comparable[t]].append((s, comparable[r]))

    def reason(self, place: int, sample: Sample) -> Rejection | None:
        """Return a rejection of the sample at a place of the block, or None to keep it."""
        f = self._filter
        if self._outdated or f.text(sample) != self._texts[place]:
            return BlockMatches(f, [sample], self._exempt).reason(0, sample)
        if place not in self._earlier:
            return f.too_long(sample)
        matches = [m for m in self._earlier[place] if m.seen.id not in self._exempt] + [
            EarlierMatch(score, f.seen(self._samples[other]))
            for score, other in self._in_block[place]
            if other in self._kept
        ]
        return f.decide(sample, matches) if matches else None

    def keep(self, place: int, sample: Sample) -> None:
        """Compare later samples of the block with the sample at this place, which was kept."""
        self._kept.add(place)
        self._samples[place] = sample
        self._outdated |= self._filter.text(sample) != self._texts[place]


def evaluate_block(
    filters: Sequence[ComparingFilter], samples: Sequence[Sample]
) -> list[Rejection | None]:
    """Evaluate a block of consecutive samples; return the rejection of each, or None if it is kept.

    Each sample is compared with all earlier samples and with the kept samples before it in the
    block. Each index is searched only once per block, which is faster than evaluating each sample
    separately. The caller must pass the kept samples to `remember` afterwards.
    """
    blocks = [BlockMatches(f, samples) for f in filters]
    result: list[Rejection | None] = []
    for place, sample in enumerate(samples):
        rejections = (block.reason(place, sample) for block in blocks)
        result.append(next((r for r in rejections if r is not None), None))
        if result[-1] is None:
            for block in blocks:
                block.keep(place, sample)
    return result
