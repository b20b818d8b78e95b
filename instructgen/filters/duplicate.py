"""Rejects duplicate rows, even from different sources, and keeps the row of highest priority."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from instructgen.filters import SelectingFilter
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity import Duplicates, find_duplicates
from instructgen.similarity.encoders import MINILM

# `find_duplicates` also searches for pairs below the threshold, down to its argument `floor`, so
# that lower thresholds can be tried later. A filter does not need these pairs.
_NO_LOWER = 0.999


class Duplicate(SelectingFilter):
    """Reject duplicates as the command `dedup` does; see `instructgen.similarity.deduplicate`."""

    name = "duplicate"

    how: tuple[Literal["exact", "minhash", "rouge_l", "semantic", "two_key"], ...] = Field(
        ("exact", "minhash"),
        description="Comparisons to apply, in order: any of exact (equal texts), minhash (Jaccard "
        "similarity of words), rouge_l (ROUGE-L), semantic (embeddings), two_key (ROUGE-L and "
        "embeddings).",
    )
    priority: tuple[Literal["source", "human", "license", "quality", "length"], ...] = Field(
        ("human", "license", "quality", "length"),
        description="Criteria that decide which duplicate is kept, the most important first: "
        "source (order in sources), human (written by a human), license (fewest conditions), "
        "quality (highest score), length (longest output).",
    )
    sources: tuple[str, ...] = Field(
        (),
        description="Names of sources, the preferred one first; used only if priority contains "
        "source.",
    )
    compared: Literal["row", "prompt", "instruction"] = Field(
        "row",
        description="Text to compare: the complete row (row), all text except the outputs "
        "(prompt), or only the instruction (instruction).",
    )
    threshold: dict[str, float] = Field(
        {},
        description="Similarity above which two rows are duplicates, for each comparison, such as "
        "{minhash = 0.8}. Default: 0.7 for minhash and rouge_l, 0.9 for semantic.",
    )
    frame_quota: int = Field(
        3,
        ge=1,
        description="For the comparison two_key: maximum number of kept rows with the same "
        "sentence pattern but different meanings, such as 'What is a ...?'.",
    )
    same_if_equal: tuple[str, ...] = Field(
        (),
        description="Names of labels or fields, such as category. Two rows are duplicates only if "
        "they have the same values of these.",
    )
    model: str = Field(
        MINILM,
        description="Embedding model: minilm (included, for English), a folder, or the name of a "
        "model on the Hugging Face Hub.",
    )

    def select(self, samples: Iterable[Sample], folder: Path | None = None) -> dict[int, Rejection]:
        """Return the rejection of each duplicate, by its position.

        A rejection contains its reason, the similarity, and the id of the similar kept row. The
        reason is ``duplicate``, ``paraphrase`` (similar only in meaning) or ``same_frame`` (similar
        only in words).
        """
        return self.rejections(find_duplicates(samples, folder=folder, **self.arguments()))

    def arguments(self) -> dict[str, Any]:
        """Return the arguments with which `find_duplicates` does what the options say."""
        return {
            "how": self.how,
            "priority": self.priority,
            "threshold": self.threshold or None,
            "compared": self.compared,
            "sources": self.sources,
            "other_sources": True,
            "floor": _NO_LOWER,
            "frame_quota": self.frame_quota,
            "model": self.model,
            "same_if_equal": self.same_if_equal,
        }

    def rejections(self, found: Duplicates) -> dict[int, Rejection]:
        """Return the rejection of each duplicate, by its position."""
        return {
            d.row: self.reject(
                *(d.reason, f"{d.detail}; found by the comparison {d.stage}", d.score),
                d.partner_id,
            )
            for d in found.rejected()
        }
