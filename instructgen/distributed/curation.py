"""Curation on a Ray cluster, with the same result as in one process.

The workers read the rows and apply the filters that evaluate each row by itself. What compares
rows is decided by this process, in order: `ShardedIndex` searches the earlier rows on the cluster,
and `find_duplicates` finds the pairs of similar rows there. This process writes the dataset.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson

from instructgen.distributed.blocks import Numbered, RayCluster
from instructgen.distributed.duplicates import find_duplicates
from instructgen.distributed.hosting import CommandContext
from instructgen.distributed.shards import ShardedIndex
from instructgen.filters import ComparingFilter, Filter, ScoringFilter, SelectingFilter
from instructgen.filters.curation import Block, Curation, Known, Report, RowStage
from instructgen.filters.duplicate import Duplicate
from instructgen.filters.recipe import filters_in, recorded_filters
from instructgen.schema.progress import Progress, Watch
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity.temporary import RowFile
from instructgen.store import DatasetReader


class RayCuration(Curation):
    """A `Curation` whose first filters run on a Ray cluster.

    Args:
        filters, known, folder: as for `Curation`.
        cluster: the connection to the cluster.
        reader: the dataset, which the workers read themselves.
        watch: function that is called with `Progress` events.
    """

    def __init__(
        self,
        filters: Sequence[Filter],
        known: Mapping[str, Known] | None,
        folder: Path,
        cluster: RayCluster,
        reader: DatasetReader,
        watch: Watch | None,
    ) -> None:
        super().__init__(filters, known, folder)
        self._cluster, self._reader, self._watch = cluster, reader, watch

    def _read(self, filters: Sequence[Filter], samples: Iterable[Sample]) -> Iterator[Block]:
        """Let the workers read the rows and apply the filters; ``samples`` are not used."""
        dataset = self._cluster.blocks([self._reader])
        dataset = self._cluster.mapped(dataset, _counted)
        context = CommandContext.here()
        # A filter with a model gets actors that keep it; the others need none.
        for has_model, group in groupby(filters, key=_has_model):
            spec = orjson.dumps(recorded_filters(list(group)))
            arguments = (_filtered, spec, context, self._known if has_model else {})
            if has_model:
                dataset = self._cluster.held(dataset, *arguments, **self._places())
            else:
                dataset = self._cluster.mapped(dataset, *arguments)
        total, done = sum(self._reader.splits.values()), 0
        for block, report in self._cluster.values(dataset):
            self.report.include(report)
            done += len(block.kept) + len(block.rejected)
            if self._watch is not None:
                self._watch(Progress("curate", done, total))
            yield block

    def _places(self) -> dict[str, Any]:
        """Return how many actors hold a model, and what each of them uses."""
        resources = self._cluster.ray.cluster_resources()
        if gpus := int(resources.get("GPU", 0)):
            return {"concurrency": (1, gpus), "num_gpus": 1}
        return {"concurrency": (1, max(1, int(resources.get("CPU", 1)) // 2))}

    def _compare(
        self, filters: Sequence[ComparingFilter], blocks: Iterator[Block]
    ) -> Iterator[Block]:
        indexes = [ShardedIndex(self._cluster, f) for f in filters]
        for f, index in zip(filters, indexes, strict=True):
            f.search_in(index)
        try:
            yield from super()._compare(filters, blocks)
        finally:
            for index in indexes:
                index.close()

    def _selected(self, f: SelectingFilter, file: RowFile) -> Mapping[int, Rejection]:
        if not isinstance(f, Duplicate):
            return super()._selected(f, file)
        dataset = self._cluster.items(_numbered(file))
        return f.rejections(find_duplicates(self._cluster, dataset, **f.arguments()))


def _numbered(file: RowFile) -> Iterator[Numbered]:
    first = 0
    for _, table in file.tables():
        yield Numbered(first, table)
        first += len(table)


def _has_model(f: Filter) -> bool:
    return isinstance(f, ScoringFilter) and "model" in type(f).model_fields


@lru_cache(maxsize=8)
def _filters(spec: bytes, context: CommandContext) -> tuple[Filter, ...]:
    context.adopt()
    return filters_in({"filters": orjson.loads(spec)}, Path("the recipe"))


def _counted(block: Block) -> Iterator[tuple[Block, Report]]:
    report = Report()
    report.read.update(row.sample.source for row in block.kept)
    yield block, report


def _filtered(
    item: tuple[Block, Report],
    spec: bytes,
    context: CommandContext,
    known: Mapping[str, Known],
) -> Iterator[tuple[Block, Report]]:
    block, report = RowStage(_filters(spec, context), known).apply(item[0])
    item[1].include(report)
    yield block, item[1]
