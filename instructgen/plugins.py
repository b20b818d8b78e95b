"""Finds filters, sources, engines and methods by name.

One class per file: the built-in ones are the files of their package, and an
installed package adds more through the entry-point group
``instructgen.filters`` (or ``.sources``, ``.engines``, ``.methods``). Names in a
recipe are looked up here and nowhere else, so a recipe cannot name code.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

from instructgen.errors import ConfigError

T = TypeVar("T")


def classes(group: str, base: type[T]) -> dict[str, type[T]]:
    """Every class of a group by its ``name``, in the order of the names.

    Args:
        group: ``filters``, ``sources``, ``engines`` or ``methods``.
        base: what the classes inherit from.
    """
    return _classes(group, base)


def find(group: str, base: type[T], name: str) -> type[T]:
    """The class called ``name``.

    Raises:
        ConfigError: there is none; the message suggests the nearest name.
    """
    known = _classes(group, base)
    if name in known:
        return known[name]
    raise ConfigError(f"{name!r} is none of the {group}.", suggest(name, list(known)))


def suggest(name: str, known: list[str]) -> str:
    """A hint for a mistyped name: the nearest known one, and all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return (f"Did you mean {near[0]}? " if near else "") + f"Known: {', '.join(sorted(known))}."


@cache
def _classes(group: str, base: Any) -> dict[str, Any]:
    package = importlib.import_module(f"instructgen.{group}")
    modules = [
        importlib.import_module(f"{package.__name__}.{m.name}")
        for m in pkgutil.iter_modules(package.__path__)
    ]
    found = [c for module in modules for c in vars(module).values() if _is_one(c, base, module.__name__)]
    found += [point.load() for point in entry_points(group=f"instructgen.{group}")]
    return {c.name: c for c in sorted(found, key=lambda c: c.name)}


def _is_one(value: Any, base: Any, module: str) -> bool:
    return isinstance(value, type) and issubclass(value, base) and value.__module__ == module and hasattr(value, "name")
