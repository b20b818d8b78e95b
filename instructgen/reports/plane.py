"""Maps texts to points in a plane with MiniLM and t-SNE; similar texts are close together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from instructgen.similarity.encoders import MINILM, encoder

_PERPLEXITY = 30


def in_plane(texts: Sequence[str]) -> list[tuple[float, float] | None] | None:
    """Return the coordinates of each text in a plane where similar texts are close together.

    Method: t-SNE (van der Maaten and Hinton 2008) from scikit-learn on MiniLM embeddings,
    initialized with the principal components so that the same texts give the same points.

    Returns:
        A list with (x, y) for each text, or None for a text that the model cannot encode. With
        fewer than 10 distinct texts, None is returned instead of the list.

    Raises:
        ConfigError: a required package is not installed.
    """
    vectors = encoder(MINILM).encode(texts)
    from sklearn.manifold import TSNE

    embedded = [i for i, vector in enumerate(vectors) if vector.any()]
    # t-SNE computes NaN for equal points and then fails, so equal texts share one point.
    unique, which = np.unique(vectors[embedded].round(5), axis=0, return_inverse=True)
    if len(unique) < 10:
        return None
    perplexity = min(_PERPLEXITY, (len(unique) - 1) / 3)
    points = TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(unique)
    places: list[tuple[float, float] | None] = [None] * len(texts)
    for i, place in zip(embedded, which.reshape(-1), strict=True):
        x, y = points[place]
        places[i] = (float(x), float(y))
    return places
