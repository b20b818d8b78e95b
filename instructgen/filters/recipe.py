"""Reads the filters of a recipe from its TOML tables ``[[filters]]``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgen.config import build, check_tables, named, read_tables, recipe_path
from instructgen.errors import ConfigError
from instructgen.filters import Filter, ScoringFilter
from instructgen.plugins import find

# The tables that a recipe may have. Only `filters` is used here; the others are for generation.
TABLES = ("generate", "method", "engine", "judge", "filters")


def load_filters(recipe: str) -> tuple[Filter, ...]:
    """Return the filters of a recipe, in order; other tables of the recipe are ignored.

    Args:
        recipe: the name of an included recipe, or the path of a TOML file.

    Raises:
        ConfigError: the file or a key is invalid; the message has one line per invalid key.
    """
    path = recipe_path(recipe)
    tables = read_tables(path)
    check_tables(tables, TABLES, path)
    return filters_in(tables, path)


def recorded_filters(filters: Sequence[Filter]) -> list[dict[str, Any]]:
    """Return the name and options of each filter as a dict, for the provenance of a dataset."""
    return [named(f) for f in filters]


def filters_in(tables: dict[str, Any], path: Path) -> tuple[Filter, ...]:
    """Return the filters in the parsed TOML tables of a recipe, in order.

    Raises:
        ConfigError: a filter or one of its options is unknown, or a value is invalid.
    """
    entries = tables.get("filters", [])
    if not isinstance(entries, list) or not all(isinstance(f, dict) for f in entries):
        raise ConfigError(
            f'{path}: "filters" is not a list of TOML tables.',
            "Begin each filter with the line [[filters]].",
        )
    filters = []
    for number, values in enumerate(entries, start=1):
        name = values.get("name")
        if not isinstance(name, str):
            raise ConfigError(f'{path}: filters {number}: "name" is missing.', "Add a filter name.")
        rest = {k: v for k, v in values.items() if k != "name"}
        filters.append(build(find("filters", name), rest, path, f"filters {number} ({name})"))
    names = [f.score_name for f in filters if isinstance(f, ScoringFilter)]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(
            f"{path}: two filters have the same score, {repeated}.",
            "Keep one of them; it may have both bounds.",
        )
    return tuple(filters)
