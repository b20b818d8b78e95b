"""Keeps a limited number of rows: the most diverse, or high-scoring rows that are dissimilar."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from instructgen.filters import SelectingFilter
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity.blocks import Array
from instructgen.similarity.encoders import MINILM, check_model, encoder

_TEXTS_AT_ONCE = 2048


class Diversity(SelectingFilter):
    """Select diverse rows by embeddings of their instruction and input, and reject all others.

    ``k_center`` starts with the row nearest to the mean embedding, and repeatedly selects the row
    farthest from all selected rows (Sener and Savarese 2018). ``score_first`` visits the rows
    in order of decreasing score, and selects each row whose cosine similarity to all selected
    rows is at most ``threshold`` (as in the code of DEITA, Liu et al. 2024).
    """

    name = "diversity"

    rows: int = Field(ge=1, description="Maximum number of rows to keep.")
    method: Literal["k_center", "score_first"] = Field(
        "k_center",
        description="How to select rows: k_center (the most diverse rows) or score_first (rows "
        "with high scores that are not similar to each other).",
    )
    score: str | None = Field(
        None,
        description="Name of an entry in the column scores. The method score_first visits rows in "
        "decreasing order of this score; k_center does not use it.",
    )
    threshold: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Maximum cosine similarity to a kept row. Only the method score_first uses it.",
    )
    model: str = Field(
        MINILM,
        description="Embedding model: minilm (included, for English), a folder, or a Hub model.",
    )

    def select(self, samples: Iterable[Sample], folder: Path | None = None) -> dict[int, Rejection]:
        """Return the rejection of each sample that is not selected, by its position.

        The reason is ``not_selected`` or ``too_similar``. The score of a rejection is the cosine
        similarity of the sample to the most similar selected row. The embeddings are in memory.
        """
        check_model(self.model)
        ids: list[str] = []
        scores: list[float | None] = []
        parts: list[Array] = []
        rows = iter(samples)
        while chunk := list(islice(rows, _TEXTS_AT_ONCE)):
            parts.append(encoder(self.model).encode([s.question for s in chunk]))
            ids += [s.id for s in chunk]
            found = [s.score(self.score) if self.score else None for s in chunk]
            scores += [None if score is None else score.value for score in found]
        if not ids:
            return {}
        vectors = np.concatenate(parts)
        order = _by_score(scores) if self.method == "score_first" else None
        nearest = np.full(len(ids), -2.0, np.float32)
        nearest_row = np.full(len(ids), -1)
        selected: list[int] = []
        too_similar: set[int] = set()

        def select_row(i: int) -> None:
            selected.append(i)
            cosine = vectors @ vectors[i]
            nearer = cosine > nearest
            nearest[nearer], nearest_row[nearer] = cosine[nearer], i

        if order is None:
            select_row(int(np.argmax(vectors @ vectors.mean(0))))
            remaining = np.ones(len(ids), np.bool_)
            remaining[selected[0]] = False
            while len(selected) < min(self.rows, len(ids)):
                i = int(np.argmin(np.where(remaining, nearest, 2)))
                remaining[i] = False
                select_row(i)
        else:
            for i in order:
                if len(selected) == self.rows:
                    break
                if selected and round(float(nearest[i]), 4) > self.threshold:
                    too_similar.add(i)
                else:
                    select_row(i)
        kept = set(selected)
        rejections: dict[int, Rejection] = {}
        for i in range(len(ids)):
            if i not in kept:
                cosine, near = round(float(nearest[i]), 4), ids[int(nearest_row[i])]
                reason = "too_similar" if i in too_similar else "not_selected"
                detail = f"cosine similarity {cosine:.3f} to row {near}"
                rejections[i] = self.reject(reason, detail, cosine, near)
        return rejections


def _by_score(scores: Sequence[float | None]) -> list[int]:
    """Return the positions of rows in order of decreasing score; rows without a score are last."""

    def key(i: int) -> tuple[bool, float]:
        value = scores[i]
        return value is None, 0.0 if value is None else -value

    return sorted(range(len(scores)), key=key)
