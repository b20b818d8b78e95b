"""Limits the number of instructions with the same sentence pattern, such as "What is a ...?".

In contrast, the filter ``novelty`` keeps only one instruction per pattern.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import Field, PrivateAttr

from instructgen.filters import ComparingFilter, EarlierMatch
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity import RougeLIndex, Tokenizer
from instructgen.similarity.embedding import settled
from instructgen.similarity.encoders import MINILM, check_model, encoder


class FrameQuota(ComparingFilter):
    """Reject instructions that repeat the meaning or the sentence pattern of earlier ones.

    An instruction that shares most of its words with an earlier one is a duplicate if it also has
    the same meaning. Otherwise the two have the same sentence pattern with different words, such
    as "What is a ...?", and at most ``quota`` instructions per pattern are kept. Embeddings are
    computed only for instructions that share most of their words.
    """

    name = "frame_quota"
    needs = ("instruction",)

    threshold: float = Field(
        0.7,
        gt=0,
        le=1,
        description="Two instructions count as sharing most of their words if their ROUGE-L "
        "similarity is above this value.",
    )
    quota: int = Field(
        3, ge=1, description="Maximum number of kept instructions with the same sentence pattern."
    )
    cosine: float = Field(
        0.9,
        gt=0,
        lt=1,
        description="Two instructions count as having the same meaning if their cosine similarity "
        "is above this value.",
    )
    model: str = Field(
        MINILM,
        description="Embedding model: minilm (included, for English), a folder, or a Hub name.",
    )
    tokenizer: Tokenizer = Field(
        "unicode",
        description="How to split text into words: unicode (any writing system), or ascii (a-z "
        "and 0-9 only).",
    )

    _vectors_by_text: dict[str, npt.NDArray[np.float32]] = PrivateAttr(default_factory=dict)

    def index(self) -> RougeLIndex:
        """Return an empty index that finds earlier instructions by their ROUGE-L similarity."""
        check_model(self.model)
        return RougeLIndex(self.threshold, self.tokenizer)

    def decide(self, sample: Sample, matches: Sequence[EarlierMatch]) -> Rejection | None:
        """Return a rejection, or None to keep the sample.

        The reason is ``duplicate``, or ``same_frame`` for the same sentence pattern with other
        words. The score is the ROUGE-L similarity to the earlier instruction that is repeated.
        """
        earlier = [seen.texts[0] for _, seen in matches]
        vectors = self._vectors([sample.instruction, *earlier])
        cosines = settled(
            vectors[1:] @ vectors[0],
            self.cosine,
            self.model,
            lambda place: (sample.instruction, earlier[place]),
        ).tolist()
        cosine, score, nearest = max(
            ((c, s, seen) for c, (s, seen) in zip(cosines, matches, strict=True)),
            key=lambda match: match[:2],
        )
        if cosine > self.cosine:
            detail = f"ROUGE-L {score:.3f}, cosine {cosine:.3f} to row {nearest.id}"
            return self.reject("duplicate", detail, score, nearest.id)
        if len(matches) < self.quota:
            return None
        score, nearest = max(matches, key=lambda match: match.score)
        detail = (
            f"ROUGE-L {score:.3f} to row {nearest.id}; {len(matches)} kept rows have this pattern"
        )
        return self.reject("same_frame", detail, score, nearest.id)

    def _vectors(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors_by_text]
        self._vectors_by_text.update(zip(new, encoder(self.model).encode(new), strict=True))
        return np.stack([self._vectors_by_text[text] for text in texts])
