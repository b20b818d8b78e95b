"""Keeps a number of rows that differ most from each other, or the best of those that differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from instructgen.filters import SelectingFilter
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity.encoders import MINILM, check_model, encoder


class Diversity(SelectingFilter):
    """Selection over the embeddings of the questions.

    ``k_centre`` takes next what is farthest from all that was taken (Sener and
    Savarese 2018), beginning with what is nearest to the mean. ``score_first`` goes
    through the rows from the highest score down, and takes those whose cosine to
    all taken is at most ``threshold`` (Liu et al. 2024, DEITA; as its code does it).
    """

    name = "diversity"

    rows: int = Field(ge=1, description="rows kept at most")
    method: Literal["k_centre", "score_first"] = Field("k_centre", description="what goes first")
    score: str | None = Field(None, description="for score_first: the score's name")
    threshold: float = Field(0.9, gt=0, le=1, description="for score_first: highest cosine kept")
    model: str = Field(MINILM, description="minilm (packaged, English), a folder, or a Hub name")

    def select(self, samples: Sequence[Sample]) -> list[Rejection | None]:
        """``not_selected`` or ``too_similar``, with the cosine to the nearest row taken."""
        if not samples:
            return []
        check_model(self.model)
        vectors = encoder(self.model).encode([s.question for s in samples])
        order = self._by_score(samples) if self.method == "score_first" else None
        nearest = np.full(len(samples), -2.0, np.float32)
        partner = np.full(len(samples), -1)
        taken: list[int] = []
        too_similar: set[int] = set()

        def take(i: int) -> None:
            taken.append(i)
            cosine = vectors @ vectors[i]
            nearer = cosine > nearest
            nearest[nearer], partner[nearer] = cosine[nearer], i

        if order is None:
            take(int(np.argmax(vectors @ vectors.mean(0))))
            left = np.ones(len(samples), np.bool_)
            left[taken[0]] = False
            while len(taken) < min(self.rows, len(samples)):
                i = int(np.argmin(np.where(left, nearest, 2)))
                left[i] = False
                take(i)
        else:
            for i in order:
                if len(taken) == self.rows:
                    break
                if taken and round(float(nearest[i]), 4) > self.threshold:
                    too_similar.add(i)
                else:
                    take(i)
        kept = set(taken)
        reasons: list[Rejection | None] = []
        for i in range(len(samples)):
            if i in kept:
                reasons.append(None)
                continue
            cosine, near = round(float(nearest[i]), 4), samples[int(partner[i])].id
            reason = "too_similar" if i in too_similar else "not_selected"
            reasons.append(self.reject(reason, f"cosine {cosine:.3f} to {near}", cosine, near))
        return reasons

    def _by_score(self, samples: Sequence[Sample]) -> list[int]:
        def key(i: int) -> tuple[bool, float]:
            score = samples[i].score(self.score) if self.score else None
            value = None if score is None else score.value
            return value is None, 0.0 if value is None else -value

        return sorted(range(len(samples)), key=key)
