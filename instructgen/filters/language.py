"""Rejects rows that are not in an allowed language, by default that of the field ``language``.

See `instructgen.similarity.languages` for how the language of a text is identified.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from instructgen.filters import Filter, Verdict
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity.languages import (
    MIN_CHARACTERS,
    MIN_LIKELIHOOD,
    identify,
    is_same,
)


class Language(Filter):
    """Reject rows whose instruction or output is in a language that is not allowed.

    Rows that contain only code, names or short texts are kept, because the language of such texts
    cannot be identified reliably.
    """

    name = "language"
    scope = "row"

    allowed: tuple[Annotated[str, Field(pattern=r"^[a-z]{2}$")], ...] = Field(
        (),
        description="Allowed languages (ISO 639-1 codes). By default, only the language in the "
        "row's field language is allowed, or any language if that field is und (unknown).",
    )
    min_likelihood: float = Field(
        MIN_LIKELIHOOD,
        ge=0,
        le=1,
        description="Reject a row only if the identified language has at least this likelihood.",
    )
    min_characters: int = Field(
        MIN_CHARACTERS,
        ge=0,
        description="Instructions and outputs with fewer characters are not checked.",
    )

    def reason(self, sample: Sample) -> Rejection | None:
        """Return a rejection (``wrong_language``) with the likelihood as its score, or None."""
        return self.evaluate([sample])[0].rejection

    def evaluate(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Return one verdict for each sample, in order."""
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
                allowed = self.allowed or ((sample.language,) if sample.language != "und" else ())
                if allowed and not any(is_same(guess.language, code) for code in allowed):
                    detail = f"the {field} is in {guess.language}, not in {' or '.join(allowed)}"
                    rejection = self.reject("wrong_language", detail, guess.likelihood)
            verdicts.append(Verdict(sample, rejection))
        return verdicts
