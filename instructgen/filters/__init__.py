"""Filters: each says why a sample is rejected, or nothing.

One file per filter beside this one; its class's fields are its recipe keys.
*How* strict is written in the recipes of the top folder filters/. A filter that
compares with earlier samples is a `ComparingFilter`, one that changes them a
`Transform`, one that gives them a number a `ScoringFilter`, and one that has to
see all of them first a `SelectingFilter`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from instructgen.schema.sample import Edit, Rejection, Sample, Score
from instructgen.similarity import Match, Pairs

Stage = Literal["instruction", "row"]
Scope = Literal["instruction", "row", "both"]


class Verdict(NamedTuple):
    """A sample as a filter leaves it, why it is rejected if it is, and the number that decided."""

    sample: Sample
    rejection: Rejection | None = None
    value: float | None = None


class Filter(BaseModel, ABC):
    """One reason to reject a sample.

    ``scope`` is what it judges: an instruction before it has an answer, the
    finished row, or both.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str]
    scope: ClassVar[Scope] = "instruction"

    @abstractmethod
    def reason(self, sample: Sample) -> Rejection | None:
        """Why the sample is rejected, or None to let it pass."""

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        """A verdict on each sample, in order."""
        verdicts = []
        for sample in samples:
            rejection = self.reason(sample)
            value = self.value(sample) if rejection is None else rejection.score
            verdicts.append(Verdict(sample, rejection, value))
        return verdicts

    def value(self, sample: Sample) -> float | None:
        """Of a sample that passes, the number that its thresholds are about, if there is one."""
        return None

    def thresholds(self) -> tuple[float, ...]:
        """Where its verdict changes, for showing what lies on both sides."""
        return ()

    def remember(self, sample: Sample) -> None:
        """Take note of a sample that every filter kept, or of a seed."""

    def files(self) -> tuple[Path, ...]:
        """The files that its verdicts depend on."""
        return ()

    def reject(
        self, reason: str, detail: str = "", score: float | None = None, nearest: str | None = None
    ) -> Rejection:
        """A rejection in this filter's name."""
        return Rejection(self.name, reason, detail, score, nearest)


class Transform(Filter):
    """A filter that changes samples and writes down what; it rejects what is empty then."""

    scope: ClassVar[Scope] = "row"

    @abstractmethod
    def change(self, text: str, field: str) -> tuple[str, list[str]]:
        """A field's new text, and a sentence for each kind of change; the same text for none."""

    def reason(self, sample: Sample) -> Rejection | None:
        """``empty_output`` where nothing of the output is left."""
        return self.judge([sample])[0].rejection

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        """See `Filter.judge`."""
        return [self._changed(sample) for sample in samples]

    def _changed(self, sample: Sample) -> Verdict:
        new: dict[str, Any] = {}
        edits: list[Edit] = []
        for field in ("instruction", "input", "output", "rejected_output"):
            text = getattr(sample, field)
            if text:
                changed, said = self.change(text, field)
                if changed != text:
                    new[field] = changed
                    edits += [Edit(self.name, field, detail) for detail in said]
        history = tuple(
            replace(m, content=self.change(m.content, "history")[0]) for m in sample.history
        )
        if history != sample.history:
            edits.append(Edit(self.name, "history", "changed likewise"))
        if not edits:
            return Verdict(sample)
        sample = replace(sample, **new, history=history, edits=(*sample.edits, *edits))
        for field in ("instruction", "output"):
            if not getattr(sample, field).strip():
                return Verdict(sample, self.reject(f"empty_{field}", "nothing else was in it"))
        return Verdict(sample)


class ScoringFilter(Filter):
    """A filter that gives each sample a number, keeps it in the row, and rejects by bounds.

    A number that could not be found is a score without a value, with the error
    beside it; such a sample passes unless ``on_error`` says otherwise. A row that
    already has the score is not given it again, so that other bounds cost nothing.
    """

    scope: ClassVar[Scope] = "row"

    on_error: Literal["keep", "reject"] = Field(
        "keep", description="what becomes of a row whose score could not be found"
    )
    min: float | None = Field(None, description="lowest kept")
    max: float | None = Field(None, description="highest kept")

    @property
    @abstractmethod
    def score_name(self) -> str:
        """What the number is called in the rows; it names all that decides it."""

    @abstractmethod
    def scores(self, samples: Sequence[Sample]) -> list[Score]:
        """The score of each sample."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min = {self.min:g} above max = {self.max:g} rejects all")
        return self

    def reason(self, sample: Sample) -> Rejection | None:
        """``too_low``, ``too_high``, or ``no_score``."""
        return self.judge([sample])[0].rejection

    def thresholds(self) -> tuple[float, ...]:
        """The bounds."""
        return tuple(b for b in (self.min, self.max) if b is not None)

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        """See `Filter.judge`."""
        missing = [i for i, s in enumerate(samples) if s.score(self.score_name) is None]
        found = list(samples)
        for i, score in zip(missing, self.scores([samples[i] for i in missing]), strict=True):
            found[i] = samples[i].with_score(score)
        return [self._decided(sample) for sample in found]

    def _decided(self, sample: Sample) -> Verdict:
        score = sample.score(self.score_name)
        assert score is not None  # `judge` has just seen to it
        if score.value is None:
            rejection = self.reject("no_score", score.error or "it has no such score")
            return Verdict(sample, rejection if self.on_error == "reject" else None)
        if (low := self.min) is not None and score.value < low:
            detail = f"{score.name} {score.value:.4g}, below {low:g}"
            return Verdict(sample, self.reject("too_low", detail, score.value), score.value)
        if (high := self.max) is not None and score.value > high:
            detail = f"{score.name} {score.value:.4g}, above {high:g}"
            return Verdict(sample, self.reject("too_high", detail, score.value), score.value)
        return Verdict(sample, None, score.value)


class SelectingFilter(Filter):
    """A filter that has to see all rows before it decides on any; for `curate` alone.

    The rows that reach it are held in memory.
    """

    scope: ClassVar[Scope] = "row"

    def reason(self, sample: Sample) -> Rejection | None:
        """Not to be asked row by row."""
        raise NotImplementedError(f"{self.name} decides on whole datasets")

    @abstractmethod
    def select(self, samples: Sequence[Sample]) -> list[Rejection | None]:
        """Why each sample is rejected, or None."""


class Index(Protocol):
    """What `instructgen.similarity` offers to look texts up in."""

    def add(self, texts: Sequence[str], /) -> None:
        """Append texts; each becomes the next row."""

    def nearest(self, texts: Sequence[str], /) -> list[Match | None]:
        """For each text its best match above the threshold, or None."""

    def pairs(self, texts: Sequence[str], /) -> Pairs:
        """Every row that a text matches, with its score."""


class Seen(NamedTuple):
    """What is kept of a sample for comparing later ones with it: its id and some fields."""

    id: str
    texts: tuple[str, ...]


class Matched(NamedTuple):
    """An earlier sample above the threshold, and its score."""

    score: float
    seen: Seen


class ComparingFilter(Filter):
    """A filter that looks a sample's text up among those of the samples kept before.

    ``needs`` are the fields of an earlier sample that `decide` wants to see.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    # Longer texts are rejected: ROUGE-L takes 100,000 words, which may be characters.
    most_characters: ClassVar[int] = 100_000

    _index: Index = PrivateAttr()
    # The samples seen, by their row in the index: ids as numbers, since there may
    # be millions. The last texts are added together when one is looked up next.
    _ids: array[int] = PrivateAttr(default_factory=lambda: array("Q"))
    _texts: list[tuple[str, ...]] = PrivateAttr(default_factory=list)
    _waiting: list[str] = PrivateAttr(default_factory=list)

    @abstractmethod
    def index(self) -> Index:
        """An empty index, made once."""

    @abstractmethod
    def decide(self, sample: Sample, matches: Sequence[Matched]) -> Rejection | None:
        """Why a sample with these matches, in the order seen, is rejected, or None."""

    def text(self, sample: Sample) -> str:
        """What of a sample is compared: its instruction, unless a filter says more."""
        return sample.instruction

    def model_post_init(self, context: object) -> None:
        """Begin with an empty index."""
        object.__setattr__(self, "_index", self.index())

    def reason(self, sample: Sample) -> Rejection | None:
        """What `decide` says of the sample's matches."""
        return together([self], [sample])[0]

    def remember(self, sample: Sample) -> None:
        """Later samples are compared with this one."""
        self._ids.append(int(sample.id, 16))
        if self.needs:
            self._texts.append(self._needed(sample))
        self._waiting.append(self.text(sample))

    def too_long(self, sample: Sample) -> Rejection | None:
        """A rejection of a text that no index takes."""
        length = len(self.text(sample))
        if length <= self.most_characters:
            return None
        return self.reject("too_long", f"{length:,} characters are more than can be compared")

    def seen(self, sample: Sample) -> Seen:
        """What is kept of a sample."""
        return Seen(sample.id, self._needed(sample))

    def pairs(self, texts: Sequence[str]) -> list[list[Matched]]:
        """For each text the samples above the threshold, in the order seen."""
        if self._waiting:
            self._index.add(self._waiting)
            self._waiting.clear()
        found: list[list[Matched]] = [[] for _ in texts]
        if self._ids:
            for text, row, score in zip(
                *(a.tolist() for a in self._index.pairs(texts)), strict=True
            ):
                needed = self._texts[row] if self.needs else ()
                found[text].append(Matched(score, Seen(f"{self._ids[row]:016x}", needed)))
        return found

    def _needed(self, sample: Sample) -> tuple[str, ...]:
        return tuple(getattr(sample, field) for field in self.needs)


def together(
    filters: Sequence[ComparingFilter], samples: Sequence[Sample]
) -> list[Rejection | None]:
    """Why each sample is rejected, as if they came one by one and the kept were remembered.

    All are looked up at once, among the samples seen before and among
    themselves; what is decided is the same. The kept are not remembered here.
    """
    long = [next((r for f in filters if (r := f.too_long(s))), None) for s in samples]
    asked = [i for i, rejection in enumerate(long) if rejection is None]
    before: list[list[list[Matched]]] = []
    among: list[list[list[tuple[float, int]]]] = []
    for f in filters:
        texts = [f.text(samples[i]) for i in asked]
        before.append(f.pairs(texts))
        among.append([[] for _ in asked])
        if len(asked) > 1:
            own = f.index()
            own.add(texts)
            text, row, score = own.pairs(texts)
            earlier = row < text
            for t, r, s in zip(
                text[earlier].tolist(), row[earlier].tolist(), score[earlier].tolist(), strict=True
            ):
                among[-1][t].append((s, r))
    result = long
    kept = [False] * len(asked)
    for place, i in enumerate(asked):
        for k, f in enumerate(filters):
            matches = before[k][place] + [
                Matched(score, f.seen(samples[asked[other]]))
                for score, other in among[k][place]
                if kept[other]
            ]
            result[i] = f.decide(samples[i], matches) if matches else None
            if result[i] is not None:
                break
        kept[place] = result[i] is None
    return result
