"""Assigns instructions to the topics of the seeds, for demonstrations that cover all topics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field, PrivateAttr

from instructgen.filters import Scope, ScoringFilter
from instructgen.schema.sample import Sample, Score
from instructgen.similarity.blocks import Array
from instructgen.similarity.encoders import MINILM, encoder

SCORE_NAME = "cluster"
# Twice as many seeds as clusters squared is a common rule for the number of clusters.
_SEEDS_PER_CLUSTER_SQUARED = 2


class Cluster(ScoringFilter):
    """Score instructions with the number of their cluster among the seeds; keep all of them.

    The clusters are those of k-means over sentence embeddings of the seed instructions. Texts in a
    language that the embedding model does not support are in one cluster.
    """

    name: ClassVar[str] = "cluster"
    scope: ClassVar[Scope] = "instruction"

    model: str = Field(
        MINILM,
        description="Embedding model: minilm (included), a folder of sentence-transformers, or a "
        "Hub name.",
    )
    clusters: int | None = Field(
        None,
        ge=2,
        description="Number of clusters. Default: the square root of half the number of seeds, at "
        "least 2.",
    )

    _seeds: tuple[Sample, ...] = PrivateAttr(())
    _centers: Array | None = PrivateAttr(None)

    @property
    def score_name(self) -> str:
        """Return ``cluster``."""
        return SCORE_NAME

    def clusters_of(self, seeds: Sequence[Sample]) -> list[int]:
        """Return the number of the cluster of each seed."""
        from sklearn.cluster import KMeans

        vectors = encoder(self.model).encode([seed.instruction for seed in seeds])
        count = self.clusters or round((len(seeds) / _SEEDS_PER_CLUSTER_SQUARED) ** 0.5)
        count = min(max(2, count), len(np.unique(vectors, axis=0)))
        numbers: list[int] = KMeans(count, n_init=4, random_state=0).fit_predict(vectors).tolist()
        return numbers

    def fit(self, seeds: Sequence[Sample]) -> None:
        """Use the clusters of these seeds, which they have as a score."""
        self._seeds = tuple(seeds)

    def scores(self, samples: Sequence[Sample]) -> list[Score]:
        """Return the number of the nearest cluster of each sample, in order."""
        if not self._seeds:
            error = "only generate with demonstrations = coverage has the topics of seeds"
            return [Score(SCORE_NAME, None, error) for _ in samples]
        centers = self._centers
        if centers is None:
            centers = self._mean_vectors()
            self._centers = centers
        vectors = encoder(self.model).encode([sample.instruction for sample in samples])
        nearest = np.argmin(
            np.linalg.norm(vectors[:, None, :] - centers[None, :, :], axis=2), axis=1
        )
        return [Score(SCORE_NAME, float(number)) for number in nearest.tolist()]

    def _mean_vectors(self) -> Array:
        vectors = encoder(self.model).encode([seed.instruction for seed in self._seeds])
        numbers = np.array([cluster_of(seed) for seed in self._seeds])
        return np.stack([vectors[numbers == n].mean(axis=0) for n in range(numbers.max() + 1)])


def cluster_of(sample: Sample) -> int | None:
    """Return the number of a sample's cluster, or None if it has none."""
    score = sample.score(SCORE_NAME)
    return None if score is None or score.value is None else int(score.value)


def with_cluster(sample: Sample, number: int) -> Sample:
    """Return the sample with the number of its cluster as a score."""
    return sample.with_score(Score(SCORE_NAME, float(number)))
