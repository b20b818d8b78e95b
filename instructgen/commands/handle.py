"""Gives Python sessions and notebooks read-only access to a dataset folder."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

from instructgen.commands.explain import explain
from instructgen.commands.explanation import Explanation
from instructgen.errors import ConfigError, InputError, RunError
from instructgen.schema.sample import Sample
from instructgen.store import (
    Manifest,
    manifest_in,
    read_batches,
    read_rows,
    read_samples,
    splits_of,
)

_SHOWN, _CELL = 5, 200


class DatasetHandle:
    """A complete dataset, whose rows are read from its folder when they are requested.

    Attributes:
        path: the dataset or run folder.
        manifest: the contents of manifest.json, such as the numbers of rows and rejections.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: Manifest = manifest_in(path)

    def __len__(self) -> int:
        """Return the number of rows, not counting rejected rows."""
        return self.manifest.rows

    @property
    def splits(self) -> dict[str, int]:
        """The number of rows by split; a dataset without splits has one entry, named ``part``."""
        return splits_of(self.path)

    def rows(self, table: str = "data") -> Iterator[dict[str, Any]]:
        """Yield the kept rows as dicts; with ``table="rejected"``, yield the rejected rows instead.

        A rejected row also has the columns ``filter`` and ``reason``.

        Raises:
            DamagedFileError: a Parquet file is damaged or missing.
        """
        return read_rows(self.path, table)

    def samples(self, split: str | None = None) -> Iterator[Sample]:
        """Yield the kept rows (all, or one split) as `instructgen.schema.sample.Sample` objects."""
        return read_samples(self.path, split=split)

    def to_pandas(self, table: str = "data") -> Any:
        """Return the kept rows (``table="rejected"``: the rejected rows) as a pandas DataFrame.

        Raises:
            DamagedFileError: a Parquet file is damaged or missing.
        """
        return self._table(table).to_pandas()

    def _table(self, table: str, split: str | None = None) -> Any:
        import pyarrow as pa

        from instructgen.schema.arrow import schema

        if table not in ("data", "rejected"):
            raise ConfigError(f"table={table!r} is invalid.", "Use data or rejected.")
        batches = list(read_batches(self.path, table, split))
        columns = schema(self.manifest.shape, rejected=table == "rejected")
        return pa.Table.from_batches(batches, batches[0].schema if batches else columns)

    def to_datasets(self) -> Any:
        """Return the kept rows as a `datasets.Dataset`, or as a `DatasetDict` if there are splits.

        Raises:
            ConfigError: the package datasets is not installed.
            DamagedFileError: a Parquet file is damaged or missing.
        """
        try:
            import datasets
        except ImportError:
            raise ConfigError(
                "to_datasets requires the package datasets.", "Run: pip install datasets"
            ) from None

        def split(name: str) -> Any:
            return datasets.Dataset(self._table("data", name))

        names = list(self.splits)
        if len(names) == 1:
            return split(names[0])
        return datasets.DatasetDict({name: split(name) for name in names})

    def explain(self, row_id: str) -> Explanation:
        """Explain where a row comes from and why it was kept or rejected.

        Raises:
            InputError: no row has this ID.
        """
        return explain(self.path, row_id)

    def __repr__(self) -> str:
        """Return the path and the numbers of kept and rejected rows."""
        m = self.manifest
        return f"<instructgen dataset {self.path}: {m.rows:,} rows, {m.rejected:,} rejected>"

    def _repr_html_(self) -> str:
        """Return the numbers of rows, the licenses and the first rows as HTML, for notebooks."""
        m = self.manifest
        licenses = ", ".join(f"{name} {rows:,}" for name, rows in m.terms.licenses.items())
        fields = ("instruction", "input", "output", "source", "license")
        head = "".join(f"<th>{name}</th>" for name in fields)
        body = "".join(
            f"<tr>{''.join(f'<td>{_cell(row.get(name))}</td>' for name in fields)}</tr>"
            for row in islice(self.rows(), _SHOWN)
        )
        return (
            f"<p><b>{escape(str(self.path))}</b>: {m.rows:,} {m.shape}, {m.rejected:,} rejected. "
            f"Licenses: {escape(licenses or 'none')}.</p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )


def open_dataset(path: str | Path) -> DatasetHandle:
    """Return a handle that reads the rows of a dataset or run folder when they are requested.

    Raises:
        InputError: the path does not exist.
        RunError: the path is a file, the dataset is incomplete, or the manifest is damaged.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        raise InputError("the folder does not exist.", path=folder, hint="Check the path.")
    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder.", "Pass the path of a dataset or run folder.")
    return DatasetHandle(folder)


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    return escape(text if len(text) <= _CELL else text[: _CELL - 1] + "…")
