"""Rejects rows that share most words with an earlier one, whatever their order."""

from __future__ import annotations

from pydantic import Field, PrivateAttr

from instructgen.filters import Filter
from instructgen.sample import Rejection, Sample
from instructgen.similarity import MinHashIndex, Tokenizer


class NearDuplicate(Filter):
    """Jaccard similarity of instruction, input and output together above the threshold.

    Candidates by MinHash, each decided exactly.
    """

    name = "near_duplicate"
    scope = "row"

    threshold: float = Field(0.7, ge=0.05, lt=1, description="highest Jaccard similarity kept")
    ngram: int = Field(1, ge=1, description="words in a run; 1 is right for short texts")
    tokenizer: Tokenizer = Field("unicode", description="ascii: blind to other scripts")

    _index: MinHashIndex = PrivateAttr()
    _ids: list[str] = PrivateAttr(default_factory=list)
    # Added together when a row is judged next.
    _waiting: list[str] = PrivateAttr(default_factory=list)

    def model_post_init(self, context: object) -> None:
        """Begin with an empty index."""
        index = MinHashIndex(self.threshold, self.ngram, tokenizer=self.tokenizer)
        object.__setattr__(self, "_index", index)

    def reason(self, sample: Sample) -> Rejection | None:
        """``near_duplicate``, with the similarity and the id of the nearest row."""
        if self._waiting:
            self._index.add(self._waiting)
            self._waiting.clear()
        (match,) = self._index.nearest([_text(sample)])
        if match is None:
            return None
        nearest = self._ids[match.row]
        detail = f"Jaccard {match.score:.3f} to {nearest}, above {self.threshold}"
        return self.reject("near_duplicate", detail, match.score, nearest)

    def remember(self, sample: Sample) -> None:
        """Later rows are compared with this one."""
        self._waiting.append(_text(sample))
        self._ids.append(sample.id)


def _text(sample: Sample) -> str:
    return f"{sample.instruction}\n{sample.input}\n{sample.output}"
