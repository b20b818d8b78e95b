"""Texts as points in a plane, near where their meanings are: MiniLM's embeddings and t-SNE."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from instructgen.similarity.encoders import MINILM, encoder

_PERPLEXITY = 30


def in_plane(texts: Sequence[str]) -> list[tuple[float, float] | None] | None:
    """A place for each text; None for one that the model cannot read, and for too few.

    t-SNE (van der Maaten and Hinton 2008) from scikit-learn, begun from the principal
    components so that the same texts give the same picture.

    Raises:
        ConfigError: packages are missing.
    """
    vectors = encoder(MINILM).encode(texts)
    from sklearn.manifold import TSNE

    read = [i for i, vector in enumerate(vectors) if vector.any()]
    # Of equal points t-SNE makes numbers that are none, and crashes on them.
    different, which = np.unique(vectors[read].round(5), axis=0, return_inverse=True)
    if len(different) < 10:
        return None
    perplexity = min(_PERPLEXITY, (len(different) - 1) / 3)
    found = TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(different)
    places: list[tuple[float, float] | None] = [None] * len(texts)
    for i, place in zip(read, which.reshape(-1), strict=True):
        x, y = found[place]
        places[i] = (float(x), float(y))
    return places
