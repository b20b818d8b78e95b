"""Rejects rows that are too short or too long, in words or tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from instructgen.filters import Filter, Verdict
from instructgen.schema.messages import texts_of
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity.tokens import tokenize_all


class Size(Filter):
    """Reject rows whose prompt, output or complete text has too few or too many words or tokens."""

    name = "size"
    scope = "row"

    of: Literal["prompt", "output", "row"] = Field(
        "row", description="Text to measure: the prompt, the output, or all text of the row (row)."
    )
    min: int = Field(
        0, ge=0, description="Reject rows with fewer words (tokens if tokenizer is set)."
    )
    max: int = Field(
        2_000, ge=1, description="Reject rows with more words (tokens if tokenizer is set)."
    )
    tokenizer: str | None = Field(
        None,
        description="Model whose tokenizer counts the tokens: a folder, or the name of a model on "
        "the Hugging Face Hub. By default, words are counted.",
    )

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min = {self.min} is above max = {self.max}; lower min or raise max")
        return self

    @property
    def value_name(self) -> str:
        """Return the name of the value, with what is measured, such as ``size/output``."""
        return f"{self.name}/{self.of}"

    def thresholds(self) -> tuple[float, ...]:
        """Return the minimum and the maximum number of words or tokens."""
        return (self.min, self.max)

    def reason(self, sample: Sample) -> Rejection | None:
        """Return a rejection (``too_short`` or ``too_long``) with the length as score, or None."""
        return self.evaluate([sample])[0].rejection

    def evaluate(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Return one verdict (keep or reject) for each sample, in order."""
        texts = [texts_of(self._messages(s)) for s in samples]
        if self._tokenizer is None:
            counts, unit = [len(words) for words in tokenize_all(texts)], "words"
        else:
            texts = [t.encode("utf-8", "replace").decode() for t in texts]
            ids = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            counts, unit = [len(i) for i in ids], "tokens"
        return [self._verdict(s, n, unit) for s, n in zip(samples, counts, strict=True)]

    def _messages(self, sample: Sample) -> Sequence[Any]:
        parts = {"prompt": sample.prompt, "output": sample.messages[-1:], "row": sample.messages}
        return parts[self.of]

    def _verdict(self, sample: Sample, count: int, unit: str) -> Verdict:
        if count < self.min:
            detail = f"{count} {unit} in the {self.of}, fewer than {self.min}"
            return Verdict(sample, self.reject("too_short", detail, count), count)
        if count > self.max:
            detail = f"{count} {unit} in the {self.of}, more than {self.max}"
            return Verdict(sample, self.reject("too_long", detail, count), count)
        return Verdict(sample, None, count)

    @cached_property
    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            return None
        from instructgen.models.loading import read_tokenizer

        return read_tokenizer(self.tokenizer)
