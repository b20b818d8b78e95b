"""HTML and SVG as a tree: the one place where text becomes markup, always escaped.

Elements and attributes are named in code alone, never by data. Text keeps its characters
but for those that would steer a terminal or turn the reading direction.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import NamedTuple

from instructgen.printable import printable

_EMPTY = frozenset({"meta", "link", "br", "hr"})


class Markup(NamedTuple):
    """Finished markup; only `element` and `together` make it."""

    text: str


def element(tag: str, /, *children: Markup | str, **attributes: str | float | None) -> Markup:
    """An element with attributes and children; strings among these are escaped.

    Args:
        tag: of the element.
        children: in order.
        attributes: a trailing ``_`` is cut and others become ``-``, as in ``class_`` and
            ``text_anchor``; None leaves one out. Numbers are written short.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if tag in _EMPTY:
        return Markup(f"<{tag}{given}>")
    return Markup(f"<{tag}{given}>{together(children).text}</{tag}>")


def together(nodes: Iterable[Markup | str]) -> Markup:
    """Several nodes as one."""
    return Markup("".join(n.text if isinstance(n, Markup) else shown(n) for n in nodes))


def shown(text: str) -> str:
    """Text as it stands in the page's source."""
    return escape(printable(text))


def _value(value: str | float) -> str:
    if isinstance(value, str):
        return shown(value)
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
