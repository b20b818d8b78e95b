"""Which language a text is written in, by the packaged model of py3langid.

It names the language of more than 99 of 100 real prompts (tests/test_curation.py),
less often of texts of a few words, and cannot tell Indonesian from Malay.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

# Written alike: a text in one passes for the other.
ALIKE = ({"id", "ms"},)
# Of no language: numbers, code, names.
_NONE = "zxx"
_MOST_CHARACTERS = 2_000


class Guess(NamedTuple):
    """An ISO 639-1 code, and how likely it is: 0 to 1."""

    language: str
    likelihood: float


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
