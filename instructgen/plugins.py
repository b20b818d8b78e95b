"""Finds plug-ins by name: filters, formats, engines, methods, verifiers and evaluation suites.

For each group, such as filters, a package of instructgen contains the built-in plug-ins. Installed
packages can add plug-ins through an entry-point group, such as ``instructgen.filters``. The names
in a recipe are looked up only among the known plug-ins, so a recipe cannot run any other code.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NamedTuple

from instructgen.errors import ConfigError, first_line
from instructgen.printable import printable

# By group: the package of the built-in plug-ins, and their base class.
_GROUPS = {
    "filters": ("instructgen.filters", "Filter"),
    "sources": ("instructgen.formats", "Format"),
    "readers": ("instructgen.documents", "DocumentFormat"),
    "engines": ("instructgen.engines", "Engine"),
    "environments": ("instructgen.environments", "Environment"),
    "methods": ("instructgen.generation.methods", "Method"),
    "verifiers": ("instructgen.verifiers", "Verifier"),
    "suites": ("instructgen.evaluation.suites", "Suite"),
}


class _PluginFile(NamedTuple):
    """The content digest and the plug-in classes of a file at the time when it was loaded."""

    digest: str
    classes: tuple[Any, ...]


# The files that the user loaded, in order.
_FROM_FILES: dict[Path, _PluginFile] = {}
# The installed package (name and version) that added a plug-in, by its class.
_ADDED_BY: dict[Any, dict[str, str]] = {}


@cache
def classes(group: str) -> dict[str, Any]:
    """Return the plug-in classes of a group as a dict keyed by their ``name``, sorted by name.

    Args:
        group: the group, such as ``filters``; formats are in the group ``sources``.

    Raises:
        ConfigError: if a class of an installed package cannot be loaded, or if two classes have
            the same name.
    """
    name, base_name = _GROUPS[group]
    package = importlib.import_module(name)
    base = getattr(package, base_name)
    modules = [
        importlib.import_module(f"{package.__name__}.{m.name}")
        for m in pkgutil.iter_modules(package.__path__)
    ]
    members: list[Any] = [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, base)
        and value.__module__ == module.__name__
    ]
    members += (_installed(p, base) for p in entry_points(group=f"instructgen.{group}"))
    members += (c for f in _FROM_FILES.values() for c in f.classes if issubclass(c, base))
    by_name: dict[str, Any] = {}
    for cls in members:
        other = by_name.setdefault(cls.name, cls)
        if other is not cls:
            raise ConfigError(
                f"{other.__module__} and {cls.__module__} both add {cls.name!r} to the {group}.",
                "Rename or remove one of the two.",
            )
    return dict(sorted(by_name.items()))


def load_plugin(file: str | Path) -> tuple[Any, ...]:
    """Load the plug-ins in a Python file, such as filters, formats and engines.

    The file is executed. For security, only the user can choose the file, with ``--plugin`` on the
    command line or by calling this function. Recipes and pipelines cannot load a plug-in file,
    because their author may be somebody else.

    Args:
        file: the path of a Python file.

    Returns:
        The plug-in classes that the file defines.

    Raises:
        ConfigError: the file does not exist, fails when it is executed, or defines no plug-in.
    """
    path = Path(file).expanduser().resolve()
    if not path.is_file() or path.suffix != ".py":
        raise ConfigError(
            f"--plugin={file}: no .py file has this path.", "Check the path and its extension."
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    earlier = _FROM_FILES.get(path)
    if earlier is not None and earlier.digest == digest:
        return earlier.classes
    added = _executed(file, path)
    _FROM_FILES[path] = _PluginFile(digest, added)
    _ADDED_BY.update({cls: {"file": printable(path.name)} for cls in added})
    classes.cache_clear()
    try:
        for group in _GROUPS:
            classes(group)
    except ConfigError:
        # A name that is in use would make every later search of the group fail.
        del _FROM_FILES[path]
        classes.cache_clear()
        raise
    return added


class _SourceLoader(SourceFileLoader):
    """Loads a module without Python's cache.

    The cache would return the code of another source with the same size, if it was written in the
    same second, so that the digest of a plug-in would be that of code that did not run.
    """

    def path_stats(self, path: Any) -> Mapping[str, Any]:
        raise OSError  # as for a file system without times


def _executed(file: str | Path, path: Path) -> tuple[Any, ...]:
    """Execute a plug-in file and return the classes that it defines."""
    place = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    name = f"instructgen_plugin_{path.stem}_{place}"
    loader = _SourceLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None and spec.loader is not None  # its name ends in .py
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pydantic look up the module of a class.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        # The user's own code can raise any exception.
        raise ConfigError(
            f"--plugin={file} cannot be loaded ({type(error).__name__}: {first_line(error)}).",
            "Correct the error in the file.",
        ) from error
    bases = tuple(getattr(importlib.import_module(name), base) for name, base in _GROUPS.values())
    added = tuple(
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, bases)
        and value.__module__ == module.__name__
        and isinstance(getattr(value, "name", None), str)
    )
    if not added:
        raise ConfigError(
            f"--plugin={file} contains no filter, format, engine, method, verifier or suite.",
            "Define a subclass with the attribute name, such as class MyFilter(Filter).",
        )
    return added


def loaded_files() -> tuple[Path, ...]:
    """Return the paths of the loaded plug-in files, so that child processes can load them too."""
    return tuple(_FROM_FILES)


def _installed(point: EntryPoint, base: Any) -> Any:
    """Return the class that an installed package adds, after checking that it is a plug-in."""
    try:
        cls, dist = point.load(), point.dist
        added_by = {} if dist is None else {"package": dist.name, "version": dist.version}
    except (Exception, SystemExit) as error:
        # The code of another package can raise any exception when it is imported, and the text
        # about the package can be damaged.
        raise ConfigError(
            f"the plug-in {point.value} of an installed package cannot be loaded "
            f"({type(error).__name__}: {first_line(error)}).",
            "Repair or uninstall that package.",
        ) from error
    is_plugin = isinstance(cls, type) and issubclass(cls, base)
    if not is_plugin or not isinstance(getattr(cls, "name", None), str):
        raise ConfigError(
            f"the plug-in {point.value} of an installed package is not a subclass of "
            f"{base.__name__} with the attribute name.",
            "Repair or uninstall that package.",
        )
    _ADDED_BY[cls] = {key: str(value or "") for key, value in added_by.items()}
    return cls


def provenance(**plugins: Iterable[Any]) -> dict[str, dict[str, str]]:
    """Return where plug-ins come from: package and version, or file, and a digest of the code.

    Args:
        plugins: the plug-in classes in use. The name of each argument is the group, such as
            ``filters``.

    Returns:
        A dict with an entry for each class that is not part of instructgen. The key is
        ``GROUP.NAME``, and the value has ``package`` and ``version``, or ``file``, and ``sha256``.
    """
    entries = {
        f"{group}.{cls.name}": {**_ADDED_BY.get(cls, {}), "sha256": _code_digest(cls)}
        for group, members in plugins.items()
        for cls in members
        if not cls.__module__.startswith(f"{__package__}.")
    }
    return dict(sorted(entries.items()))


def _code_digest(cls: Any) -> str:
    """Return a digest of the code of a class: all files of its package, or its single file."""
    try:
        file = Path(inspect.getfile(cls))
    except (TypeError, OSError):
        # Defined interactively, without a file.
        return ""
    loaded = _FROM_FILES.get(file.resolve())
    if loaded is not None:
        return loaded.digest
    if not file.is_file():
        # Imported from a zip archive.
        return hashlib.sha256(inspect.getsource(cls).encode()).hexdigest()[:16]
    names = cls.__module__.split(".")
    above = len(names) - (1 if file.name == "__init__.py" else 2)
    root = file.parents[above] if above >= 0 else file
    if root.name != names[0]:
        # The module's name does not match its path.
        root = file
    digest = hashlib.sha256()
    for path in sorted(_files(root)):
        digest.update(f"{path.relative_to(root.parent)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _files(root: Path) -> Iterator[Path]:
    """Yield ``root`` if it is a file, or all files below it, also through symbolic links."""
    if root.is_file():
        yield root
    seen: set[str] = set()
    for folder, inner, names in os.walk(root, followlinks=True):
        real_path = os.path.realpath(folder)
        if real_path in seen or Path(folder).name == "__pycache__":
            inner.clear()
            continue
        seen.add(real_path)
        yield from (path for name in names if (path := Path(folder, name)).is_file())


def find(group: str, name: str) -> Any:
    """Return the plug-in class with this name in a group.

    Raises:
        ConfigError: if the name is unknown; the message suggests the most similar name.
    """
    known = classes(group)
    if name in known:
        return known[name]
    raise ConfigError(
        f"{name!r} is not one of the {'formats' if group == 'sources' else group}.",
        f"{suggest(name, list(known))} To load a Python file that defines it, pass --plugin=FILE.",
    )


def suggest(name: str, known: list[str]) -> str:
    """Return a hint for an unknown name: the most similar known name, and all known names."""
    similar = difflib.get_close_matches(name, known, n=1)
    return (
        f"Did you mean {similar[0]}? " if similar else ""
    ) + f"Known: {', '.join(sorted(known))}."
