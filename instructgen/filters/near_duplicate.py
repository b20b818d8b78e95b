"""Rejects rows that share most words with an earlier one, whatever their order."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from instructgen.filters import ComparingFilter, Matched
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity import MinHashIndex, Tokenizer
from instructgen.similarity.minhash import jaccard, runs
from instructgen.similarity.tokens import tokenize_all


class NearDuplicate(ComparingFilter):
    """Jaccard similarity above the threshold: of the rows, their instructions and their outputs.

    Rows that share a long input are alike as a whole, and may be two tasks.
    Candidates by MinHash, each decided exactly.
    """

    name = "near_duplicate"
    scope = "row"
    needs = ("instruction", "output")
    most_characters = 2**24

    threshold: float = Field(0.7, ge=0.05, lt=1, description="highest Jaccard similarity kept")
    ngram: int = Field(1, ge=1, description="words in a run; 1 is right for short texts")
    tokenizer: Tokenizer = Field("unicode", description="ascii: blind to other scripts")

    def index(self) -> MinHashIndex:
        """Of the texts seen."""
        return MinHashIndex(self.threshold, self.ngram, tokenizer=self.tokenizer)

    def text(self, sample: Sample) -> str:
        """All that was said."""
        return f"{sample.context}\n{sample.instruction}\n{sample.input}\n{sample.output}"

    def thresholds(self) -> tuple[float, ...]:
        """The highest similarity kept."""
        return (self.threshold,)

    def decide(self, sample: Sample, matches: Sequence[Matched]) -> Rejection | None:
        """``near_duplicate``, with the similarity and the id of the nearest row."""
        found = [(min(score, self._parts(sample, *o.texts)), o) for score, o in matches]
        score, nearest = max(found, key=lambda match: match[0])
        if score <= self.threshold:
            return None
        detail = f"Jaccard {score:.3f} to {nearest.id}, above {self.threshold}"
        return self.reject("near_duplicate", detail, score, nearest.id)

    def _parts(self, sample: Sample, instruction: str, output: str) -> float:
        """The lower similarity, of the instructions or of the outputs, where there are words."""
        texts = [sample.instruction, instruction, sample.output, output]
        words = tokenize_all(texts, self.tokenizer)
        sets = [set(runs(w, self.ngram)) for w in words]
        pairs = ((sets[0], sets[1]), (sets[2], sets[3]))
        return min((jaccard(x, y) for x, y in pairs if x or y), default=1.0)
