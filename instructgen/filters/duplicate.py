"""Rejects duplicates in the whole dataset, across sources, and keeps the best copy of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from instructgen.filters import SelectingFilter
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity import deduplicate
from instructgen.similarity.encoders import MINILM

# `deduplicate` also searches for pairs below the threshold, down to its argument `floor`, so that
# lower thresholds can be tried later. A filter does not need these pairs.
_NO_LOWER = 0.999


class Duplicate(SelectingFilter):
    """Reject duplicates as the command `dedup` does; see `instructgen.similarity.deduplicate`."""

    name = "duplicate"

    how: tuple[Literal["exact", "minhash", "rouge_l", "semantic", "two_key"], ...] = Field(
        ("exact", "minhash"),
        description="Comparisons that find duplicates, in the order in which they are applied.",
    )
    priority: tuple[Literal["source", "human", "license", "quality", "length"], ...] = Field(
        ("human", "license", "quality", "length"),
        description="Criteria that decide which copy to keep, the most important first.",
    )
    sources: tuple[str, ...] = Field(
        (), description="Sources in order of preference; used only if priority contains source."
    )
    compared: Literal["row", "prompt", "instruction"] = Field(
        "row", description="Part of a row to compare."
    )
    threshold: dict[str, float] = Field(
        {},
        description="Maximum similarity of two kept rows, for each comparison in the option how.",
    )
    frame_quota: int = Field(
        3,
        ge=1,
        description="Maximum number of kept rows with the same sentence pattern; used only by the "
        "comparison two_key.",
    )
    model: str = Field(
        MINILM,
        description="Embedding model: minilm (included, for English), a folder, or a Hub name.",
    )

    def select(self, samples: Sequence[Sample]) -> list[Rejection | None]:
        """Return one item per sample, in order: its rejection, or None if it is kept.

        A rejection contains its reason (``duplicate``, ``paraphrase`` or ``same_frame``), the
        similarity, and the id of the kept copy.
        """
        present = {s.source for s in samples}
        result = deduplicate(
            samples,
            self.how,
            priority=self.priority,
            threshold=self.threshold or None,
            compared=self.compared,
            sources=[s for s in self.sources if s in present],
            floor=_NO_LOWER,
            frame_quota=self.frame_quota,
            model=self.model,
        )
        rejections: list[Rejection | None] = [None] * len(samples)
        for r in result.rejected:
            detail = f"{r.detail}; found by the comparison {r.stage}"
            rejections[r.row] = self.reject(r.reason, detail, r.score, r.partner.id)
        return rejections
