"""The filters of a recipe: its list [[filters]]."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgen.config import build, known_tables, named, read_tables, recipe_path
from instructgen.errors import ConfigError
from instructgen.filters import Filter
from instructgen.plugins import find

# The tables of a recipe for generating; of filters alone the others mean nothing.
TABLES = ("generate", "method", "engine", "filters")


def load_filters(recipe: str) -> tuple[Filter, ...]:
    """The filters of a recipe; its tables for generating mean nothing here.

    Args:
        recipe: a shipped name, or a TOML file.

    Raises:
        ConfigError: the file or a key is bad; every bad key has its line.
    """
    path = recipe_path(recipe)
    tables = read_tables(path)
    known_tables(tables, TABLES, path)
    return filters_in(tables, path)


def recorded_filters(filters: Sequence[Filter]) -> list[dict[str, Any]]:
    """The filters as plain data: what a dataset that they made is described by."""
    return [named(f) for f in filters]


def filters_in(tables: dict[str, Any], path: Path) -> tuple[Filter, ...]:
    """The filters of a recipe that was read, in order.

    Raises:
        ConfigError: a filter is unknown, or a key or value of it is bad.
    """
    listed = tables.get("filters", [])
    if not isinstance(listed, list) or not all(isinstance(f, dict) for f in listed):
        raise ConfigError(f"{path}: filters: not a list of tables.", "Write [[filters]].")
    made = []
    for number, values in enumerate(listed, start=1):
        name = values.get("name")
        if not isinstance(name, str):
            raise ConfigError(f'{path}: filters {number}: "name" is missing.', "Add it.")
        rest = {k: v for k, v in values.items() if k != "name"}
        made.append(build(find("filters", name), rest, path, f"filters {number} ({name})"))
    return tuple(made)
