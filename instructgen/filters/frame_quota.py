"""Keeps a few instructions of a frame ("What is a ...?") where novelty keeps one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import Field, PrivateAttr

from instructgen.filters import ComparingFilter, Matched
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity import RougeLIndex, Tokenizer
from instructgen.similarity.encoders import MINILM, check_model, encoder


class FrameQuota(ComparingFilter):
    """What has the words of earlier instructions is a duplicate if it means the same.

    If not, it shares their frame, of which ``quota`` are kept. Only instructions
    that share words are embedded at all.
    """

    name = "frame_quota"
    needs = ("instruction",)

    threshold: float = Field(0.7, gt=0, le=1, description="ROUGE-L above this shares a frame")
    quota: int = Field(3, ge=1, description="instructions kept of a frame")
    cosine: float = Field(0.9, gt=0, lt=1, description="cosine above this means the same")
    model: str = Field(
        MINILM, description="minilm (packaged, for English), a folder, or a Hub name"
    )
    tokenizer: Tokenizer = Field("unicode", description="ascii: blind to other scripts")

    # Vectors of instructions that shared words with others.
    _known: dict[str, npt.NDArray[np.float32]] = PrivateAttr(default_factory=dict)

    def index(self) -> RougeLIndex:
        """Of the texts seen."""
        check_model(self.model)
        return RougeLIndex(self.threshold, self.tokenizer)

    def decide(self, sample: Sample, matches: Sequence[Matched]) -> Rejection | None:
        """``duplicate`` or ``same_frame``, with ROUGE-L and the id of the nearest."""
        vectors = self._vectors([sample.instruction, *(seen.texts[0] for _, seen in matches)])
        cosines = np.round(vectors[1:] @ vectors[0], 4).tolist()
        cosine, score, nearest = max(
            ((c, s, seen) for c, (s, seen) in zip(cosines, matches, strict=True)),
            key=lambda match: match[:2],
        )
        if cosine > self.cosine:
            detail = f"ROUGE-L {score:.3f}, cosine {cosine:.3f} to {nearest.id}"
            return self.reject("duplicate", detail, score, nearest.id)
        if len(matches) < self.quota:
            return None
        score, nearest = max(matches, key=lambda match: match.score)
        detail = f"ROUGE-L {score:.3f} to {nearest.id}; {len(matches)} kept ones share its words"
        return self.reject("same_frame", detail, score, nearest.id)

    def _vectors(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._known.update(zip(new, encoder(self.model).encode(new), strict=True))
        return np.stack([self._known[text] for text in texts])
