"""Rejects repetitive text, and outputs that repeat the instruction.

Small models often write such text.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from instructgen.filters import LONGEST_NGRAM, Filter, Verdict
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity import tokenize


class Repetition(Filter):
    """Reject rows in which too many words of a field belong to repeated n-grams.

    A row whose output consists of the same words as its instruction, in the same order, is also
    rejected. The measure is the duplicate n-gram fraction of Rae et al. 2021 (Gopher), table A1,
    for words in any writing system.
    """

    name = "repetition"
    scope = "both"

    ngram: int = Field(4, ge=1, le=LONGEST_NGRAM, description="Number of words in an n-gram.")
    max_share: float = Field(
        0.3,
        ge=0,
        le=1,
        description="Maximum fraction of a field's words that belong to repeated n-grams. Rows "
        "with a larger fraction are rejected.",
    )
    min_words: int = Field(
        12, ge=1, description="Minimum number of words of a field that is checked for repetition."
    )

    def reason(self, sample: Sample) -> Rejection | None:
        """Return a rejection, or None to keep the sample.

        The reason for a rejection is ``repeats_instruction`` or ``repetition``. The score of a
        ``repetition`` is the fraction of words in repeated n-grams.
        """
        return self._verdict(sample).rejection

    def evaluate(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Return one verdict for each sample, in order."""
        return [self._verdict(sample) for sample in samples]

    def thresholds(self) -> tuple[float, ...]:
        """Return the maximum fraction of repeated words."""
        return (self.max_share,)

    def _verdict(self, sample: Sample) -> Verdict:
        words = {f: tokenize(getattr(sample, f)) for f in ("instruction", "input", "output")}
        if sample.output and words["output"] == words["instruction"]:
            detail = "the output has the same words as the instruction"
            return Verdict(sample, self.reject("repeats_instruction", detail))
        shortest = max(self.min_words, self.ngram)
        shares = {f: repeated_share(w, self.ngram) for f, w in words.items() if len(w) >= shortest}
        if not shares:
            return Verdict(sample)
        field = max(shares, key=lambda f: shares[f])
        share = shares[field]
        if share <= self.max_share:
            return Verdict(sample, None, share)
        detail = f"{share:.0%} of the {field} is repeated; the limit is {self.max_share:.0%}"
        return Verdict(sample, self.reject("repetition", detail, share), share)


def repeated_share(words: list[str], n: int) -> float:
    """Return the fraction (0 to 1) of ``words`` in n-grams that already occurred before."""
    grams = list(zip(*(words[i:] for i in range(n)), strict=False))
    seen: set[tuple[str, ...]] = set(grams)
    if len(seen) == len(grams):
        return 0.0
    seen.clear()
    covered = bytearray(len(words))
    for i, gram in enumerate(grams):
        if gram in seen:
            covered[i : i + n] = b"\1" * n
        seen.add(gram)
    return sum(covered) / len(words) if words else 0.0
