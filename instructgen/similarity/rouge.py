"""An append-only index of texts that finds ROUGE-L matches exactly.

ROUGE-L's F-measure over tokens is 2*LCS/(m+n) (Lin 2004, with equal weight),
which equals the normalised Indel similarity of the two token lists. So the
search runs in rapidfuzz, and each hit is decided again in whole numbers: the
float F-measure calls 33 of 147 real pairs at exactly 7/10 "above 0.7".
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Indel

from instructgen.similarity.tokens import Tokenizer, tokenize

# rapidfuzz's similarity differs from the exact fraction by at most 1.1e-16 on
# real pairs; candidates this far below the threshold are still looked at.
_SLACK = 1e-9
# Token ids are stored as characters, which rapidfuzz compares without hashing;
# the surrogate range is no character.
_SURROGATES, _AFTER_SURROGATES = 0xD800, 0xE000
_MOST_TOKENS = 0x110000 - (_AFTER_SURROGATES - _SURROGATES)
_BLOCK = 256


class Match(NamedTuple):
    """The best match of a text: its F-measure and the row it was found in."""

    score: float
    row: int


class RougeLIndex:
    """Texts seen so far, and the question whether a new one is too similar to any.

    Args:
        threshold: in (0, 1]; a pair matches when its F-measure is above it.
        tokenizer: ``unicode`` for words of any script, ``ascii`` for rouge-score's.
        compatible: ``rouge-score`` repeats that package's float comparison,
            which calls some pairs at exactly the threshold a match; by default
            the comparison is exact.

    Raises:
        ValueError: the threshold is out of range.
    """

    def __init__(
        self,
        threshold: float = 0.7,
        tokenizer: Tokenizer = "unicode",
        compatible: Literal["rouge-score"] | None = None,
    ) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must lie in (0, 1], not {threshold}")
        self.threshold = threshold
        self.tokenizer: Tokenizer = tokenizer
        self.compatible = compatible
        self._exact = Fraction(str(threshold))
        self._vocabulary: dict[str, str] = {}
        self._rows: list[str] = []

    def __len__(self) -> int:
        """The number of rows, which is also the next text's row."""
        return len(self._rows)

    def add(self, texts: Sequence[str]) -> None:
        """Append texts; each becomes the next row."""
        self._rows.extend(self._encode(text) for text in texts)

    def nearest(self, texts: Sequence[str]) -> list[Match | None]:
        """For each text its best match above the threshold, or None.

        Of equally good matches the first row wins. An empty text matches nothing.
        """
        return self._nearest([self._encode(text) for text in texts])

    def gate(self, texts: Sequence[str]) -> tuple[list[int], list[tuple[int, Match]]]:
        """Self-Instruct's rule: keep each text in turn unless it matches a row or a kept text.

        Kept texts become rows.

        Returns:
            Positions of the kept texts, and (position, match) of the rejected.
        """
        codes = [self._encode(text) for text in texts]
        before = len(self)
        kept: list[int] = []
        rejected: list[tuple[int, Match]] = []
        for position, (code, match) in enumerate(zip(codes, self._nearest(codes), strict=True)):
            (later,) = self._nearest([code], start=before)
            best = max((m for m in (match, later) if m), key=_better, default=None)
            if best is None:
                kept.append(position)
                self._rows.append(code)
            else:
                rejected.append((position, best))
        return kept, rejected

    def _encode(self, text: str) -> str:
        return "".join(map(self._character, tokenize(text, self.tokenizer)))

    def _character(self, token: str) -> str:
        character = self._vocabulary.get(token)
        if character is None:
            number = len(self._vocabulary)
            if number >= _MOST_TOKENS:
                raise OverflowError(f"more than {_MOST_TOKENS:,} different words")
            if number >= _SURROGATES:
                number += _AFTER_SURROGATES - _SURROGATES
            character = self._vocabulary[token] = chr(number)
        return character

    def _nearest(self, codes: list[str], start: int = 0) -> list[Match | None]:
        rows = self._rows[start:] if start else self._rows
        if not rows:
            return [None] * len(codes)
        found: list[Match | None] = []
        for at in range(0, len(codes), _BLOCK):
            block = codes[at : at + _BLOCK]
            similarity = process.cdist(
                block,
                rows,
                scorer=Indel.normalized_similarity,
                score_cutoff=self.threshold - _SLACK,
                dtype=np.float64,
            )
            for code, scores in zip(block, similarity, strict=True):
                hits = np.flatnonzero(scores) if code else ()
                matches = (self._decide(code, rows[i], scores[i], start + int(i)) for i in hits)
                found.append(max((m for m in matches if m), key=_better, default=None))
        return found

    def _decide(self, a: str, b: str, similarity: float, row: int) -> Match | None:
        total = len(a) + len(b)
        lcs = round(similarity * total / 2)
        if self.compatible == "rouge-score":
            precision, recall = lcs / len(a), lcs / len(b)
            score = 2 * precision * recall / (precision + recall)
            return Match(score, row) if score > self.threshold else None
        above = 2 * lcs * self._exact.denominator > self._exact.numerator * total
        return Match(2 * lcs / total, row) if above else None


def _better(match: Match) -> tuple[float, int]:
    return (match.score, -match.row)
