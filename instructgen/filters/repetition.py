"""Rejects texts that repeat themselves or their task, the usual ways a small model fails."""

from __future__ import annotations

from pydantic import Field

from instructgen.filters import Filter
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity import tokenize


class Repetition(Filter):
    """The share of a field's words that stand in an n-gram seen before in it.

    An output in the very words of its instruction is no answer either.

    Duplicate n-gram fractions as in Rae et al. 2021 (Gopher), table A1, over
    the words of any script.
    """

    name = "repetition"
    scope = "both"

    ngram: int = Field(4, ge=1, description="words in an n-gram")
    max_share: float = Field(0.3, ge=0, le=1, description="largest share kept")
    min_words: int = Field(12, ge=1, description="shorter texts pass")

    def reason(self, sample: Sample) -> Rejection | None:
        """``repetition``, whose score is the share, or ``repeats_instruction``."""
        if sample.output and tokenize(sample.output) == tokenize(sample.instruction):
            return self.reject("repeats_instruction", "the output says what the instruction says")
        for field in ("instruction", "input", "output"):
            words = tokenize(getattr(sample, field))
            if len(words) >= max(self.min_words, self.ngram):
                share = repeated_share(words, self.ngram)
                if share > self.max_share:
                    detail = f"{share:.0%} of the {field} repeats, more than {self.max_share:.0%}"
                    return self.reject("repetition", detail, share)
        return None


def repeated_share(words: list[str], n: int) -> float:
    """The share of words covered by n-grams that stood in ``words`` before; 0 to 1."""
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
