"""Saves arguments of the Python functions, such as DataFrames or dicts, as temporary files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from instructgen.errors import ConfigError, InputError, first_line


def is_data(value: Any, takes: str) -> bool:
    """Return whether a value contains rows or, if ``takes`` is ``recipe``, is a recipe dict."""
    if takes == "recipe":
        return isinstance(value, Mapping)
    if isinstance(value, list | tuple):
        return any(is_data(v, takes) or isinstance(v, Mapping) for v in value)
    return hasattr(value, "to_pandas") or hasattr(value, "to_dict")


def write_data(name: str, value: Any, takes: str, folder: Path) -> Any:
    """Write rows or a recipe to a file and return its path, or a list of paths for several objects.

    Args:
        name: the parameter of the command, for error messages.
        value: for a recipe, a dict. For rows, a DataFrame, a `datasets.Dataset`, a pyarrow Table,
            a dataset from `open_dataset`, a list of dicts, or a list of such objects and of paths.
        takes: ``recipe`` or ``rows``.
        folder: the folder for the files. Files with equal rows have the same name.

    Raises:
        InputError: a row cannot be written as JSON, or two columns have the same name.
        ConfigError: the recipe cannot be written as TOML, or a list mixes rows and paths.
    """
    if takes == "recipe":
        return _write_recipe(name, value, folder)
    if isinstance(value, list | tuple):
        if all(isinstance(v, Mapping) for v in value):
            return _write_rows(name, list(value), folder)
        if any(isinstance(v, Mapping) for v in value):
            raise ConfigError(
                f"{name}: the list contains both rows and files.",
                "Pass either a list of dicts (rows) or a list of files.",
            )
        return [write_data(name, v, takes, folder) if is_data(v, takes) else v for v in value]
    if hasattr(value, "manifest"):
        # An opened dataset is read from its folder, with all columns.
        return value.path
    frame = value if hasattr(value, "columns") and hasattr(value, "isna") else value.to_pandas()
    if not frame.columns.is_unique:
        raise InputError(f"{name}: two columns have the same name.", hint="Rename one of them.")
    empty = frame.astype(object).where(frame.notna(), None)
    return _write_rows(name, empty.to_dict("records"), folder)


def _write_rows(name: str, rows: list[Any], folder: Path) -> Path:
    try:
        lines = [orjson.dumps(row, _to_list, orjson.OPT_SERIALIZE_NUMPY) for row in rows]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name}: a row cannot be written as JSON ({first_line(error)}).",
            hint="Use text, numbers, lists and dicts with text keys.",
        ) from error
    data = b"".join(line + b"\n" for line in lines)
    path = folder / f"rows-{hashlib.sha256(data).hexdigest()[:12]}.jsonl"
    path.write_bytes(data)
    return path


def _to_list(value: Any) -> Any:
    """Return an array as a list; raise TypeError for a value that is not an array."""
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if not hasattr(value, "tolist"):
        raise TypeError(f"a value has the unsupported type {type(value).__name__}")
    return value.tolist()


def _write_recipe(name: str, value: Mapping[str, Any], folder: Path) -> Path:
    import tomli_w

    try:
        text = tomli_w.dumps(_plain(value)).encode()
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{name}: the recipe cannot be written as TOML ({first_line(error)}).",
            "Use text, numbers, lists and dicts with text keys.",
        ) from error
    path = folder / "recipe.toml"
    path.write_bytes(text)
    return path


def _plain(value: Any) -> Any:
    """Return the value for TOML, without dict entries that are None, and with paths as text."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
