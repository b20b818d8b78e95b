"""Builds HTML and SVG elements. Only this module turns text into markup; it escapes all text.

Names of elements and attributes come from code, never from data. Characters that control a
terminal or change the reading direction are replaced; all other text stays unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import NamedTuple

from instructgen.printable import printable

_EMPTY = frozenset({"meta", "link", "br", "hr"})


class Markup(NamedTuple):
    """HTML or SVG text that is already escaped; create it only with `element` and `join_markup`."""

    text: str


def element(tag: str, /, *children: Markup | str, **attributes: str | float | None) -> Markup:
    """Return an HTML or SVG element; strings in its children and attributes are escaped.

    Args:
        tag: the name of the element.
        children: markup or text, in order.
        attributes: attributes by name. A trailing ``_`` in a name is omitted, and every other ``_``
            becomes ``-``: ``class_`` means ``class``, and ``text_anchor`` means ``text-anchor``.
            Attributes that are None are omitted. Floats are rounded to two decimals.
    """
    attribute_text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if tag in _EMPTY:
        return Markup(f"<{tag}{attribute_text}>")
    return Markup(f"<{tag}{attribute_text}>{join_markup(children).text}</{tag}>")


def join_markup(nodes: Iterable[Markup | str]) -> Markup:
    """Join markup and strings into one piece of markup; strings are escaped."""
    return Markup("".join(n.text if isinstance(n, Markup) else shown(n) for n in nodes))


def shown(text: str) -> str:
    """Return text escaped for HTML, with control characters replaced."""
    return escape(printable(text))


def _value(value: str | float) -> str:
    if isinstance(value, str):
        return shown(value)
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
