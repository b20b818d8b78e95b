"""Rejects repetitive text, and outputs that repeat the instruction.

Small models often write such text.
"""

from __future__ import annotations

from pydantic import Field

from instructgen.filters import Filter
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

    ngram: int = Field(4, ge=1, description="Number of words in an n-gram.")
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
        if sample.output and tokenize(sample.output) == tokenize(sample.instruction):
            detail = "the output has the same words as the instruction"
            return self.reject("repeats_instruction", detail)
        for field in ("instruction", "input", "output"):
            words = tokenize(getattr(sample, field))
            if len(words) >= max(self.min_words, self.ngram):
                share = repeated_share(words, self.ngram)
                if share > self.max_share:
                    detail = (
                        f"{share:.0%} of the {field} is repeated; the limit is {self.max_share:.0%}"
                    )
                    return self.reject("repetition", detail, share)
        return None


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
