"""Rows of datasets as a Ray dataset: its items are blocks of rows, which are read by the workers.

The folders must be on storage that all nodes share. The order of the blocks is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from instructgen.distributed.cluster import ray_line
from instructgen.errors import EngineError, InstructgenError
from instructgen.filters.curation import Block, read_blocks
from instructgen.schema.arrow import samples_in
from instructgen.schema.sample import Sample
from instructgen.store import DatasetReader, Piece

_DATA = "data"


class Numbered(NamedTuple):
    """Rows in order, as samples or as an Arrow table, and the number of the first of them."""

    first: int
    rows: Any

    def samples(self) -> list[Sample]:
        """Return the samples."""
        return self.rows if isinstance(self.rows, list) else list(samples_in(self.rows))


@dataclass(frozen=True, slots=True)
class RayCluster:
    """A connection to a Ray cluster; see `instructgen.distributed.cluster.connected`."""

    ray: Any

    def __post_init__(self) -> None:
        """Set what Ray's datasets take over when they are created."""
        context = self.ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)

    def blocks(self, readers: Sequence[DatasetReader]) -> Any:
        """Return a Ray dataset with the rows of datasets in blocks, numbered from 0.

        Raises:
            DamagedFileError: a file does not match its manifest.
        """
        pieces, first = [], 0
        for reader in readers:
            for piece in reader.pieces():
                pieces.append((piece, first))
                first += piece.rows
        return self.mapped(self.items(pieces), _read)

    def items(self, values: Iterable[Any]) -> Any:
        """Return a Ray dataset of these values, each of which a task of its own gets.

        They are taken one after the other, and may need more memory than this process has.
        """
        import pyarrow as pa

        def block(value: Any) -> Any:
            data = pa.array([self.ray.cloudpickle.dumps(value)], pa.large_binary())
            return self.ray.put(pa.table({_DATA: data}))

        blocks = [block(value) for value in values]
        return self.ray.data.from_arrow_refs(blocks) if blocks else self.ray.data.from_items([])

    def mapped(
        self,
        dataset: Any,
        function: Callable[..., Iterable[Any]],
        *arguments: Any,
        native: bool = False,
    ) -> Any:
        """Return the dataset of the values that a function yields for each value of a dataset.

        Args:
            dataset: a dataset that a method of this class returned.
            function: a function of a module. It is called with a value and the arguments.
            arguments: further arguments, which each worker gets once.
            native: whether the function yields Arrow tables, which are then Ray's own blocks.
        """
        shared = self.ray.put(arguments)
        return dataset.map_batches(
            _tables if native else _mapping,
            batch_size=1,
            batch_format="pyarrow",
            # Within a list, Ray does not replace the reference, so that a worker gets it once.
            fn_args=(function, [shared]),
        )

    def held(
        self, dataset: Any, function: Callable[..., Iterable[Any]], *arguments: Any, **options: Any
    ) -> Any:
        """Return a dataset as `mapped` does, from actors that stay, because they hold a model."""
        shared = self.ray.put(arguments)
        return dataset.map_batches(
            _Held,
            batch_size=1,
            batch_format="pyarrow",
            fn_constructor_args=(function, [shared]),
            **options,
        )

    def values(self, dataset: Any) -> Iterator[Any]:
        """Yield the values of a dataset, in order.

        Raises:
            InstructgenError: that a worker raised.
            EngineError: the cluster cannot continue.
        """
        with self.errors():
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                for data in batch.column(_DATA).to_pylist():
                    yield self.ray.cloudpickle.loads(data)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise the error of instructgen that a worker raised, instead of Ray's error about it."""
        try:
            yield
        except self.ray.exceptions.RayError as error:
            # Ray's error about a task is also of the class that the task has raised.
            found: BaseException | None = getattr(error, "cause", None) or error
            while found is not None and not isinstance(found, InstructgenError):
                found = getattr(found, "cause", None) or found.__cause__
            if found is not None:
                raise found from error
            raise EngineError(
                f"the Ray cluster cannot continue ({ray_line(error)}).",
                "Check the cluster (ray status), then rerun the same command.",
            ) from error


# The arguments of stages that this worker has received, by the reference to them.
_ARGUMENTS: dict[str, tuple[Any, ...]] = {}


def _mapping(
    batch: Any, function: Callable[..., Iterable[Any]], shared: list[Any]
) -> Iterator[Any]:
    """Apply a function to the values of a batch, and yield a batch for each result."""
    import pyarrow as pa
    import ray

    for value in _tables(batch, function, shared):
        yield pa.table({_DATA: pa.array([ray.cloudpickle.dumps(value)], pa.large_binary())})


def _tables(batch: Any, function: Callable[..., Iterable[Any]], shared: list[Any]) -> Iterator[Any]:
    """Apply a function to the values of a batch, and yield what it yields."""
    import ray

    key = shared[0].hex()
    if key not in _ARGUMENTS:
        _ARGUMENTS[key] = ray.get(shared[0])
    for data in batch.column(_DATA).to_pylist():
        yield from function(ray.cloudpickle.loads(data), *_ARGUMENTS[key])


class _Held:
    def __init__(self, function: Callable[..., Iterable[Any]], shared: list[Any]) -> None:
        self._function, self._shared = function, shared

    def __call__(self, batch: Any) -> Iterator[Any]:
        return _mapping(batch, self._function, self._shared)


def _read(piece: tuple[Piece, int]) -> Iterator[Block]:
    rows, first = piece
    yield from read_blocks(rows.samples(), first)


def numbered(block: Block) -> Iterator[Numbered]:
    """Yield the rows of a block from which none was removed."""
    yield Numbered(block.kept[0].place, [row.sample for row in block.kept])
