"""Rejects instructions too similar to any seed or kept instruction (Self-Instruct, section 2.2)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PrivateAttr

from instructgen.filters import Filter
from instructgen.sample import Rejection, Sample
from instructgen.similarity import RougeLIndex, Tokenizer


class Novelty(Filter):
    """ROUGE-L above the threshold to anything seen before."""

    name = "novelty"

    threshold: float = Field(0.7, gt=0, le=1, description="highest ROUGE-L F-measure kept")
    tokenizer: Tokenizer = Field(
        "unicode", description="ascii: the paper's, blind to other scripts"
    )

    compatible: Literal["rouge-score"] | None = Field(
        None, description="rouge-score: repeat its float comparison at exactly the threshold"
    )

    _index: RougeLIndex = PrivateAttr()
    _ids: list[str] = PrivateAttr(default_factory=list)
    # Added together when a text is judged next: a pool of seeds in one call.
    _waiting: list[str] = PrivateAttr(default_factory=list)

    def model_post_init(self, context: object) -> None:
        """Begin with an empty index."""
        index = RougeLIndex(self.threshold, self.tokenizer, self.compatible)
        object.__setattr__(self, "_index", index)

    def reason(self, sample: Sample) -> Rejection | None:
        """``too_similar``, with the F-measure and the id of the nearest instruction."""
        if self._waiting:
            self._index.add(self._waiting)
            self._waiting.clear()
        (match,) = self._index.nearest([sample.instruction])
        if match is None:
            return None
        nearest = self._ids[match.row]
        detail = f"ROUGE-L {match.score:.3f} to {nearest}, above {self.threshold}"
        return self.reject("too_similar", detail, match.score, nearest)

    def remember(self, sample: Sample) -> None:
        """Later instructions are compared with this one."""
        self._waiting.append(sample.instruction)
        self._ids.append(sample.id)
