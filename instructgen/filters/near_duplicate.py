"""Rejects rows that share most of their words, in any order, with an earlier row."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from instructgen.filters import LONGEST_NGRAM, ComparingFilter, EarlierMatch
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity import MinHashIndex, Tokenizer
from instructgen.similarity.minhash import jaccard, runs
from instructgen.similarity.tokens import tokenize_all


class NearDuplicate(ComparingFilter):
    """Reject rows whose Jaccard similarity to an earlier row is above the threshold.

    The similarities of the complete rows, of their instructions and of their outputs must all be
    above the threshold, because two different tasks may share a long input. MinHash finds pairs
    that may be similar enough, and their exact similarities are then computed.
    """

    name = "near_duplicate"
    scope = "row"
    needs = ("instruction", "output")
    max_characters = 2**24

    threshold: float = Field(
        0.7, ge=0.05, lt=1, description="Maximum Jaccard similarity of a kept row to earlier rows."
    )
    ngram: int = Field(
        1,
        ge=1,
        le=LONGEST_NGRAM,
        description="Number of words in each compared n-gram; use 1 for short texts.",
    )
    tokenizer: Tokenizer = Field(
        "unicode",
        description="How to split texts into words: unicode (for any writing system), or ascii "
        "(words contain only a-z and 0-9).",
    )

    def index(self) -> MinHashIndex:
        """Return a new, empty MinHash index."""
        return MinHashIndex(self.threshold, self.ngram, tokenizer=self.tokenizer)

    def text(self, sample: Sample) -> str:
        """Return the earlier messages, instruction, input and output of the row as one text."""
        return f"{sample.context}\n{sample.instruction}\n{sample.input}\n{sample.output}"

    def thresholds(self) -> tuple[float, ...]:
        """Return the maximum Jaccard similarity."""
        return (self.threshold,)

    def decide(self, sample: Sample, matches: Sequence[EarlierMatch]) -> Rejection | None:
        """Return a rejection (``near_duplicate``), or None to keep the row.

        The rejection contains the similarity and the id of the nearest earlier row.
        """
        scores = [(min(score, self._parts(sample, *o.texts)), o) for score, o in matches]
        score, nearest = max(scores, key=lambda match: match[0])
        if score <= self.threshold:
            return None
        detail = f"Jaccard similarity {score:.3f} to row {nearest.id}, above {self.threshold}"
        return self.reject("near_duplicate", detail, score, nearest.id)

    def _parts(self, sample: Sample, instruction: str, output: str) -> float:
        """Return the lower of two Jaccard similarities: of the instructions, and of the outputs."""
        texts = [sample.instruction, instruction, sample.output, output]
        words = tokenize_all(texts, self.tokenizer)
        sets = [set(runs(w, self.ngram)) for w in words]
        pairs = ((sets[0], sets[1]), (sets[2], sets[3]))
        return min((jaccard(x, y) for x, y in pairs if x or y), default=1.0)
