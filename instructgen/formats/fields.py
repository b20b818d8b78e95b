"""Reads single fields of a record, such as texts and numbers, and checks them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

# Instruction data does not contain longer texts. One of them would slow down every comparison.
_MAX_CHARACTERS = 2**20
# Lists and objects in a row may be nested this deep.
MAX_DEPTH = 100
_SURROGATE = re.compile("[\ud800-\udfff]")
_TRUE = ("true", "1", "1.0", "yes", "good", "desirable", "positive", "chosen", "thumbs_up")
_FALSE = ("false", "0", "0.0", "-1", "-1.0", "no", "bad", "undesirable", "negative", "rejected",
          "thumbs_down")  # fmt: skip


class RowError(ValueError):
    """Raised if a row cannot be used; the message names the invalid field."""


def text(
    record: Mapping[str, Any], field: str, *, required: bool = True, filled: bool = True
) -> str:
    """Return the text in a field of a record, without blank lines at its beginning and end.

    Spaces at the beginning of the first line are kept, because they may be the indentation of code.

    Args:
        record: the row.
        field: the name of the field.
        required: whether a missing field is an error; if not, a missing field is read as "".
        filled: whether a required field must contain more than white space.

    Raises:
        RowError: the field is not text, is too long or contains NUL, or it is required but missing
            or empty.
    """
    value = record.get(field)
    if value is None:
        if required:
            raise RowError(f'the field "{field}" is missing.')
        return ""
    if not isinstance(value, str):
        raise RowError(f'the field "{field}" is a {type(value).__name__}, not text.')
    value = trimmed(value)
    if required and filled and not value:
        raise RowError(f'the field "{field}" is empty.')
    return checked(value, f'the field "{field}"')


def checked(value: str, subject: str) -> str:
    """Return a text unchanged; raise RowError if it is too long, or not valid Unicode."""
    if len(value) > _MAX_CHARACTERS:
        raise RowError(f"{subject} has more than {_MAX_CHARACTERS:,} characters.")
    if "\0" in value:
        raise RowError(f"{subject} contains a NUL character.")
    if not value.isascii() and _SURROGATE.search(value):
        raise RowError(f"{subject} contains half of a surrogate pair, which is not valid Unicode.")
    return value


def trimmed(value: str) -> str:
    """Return a text without blank lines at its beginning and end; other white space is kept."""
    content = value.rstrip()
    if not content:
        return ""
    last_line = value[len(content) :].split("\n")[0].rstrip("\r")
    first = content.rfind("\n", 0, len(content) - len(content.lstrip())) + 1
    return content[first:] + last_line


def word(record: Mapping[str, Any], field: str) -> str:
    """Return a short text such as a category, without white space around it; "" if there is none.

    A value of another type is ignored, because a row is usable without it.
    """
    value = record.get(field)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    try:
        return checked(value.strip(), "the field") if isinstance(value, str) else ""
    except RowError:
        return ""


def number(record: Mapping[str, Any], field: str) -> float | None:
    """Return the number in a field of a record, or None if the field is missing, NaN or infinite.

    Raises:
        RowError: the field is not a number, or is too large.
    """
    value = record.get(field)
    if value is None:
        return None
    if isinstance(value, str):
        # The cells of a CSV file are text.
        value = _parsed_number(value)
        if value is None:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(f'the field "{field}" is a {type(value).__name__}, not a number.')
    try:
        value = float(value)
    except OverflowError:
        raise RowError(f'the number in the field "{field}" is too large.') from None
    # Parquet files use NaN for missing values.
    return value if math.isfinite(value) else None


def _parsed_number(text: str) -> float | str | None:
    """Return the number that a text states, None for an empty text, or else the text."""
    try:
        return float(text) if text.strip() else None
    except ValueError:
        return text


def truth(value: Any) -> bool | None:
    """Return the truth value that ``true``, ``1``, ``0.0``, "bad" and so on state, or None."""
    if isinstance(value, bool):
        return value
    known = str(value).strip().lower() if isinstance(value, int | float | str) else ""
    return True if known in _TRUE else False if known in _FALSE else None
