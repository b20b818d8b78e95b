"""Finds duplicates on a Ray cluster, with the same result as in one process.

The workers describe the rows, and compute the words and the bands of each. The bands are divided
by their keys among tasks (a shuffle), each of which compares the rows that have a key in common.
This process holds only numbers: it groups equal rows, orders them by priority, and decides which
are kept. The texts stay in Ray's object store, which writes to disk what exceeds it. Each worker
that compares rows has the words of all rows in a temporary file.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from instructgen.distributed.blocks import Numbered, RayCluster
from instructgen.schema.progress import Progress, Watch
from instructgen.similarity.blocks import Array, Growing, Texts
from instructgen.similarity.dedup import (
    AllPairs,
    Distinguished,
    Duplicates,
    Thresholds,
    check_options,
    check_sources,
    choose,
)
from instructgen.similarity.dedup_rows import Compared, Described, Describer, Priority, RowNumbers
from instructgen.similarity.encoders import check_model
from instructgen.similarity.matches import Pairs
from instructgen.similarity.minhash import Signer, word_hashes
from instructgen.similarity.minhash_pairs import FoundPairs, PairSearch, records_of, signer_for
from instructgen.similarity.near_pairs import tables_of
from instructgen.similarity.temporary import Column, NumberFile

# Tasks that compare rows, for each core of the cluster.
_TASKS_PER_CORE = 4
_ROWS_AT_ONCE = 4_096
_NUMBERS = ("digest", "id", "protected", "source", "license")


def find_duplicates(
    cluster: RayCluster,
    dataset: Any,
    how: Sequence[str],
    *,
    priority: Priority,
    threshold: Thresholds | None,
    compared: Compared,
    sources: Sequence[str],
    other_sources: bool = False,
    floor: float,
    frame_quota: int,
    same_if_equal: Sequence[str],
    model: str = "",
    folder: Path | None = None,
    watch: Watch | None = None,
) -> Duplicates:
    """Find duplicates like `instructgen.similarity.find_duplicates`, with its arguments.

    The stages ``exact`` and ``minhash`` are computed on the cluster, others by this process.

    Args:
        cluster: the connection to the cluster.
        dataset: a Ray dataset of `Numbered` rows, in order.

    Raises:
        ConfigError: an option is invalid, or a required package is missing.
        InputError: a text is too long, or there are too many pairs.
    """
    thresholds, floors = check_options(how, threshold, compared, floor, frame_quota)
    if "semantic" in floors:
        check_model(model)
    describer = Describer(compared, priority, same_if_equal, limited="rouge_l" in floors)
    with cluster.errors():
        described = cluster.mapped(dataset, _described, describer, native=True).materialize()
        rows, filled = _numbers(described, describer, watch)
        if not other_sources:
            check_sources(sources, rows)
        group, first = rows.groups(sources)
        # A part that is empty in all rows cannot distinguish any of them.
        columns = [0, *(k for k in range(2, describer.columns) if filled[k])]

        def minhash(floor: float) -> Pairs:
            pairs = _Pairs(cluster.ray, floor, columns)
            return pairs.found(described, first, len(group), watch)

        stored = _StoredTexts(cluster, described)
        whole, *keys = (Column(stored, first, k) for k in columns)
        tables, unread = tables_of(whole, keys, how, floors, model, minhash, watch)
        differences = Distinguished(Column(stored, first, 1), rows.protected(first))
        all_pairs = AllPairs(
            rows, tuple(how), frame_quota, floors, group, first, tables, unread, differences
        )
        return choose(all_pairs, thresholds)


def _described(rows: Numbered, describer: Describer) -> Iterator[Any]:
    """Yield what deduplication needs of rows as an Arrow table."""
    import pyarrow as pa

    found = describer.describe(rows.samples(), rows.first)
    columns = [[text[k] for text in found.texts] for k in range(describer.columns)]
    yield pa.table(
        {
            "place": pa.array(np.arange(len(found.ids)) + rows.first),
            "digest": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(16), len(found.ids), [None, pa.py_buffer(found.digests)]
            ),
            "id": pa.array(np.array(found.ids, np.uint64)),
            "protected": pa.array([list(p) for p in found.protected], pa.list_(pa.string())),
            "source": pa.array(found.sources, pa.string()),
            "license": pa.array(found.licenses, pa.string()),
            **{f"value{k}": pa.array(np.array(v)) for k, v in enumerate(found.values)},
            **{f"text{k}": pa.array(texts, pa.large_string()) for k, texts in enumerate(columns)},
        }
    )


def _numbers(described: Any, describer: Describer, watch: Watch | None) -> tuple[RowNumbers, Array]:
    """Return the numbers of all rows, and which texts are not empty in all rows."""
    import pyarrow.compute as pc

    rows, filled = RowNumbers(describer), np.zeros(describer.columns, np.bool_)
    values = [f"value{k}" for k in range(len(describer.criteria))]
    for batch in described.iter_batches(batch_size=None, batch_format="pyarrow"):
        for k in range(describer.columns):
            filled[k] |= (pc.max(pc.binary_length(batch.column(f"text{k}"))).as_py() or 0) > 0
        columns = {name: batch.column(name).combine_chunks() for name in (*_NUMBERS, *values)}
        rows.add(
            Described(
                [],
                b"".join(columns["digest"].to_pylist()),
                array("Q", columns["id"].to_numpy()),
                [tuple(each) for each in columns["protected"].to_pylist()],
                columns["source"].to_pylist(),
                columns["license"].to_pylist(),
                [array("d", columns[name].to_numpy()) for name in values],
                [],
            )
        )
        if watch is not None:
            watch(Progress("describe", len(rows)))
    return rows, filled


class _Pairs:
    """Finds the pairs of similar texts on a cluster."""

    def __init__(self, ray: Any, threshold: float, columns: Sequence[int]) -> None:
        self._ray, self._threshold, self._columns = ray, threshold, list(columns)

    def found(self, described: Any, first: Array, rows: int, watch: Watch | None) -> Pairs:
        """Return the pairs among the rows ``first``; their positions there are the texts."""
        # The number of the text of each row that is compared, and -1 for the others.
        number = np.full(rows, -1, np.int64)
        number[first] = np.arange(len(first))
        cores = int(self._ray.cluster_resources().get("CPU", 1))
        tasks = max(1, _TASKS_PER_CORE * cores)
        words = described.map_batches(
            _words,
            batch_size=_ROWS_AT_ONCE,
            batch_format="pyarrow",
            fn_args=(self._threshold, self._columns, [self._ray.put(number)]),
        ).materialize()
        references = words.to_arrow_refs()
        keys = words.select_columns(["text", "keys"]).map_batches(
            _keys, batch_size=_ROWS_AT_ONCE, batch_format="pyarrow", fn_args=(tasks,)
        )
        searched = keys.repartition(tasks, keys=["task"]).map_batches(
            _searched,
            batch_size=None,
            batch_format="pyarrow",
            fn_args=(self._threshold, len(self._columns), references, len(first)),
        )
        pairs = FoundPairs()
        batches = searched.iter_batches(batch_size=None, batch_format="pyarrow")
        for done, batch in enumerate(batches, start=1):
            pairs.add(batch.column("pair").to_numpy(), batch.column("score").to_numpy())
            if watch is not None:
                watch(Progress("minhash", min(done, tasks), tasks, "tasks"))
        return pairs.pairs()


@cache
def _encoder(threshold: float) -> tuple[Signer, Growing]:
    """Return what signs texts in this worker, and the 64-bit hash of each word number."""
    return signer_for(threshold), Growing(np.zeros(0, np.int64))


def _words(batch: Any, threshold: float, columns: Sequence[int], number: list[Any]) -> Any:
    """Return the words and the band keys of the rows that are compared and have words."""
    import pyarrow as pa
    import ray

    signer, hashes = _encoder(threshold)
    texts = ray.get(number[0])[batch.column("place").to_numpy()]
    batch, texts = batch.filter(pa.array(texts >= 0)), texts[texts >= 0]
    sets = [signer.encode(batch.column(f"text{k}").to_pylist()) for k in columns]
    hashes.extend(word_hashes(signer.ngrams.latest(len(signer.ngrams) - len(hashes))))
    data, lengths = records_of([_hashed(s, hashes.view) for s in sets])
    filled = np.diff(sets[0].offsets) > 0
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    records = pa.LargeListArray.from_arrays(pa.array(ends), pa.array(data))
    keys = signer.keys(sets[0])
    listed = pa.FixedSizeListArray.from_arrays(pa.array(keys.reshape(-1)), signer.bands)
    table = pa.table({"text": pa.array(texts), "record": records, "keys": listed})
    return table.filter(pa.array(filled))


def _hashed(sets: Texts, hashes: Array) -> Texts:
    """Return sets of words as their hashes, in ascending order within each text."""
    words = hashes[sets.words]
    text = np.repeat(np.arange(len(sets.offsets) - 1), np.diff(sets.offsets))
    return Texts(words[np.lexsort((words, text))], sets.offsets)


def _keys(batch: Any, tasks: int) -> Any:
    """Return a row for each key of each text, with the number of the task that compares it."""
    import pyarrow as pa

    texts = batch.column("text").to_numpy()
    keys = batch.column("keys").combine_chunks().flatten().to_numpy()
    task = (keys.view(np.uint64) % np.uint64(tasks)).astype(np.int32)
    repeated = np.repeat(texts, len(keys) // max(1, len(texts)))
    columns = {"task": task, "key": keys, "text": repeated}
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def _searched(batch: Any, threshold: float, columns: int, blocks: list[Any], rows: int) -> Any:
    """Return the pairs of similar texts among those that have a key in common."""
    import pyarrow as pa

    key, found = blocks[0].hex() if blocks else "", FoundPairs()
    if key not in _RECORDS:
        # Those of an earlier search are not needed any more.
        _RECORDS.clear()
        _RECORDS[key] = _Records(blocks, rows)
    texts, keys = batch.column("text").to_numpy(), batch.column("key").to_numpy()
    order = np.argsort(texts, kind="stable")
    search = PairSearch(signer_for(threshold), columns, _RECORDS[key].read)
    for codes, scores in search.pairs(texts[order], keys[order]):
        found.add(codes, scores)
    pairs = found.pairs()
    codes = pa.array(pairs.text << 32 | pairs.row)
    return pa.table({"pair": codes, "score": pa.array(pairs.score)})


class _Records:
    """The records of all texts, in a temporary file of this worker.

    A search reads the texts that have a key in common again and again, in any order. Ray's object
    store would each time restore all blocks from the disk.
    """

    def __init__(self, blocks: Sequence[Any], rows: int) -> None:
        import ray

        self._file = NumberFile(np.int64)
        self._begins, self._ends, size = np.zeros(rows, np.int64), np.zeros(rows, np.int64), 0
        for block in blocks:
            table = ray.get(block)
            texts, column = table.column("text").to_numpy(), table.column("record").combine_chunks()
            offsets = column.offsets.to_numpy()
            self._file.extend(column.values.to_numpy()[offsets[0] : offsets[-1]])
            places = offsets - offsets[0] + size
            self._begins[texts], self._ends[texts] = places[:-1], places[1:]
            size = int(places[-1])

    def read(self, texts: Array) -> tuple[Array, Array]:
        """Return the records of texts, one after the other, and where each of them begins."""
        begins, ends = self._begins[texts], self._ends[texts]
        parts = [self._file.read(a, b) for a, b in zip(begins.tolist(), ends.tolist(), strict=True)]
        return np.concatenate(parts), np.cumsum(ends - begins) - (ends - begins)


# The records of the search that this worker takes part in, by its first block.
_RECORDS: dict[str, _Records] = {}


class _StoredTexts:
    """The texts of all rows, in the object store of the cluster."""

    def __init__(self, cluster: RayCluster, described: Any) -> None:
        self._ray, self._blocks = cluster.ray, described.to_arrow_refs()
        self._ends = np.cumsum([self._ray.get(block).num_rows for block in self._blocks])

    def at(self, row: int, column: int = 0) -> str:
        """Return one text."""
        block = int(np.searchsorted(self._ends, row, side="right"))
        table = self._ray.get(self._blocks[block])
        begin = int(self._ends[block]) - table.num_rows
        return str(table.column(f"text{column}")[row - begin])
