"""Rejects rows in another language than wanted, or than they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from instructgen.filters import Filter, Verdict
from instructgen.languages import identify, same
from instructgen.sample import Rejection, Sample


class Language(Filter):
    """The language of the instruction and of the output, where they are long enough to tell.

    Code, names and short texts pass: what cannot be told is no reason.
    """

    name = "language"
    scope = "row"

    allowed: tuple[Annotated[str, Field(pattern=r"^[a-z]{2}$")], ...] = Field(
        (), description="languages kept, ISO 639-1; empty: the one that the row names"
    )
    min_likelihood: float = Field(0.8, ge=0, le=1, description="less sure guesses are no reason")
    min_characters: int = Field(40, ge=0, description="shorter texts pass")

    def reason(self, sample: Sample) -> Rejection | None:
        """``wrong_language``; the score is how likely the language is."""
        return self.judge([sample])[0].rejection

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        """See `Filter.judge`."""
        texts = [t for s in samples for t in (s.instruction, s.output)]
        guesses = iter(identify([t if len(t) >= self.min_characters else "" for t in texts]))
        verdicts = []
        for sample in samples:
            rejection = None
            for field, guess in zip(
                ("instruction", "output"), (next(guesses), next(guesses)), strict=True
            ):
                if guess is None or guess.likelihood < self.min_likelihood or rejection:
                    continue
                wanted = self.allowed or ((sample.language,) if sample.language != "und" else ())
                if wanted and not any(same(guess.language, w) for w in wanted):
                    detail = f"the {field} is in {guess.language}, not in {' or '.join(wanted)}"
                    rejection = self.reject("wrong_language", detail, guess.likelihood)
            verdicts.append(Verdict(sample, rejection))
        return verdicts
