"""Rejects copies across sources, each for the best one: of the whole dataset, as stars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from instructgen.filters import SelectingFilter
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity import deduplicate
from instructgen.similarity.encoders import MINILM

# Nobody asks again at another threshold, so that pairs are looked for above it alone.
_NO_LOWER = 0.999


class Duplicate(SelectingFilter):
    """What `instructgen dedup` does, as a filter; see `instructgen.similarity.deduplicate`."""

    name = "duplicate"

    how: tuple[Literal["exact", "minhash", "rouge_l", "semantic", "two_key"], ...] = Field(
        ("exact", "minhash"), description="what makes a copy"
    )
    priority: tuple[Literal["source", "human", "licence", "quality", "length"], ...] = Field(
        ("human", "licence", "quality", "length"), description="which copy stays"
    )
    sources: tuple[str, ...] = Field((), description="for source: the most trusted first")
    compared: Literal["row", "prompt", "instruction"] = Field("row", description="what of a row")
    threshold: dict[str, float] = Field({}, description="highest similarity kept, by stage")
    frame_quota: int = Field(3, ge=1, description="rows kept of a frame, by two_key")
    model: str = Field(MINILM, description="minilm (packaged, English), a folder, or a Hub name")

    def select(self, samples: Sequence[Sample]) -> list[Rejection | None]:
        """``duplicate``, ``paraphrase`` or ``same_frame``, with the score and the kept copy."""
        present = {s.source for s in samples}
        found = deduplicate(
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
        reasons: list[Rejection | None] = [None] * len(samples)
        for r in found.removed:
            detail = f"{r.detail}; {r.stage}"
            reasons[r.row] = self.reject(r.reason, detail, r.score, r.partner.id)
        return reasons
