"""Rejects rows in another language than wanted, or than they say.

The packaged model of py3langid names the language of more than 99 of 100 real prompts
(tests/test_curation.py), less often of texts of a few words, and cannot tell Indonesian
from Malay.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from instructgen.filters import Filter, Verdict
from instructgen.schema.sample import Rejection, Sample

# Written alike: a text in one passes for the other.
ALIKE = ({"id", "ms"},)
# Of no language: numbers, code, names.
_NONE = "zxx"
_MOST_CHARACTERS = 2_000


class Guess(NamedTuple):
    """An ISO 639-1 code, and how likely it is: 0 to 1."""

    language: str
    likelihood: float


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


def identify(texts: Sequence[str]) -> list[Guess | None]:
    """The language of each text, or None where there are no words of any."""
    identifier = _identifier()
    found: list[Guess | None] = []
    for text in texts:
        language, likelihood = identifier.classify(text[:_MOST_CHARACTERS])
        known = language != _NONE and any(c.isalpha() for c in text)
        found.append(Guess(str(language), float(likelihood)) if known else None)
    return found


def same(a: str, b: str) -> bool:
    """Whether two codes mean the same language, as far as it can be told."""
    a, b = a.split("-")[0], b.split("-")[0]
    return a == b or any({a, b} <= alike for alike in ALIKE)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    # Without its three-letter codes it takes fewer short texts for a dialect.
    identifier.set_languages([*(c for c in identifier.nb_classes if len(c) == 2), _NONE])
    return identifier
