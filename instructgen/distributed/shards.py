"""An index of earlier texts whose rows are divided among actors of a Ray cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from instructgen.distributed.blocks import RayCluster
from instructgen.distributed.hosting import CommandContext
from instructgen.errors import EngineError
from instructgen.filters import ComparingFilter
from instructgen.filters.recipe import filters_in, recorded_filters
from instructgen.similarity import Match, Pairs
from instructgen.similarity.temporary import Column, TextFile

_TEXTS_AT_ONCE = 2048
# How often the shards of an index are restored before the command ends.
_MOST_RESTORED = 10


class Shard:
    """The code of an actor: an index with some of the rows."""

    def __init__(self, spec: bytes, context: CommandContext) -> None:
        context.adopt()
        (f,) = filters_in({"filters": orjson.loads(spec)}, Path("the recipe"))
        assert isinstance(f, ComparingFilter)
        self._index = f.index()

    def add(self, texts: Sequence[str]) -> None:
        """Append texts."""
        self._index.add(texts)

    def pairs(self, texts: Sequence[str]) -> Pairs:
        """Return the pairs of a text and a row of this shard."""
        return self._index.pairs(texts)


class ShardedIndex:
    """An index of a filter with one shard per node; row i is in the shard i modulo their number.

    The texts are also in a temporary file of this process, from which a shard that dies with its
    node is restored.

    Args:
        cluster: the connection to the cluster.
        f: the filter that compares texts.
    """

    def __init__(self, cluster: RayCluster, f: ComparingFilter) -> None:
        self._cluster, self._ray = cluster, cluster.ray
        self._arguments = orjson.dumps(recorded_filters([f])), CommandContext.here()
        self._texts, self._restored = TextFile(), 0
        nodes = sum(node["Alive"] for node in self._ray.nodes())
        self._shards = [self._new() for _ in range(nodes)]

    def add(self, texts: Sequence[str]) -> None:
        """Append texts to the index, one row per text."""
        begin, count = len(self._texts), len(self._shards)
        for text in texts:
            self._texts.append(text)
        for k, shard in enumerate(self._shards):
            own = list(texts[(k - begin) % count :: count])
            if own:
                # A shard that has died is restored, with these texts, when it is searched.
                shard.add.remote(own)

    def pairs(self, texts: Sequence[str]) -> Pairs:
        """Return all pairs of a text and an index row whose similarity is above the threshold."""
        shared, count = self._ray.put(list(texts)), len(self._shards)
        found = [shard.pairs.remote(shared) for shard in self._shards]
        parts = [self._answer(k, reference, shared) for k, reference in enumerate(found)]
        text = np.concatenate([part.text for part in parts])
        row = np.concatenate([part.row * count + k for k, part in enumerate(parts)])
        score = np.concatenate([part.score for part in parts])
        order = np.lexsort((row, text))
        return Pairs(text[order], row[order], score[order])

    def nearest(self, texts: Sequence[str]) -> list[Match | None]:
        """For each text, return the most similar row of the index above the threshold, or None."""
        best: list[Match | None] = [None] * len(texts)
        for text, row, score in zip(*(a.tolist() for a in self.pairs(texts)), strict=True):
            known = best[text]
            if known is None or score > known.score:
                best[text] = Match(score, row)
        return best

    def close(self) -> None:
        """End the actors."""
        for shard in self._shards:
            self._ray.kill(shard)

    def _answer(self, k: int, reference: Any, texts: Any) -> Pairs:
        while True:
            try:
                with self._cluster.errors():
                    found: Pairs = self._ray.get(reference)
                    return found
            except EngineError as error:
                if self._restored == _MOST_RESTORED or not self._has_died(error):
                    raise
                self._restored += 1
                self._shards[k] = self._new()
                rows = np.arange(k, len(self._texts), len(self._shards))
                column = Column(self._texts, rows)
                for start in range(0, len(rows), _TEXTS_AT_ONCE):
                    self._shards[k].add.remote(column[start : start + _TEXTS_AT_ONCE])
                reference = self._shards[k].pairs.remote(texts)

    def _has_died(self, error: EngineError) -> bool:
        return isinstance(error.__cause__, self._ray.exceptions.RayActorError)

    def _new(self) -> Any:
        # It takes no core from the filters, which wait for it.
        remote = self._ray.remote(Shard).options(num_cpus=0, scheduling_strategy="SPREAD")
        return remote.remote(*self._arguments)
