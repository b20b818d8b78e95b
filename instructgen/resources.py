"""Finds the data files of instructgen: seed tasks, filter recipes and word lists.

In a checkout, these files are in the top-level folders seeds/ and filters/. In an installed wheel,
they are inside the package. Models that instructgen converts to another file format are stored in
the cache folder of the user.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from instructgen.errors import ConfigError
from instructgen.plugins import suggest


def shipped(folder: str) -> Path:
    """Return the path of the folder ``seeds`` or ``filters`` that comes with instructgen."""
    package = Path(__file__).parent
    inside = package / "data" / folder
    return inside if inside.is_dir() else package.parent / folder


def model_cache() -> Path:
    """Return the folder for converted models, in $INSTRUCTGEN_CACHE or the user's cache folder."""
    root = os.environ.get("INSTRUCTGEN_CACHE")
    if root:
        return Path(root) / "models"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "instructgen" / "models"


@cache
def word_list(name: str) -> tuple[str, ...]:
    """Return the words in filters/words/NAME.txt, which has one word per line and # comments.

    Raises:
        ConfigError: if a word list with this name does not exist.
    """
    lists = {p.stem: p for p in (shipped("filters") / "words").glob("*.txt")}
    if name not in lists:
        raise ConfigError(f"unknown word list: {name!r}.", suggest(name, list(lists)))
    lines = lists[name].read_text(encoding="utf-8").splitlines()
    return tuple(w for line in lines if (w := line.split("#")[0].strip()))
