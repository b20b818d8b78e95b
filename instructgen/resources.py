"""Finds the data that travels with the package: seeds, filter recipes, word lists.

In a checkout they are the top folders seeds/ and filters/; in an installed
wheel they lie inside the package. Models that are made from packaged ones lie
in the user's cache.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from instructgen.errors import ConfigError
from instructgen.plugins import suggest


def shipped(folder: str) -> Path:
    """The folder ``seeds`` or ``filters`` as shipped."""
    package = Path(__file__).parent
    inside = package / "data" / folder
    return inside if inside.is_dir() else package.parent / folder


def model_cache() -> Path:
    """Where models are kept that were made here: in INSTRUCTGEN_CACHE, or in the user's cache."""
    root = os.environ.get("INSTRUCTGEN_CACHE")
    if root:
        return Path(root) / "models"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "instructgen" / "models"


@cache
def word_list(name: str) -> tuple[str, ...]:
    """The words of filters/words/NAME.txt: one a line, # begins a comment.

    Raises:
        ConfigError: there is no such list.
    """
    lists = {p.stem: p for p in (shipped("filters") / "words").glob("*.txt")}
    if name not in lists:
        raise ConfigError(f"{name!r} is none of the word lists.", suggest(name, list(lists)))
    lines = lists[name].read_text(encoding="utf-8").splitlines()
    return tuple(w for line in lines if (w := line.split("#")[0].strip()))
