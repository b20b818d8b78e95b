"""Finds filters, sources, engines, methods, verifiers and suites by name.

One class per file: the built-in ones are the files of their package, and an
installed package adds more through the entry-point group
``instructgen.filters`` (or that of another group). Names in a recipe
are looked up here and nowhere else, so a recipe cannot name code.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import os
import pkgutil
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from instructgen.errors import ConfigError, first_line

# The package that holds the built-in parts of a group, and the class that all are made of.
_GROUPS = {
    "filters": ("instructgen.filters", "Filter"),
    "sources": ("instructgen.formats", "Source"),
    "engines": ("instructgen.engines", "Engine"),
    "methods": ("instructgen.generation.methods", "Method"),
    "verifiers": ("instructgen.verifiers", "Verifier"),
    "suites": ("instructgen.evaluation.suites", "Suite"),
}


# Which distribution added a part, by the part's class.
_ADDED_BY: dict[Any, dict[str, str]] = {}


@cache
def classes(group: str) -> dict[str, Any]:
    """Every class of a group by its ``name``, in the order of the names.

    Args:
        group: such as ``filters``.

    Raises:
        ConfigError: an installed package's part cannot be loaded, or has the name of another.
    """
    name, base_name = _GROUPS[group]
    package = importlib.import_module(name)
    base = getattr(package, base_name)
    modules = [
        importlib.import_module(f"{package.__name__}.{m.name}")
        for m in pkgutil.iter_modules(package.__path__)
    ]
    found: list[Any] = [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, base)
        and value.__module__ == module.__name__
    ]
    found += map(_installed, entry_points(group=f"instructgen.{group}"))
    by_name: dict[str, Any] = {}
    for part in found:
        other = by_name.setdefault(part.name, part)
        if other is not part:
            raise ConfigError(
                f"{other.__module__} and {part.__module__} both add {part.name!r} to the {group}.",
                "Uninstall one of the packages.",
            )
    return dict(sorted(by_name.items()))


def _installed(point: EntryPoint) -> Any:
    try:
        part = point.load()
    except Exception as error:
        # Whatever the code of another package does when it is imported.
        raise ConfigError(
            f"{point.value}, which an installed package adds, cannot be loaded "
            f"({type(error).__name__}: {first_line(error)}).",
            "Mend or uninstall that package.",
        ) from error
    dist = point.dist
    _ADDED_BY[part] = {} if dist is None else {"package": dist.name, "version": dist.version}
    return part


def provenance(**parts: Iterable[Any]) -> dict[str, dict[str, dict[str, str]]]:
    """Return the provenance of plug-in code: package, version and a digest of its files.

    Args:
        parts: the classes of the parts in use, by group, such as ``filters``.

    Returns:
        ``{"plugins": {"GROUP.NAME": {"package", "version", "sha256"}}}`` with one entry for
        each part that another package adds; an empty dictionary if there are none.
    """
    found = {
        f"{group}.{part.name}": {**_ADDED_BY.get(part, {}), "sha256": _code_digest(part)}
        for group, some in parts.items()
        for part in some
        if not part.__module__.startswith(f"{__package__}.")
    }
    return {"plugins": dict(sorted(found.items()))} if found else {}


def _code_digest(part: Any) -> str:
    """Return a digest of all files of the package, or of the single module, of a class."""
    try:
        file = Path(inspect.getfile(part))
    except (TypeError, OSError):
        # Defined interactively, without a file.
        return ""
    if not file.is_file():
        # Imported from a zip archive.
        return hashlib.sha256(inspect.getsource(part).encode()).hexdigest()[:16]
    parts = part.__module__.split(".")
    above = len(parts) - (1 if file.name == "__init__.py" else 2)
    root = file.parents[above] if above >= 0 else file
    if root.name != parts[0]:
        # The module's name does not match its path.
        root = file
    digest = hashlib.sha256()
    for path in sorted(_files(root)):
        digest.update(f"{path.relative_to(root.parent)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _files(root: Path) -> Iterator[Path]:
    """Yield a file, or all files below a folder; symbolic links to folders are followed."""
    if root.is_file():
        yield root
    seen: set[str] = set()
    for folder, inner, names in os.walk(root, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen or Path(folder).name == "__pycache__":
            inner.clear()
            continue
        seen.add(place)
        yield from (path for name in names if (path := Path(folder, name)).is_file())


def find(group: str, name: str) -> Any:
    """The class called ``name``.

    Raises:
        ConfigError: there is none; the message suggests the nearest name.
    """
    known = classes(group)
    if name in known:
        return known[name]
    raise ConfigError(f"{name!r} is none of the {group}.", suggest(name, list(known)))


def suggest(name: str, known: list[str]) -> str:
    """A hint for a mistyped name: the nearest known one, and all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return (f"Did you mean {near[0]}? " if near else "") + f"Known: {', '.join(sorted(known))}."
