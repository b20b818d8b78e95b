"""Rejects rows that are not in an allowed language, by default that of the field ``language``.

The model in the package ``py3langid`` correctly identifies the language of more than 99% of real
prompts (tests/test_curation.py). It is less accurate on texts of a few words, and cannot
distinguish Indonesian from Malay.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from instructgen.filters import Filter, Verdict
from instructgen.schema.sample import Rejection, Sample

# Languages that the model cannot distinguish: a text in one passes as the other.
_INDISTINGUISHABLE = ({"id", "ms"},)
# ISO 639 code for text without linguistic content: numbers, code, names.
_NO_LANGUAGE = "zxx"
_MAX_CHARACTERS = 2_000


class Guess(NamedTuple):
    """The probable language of a text (ISO 639-1 code) and its likelihood, from 0 to 1."""

    language: str
    likelihood: float


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
        0.8,
        ge=0,
        le=1,
        description="Reject a row only if the identified language has at least this likelihood.",
    )
    min_characters: int = Field(
        40, ge=0, description="Instructions and outputs with fewer characters are not checked."
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
                if allowed and not any(_is_same(guess.language, code) for code in allowed):
                    detail = f"the {field} is in {guess.language}, not in {' or '.join(allowed)}"
                    rejection = self.reject("wrong_language", detail, guess.likelihood)
            verdicts.append(Verdict(sample, rejection))
        return verdicts


def identify(texts: Sequence[str]) -> list[Guess | None]:
    """For each text, return its probable language, or None if it is only code, names or numbers."""
    identifier = _identifier()
    guesses: list[Guess | None] = []
    for text in texts:
        language, likelihood = identifier.classify(text[:_MAX_CHARACTERS])
        known = language != _NO_LANGUAGE and any(c.isalpha() for c in text)
        guesses.append(Guess(str(language), float(likelihood)) if known else None)
    return guesses


def _is_same(a: str, b: str) -> bool:
    """Return whether two codes mean the same language, or two that cannot be distinguished."""
    a, b = a.split("-")[0], b.split("-")[0]
    return a == b or any({a, b} <= group for group in _INDISTINGUISHABLE)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    # Without its three-letter codes it mistakes fewer short texts for a dialect.
    identifier.set_languages([*(c for c in identifier.nb_classes if len(c) == 2), _NO_LANGUAGE])
    return identifier
