"""Converts dataclasses to JSON text and back, and checks that JSON text matches its class."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Self

import orjson

from instructgen.errors import DamagedFileError

# Package, version and digest of plug-in code, by GROUP.NAME.
Plugins = dict[str, dict[str, str]]


class JsonRecord:
    """Base class for dataclasses that are stored as JSON files."""

    __slots__ = ()

    @classmethod
    def from_json(cls, data: bytes, path: Path) -> Self:
        """Create a record from JSON text.

        Args:
            data: the JSON text. Keys that are not fields of the class are ignored.
            path: the file that contains the text, for error messages.

        Raises:
            DamagedFileError: the text is not JSON, a key is missing, or a value has the wrong
                type.
        """
        from pydantic import ValidationError

        try:
            record: Self = _adapter(cls).validate_json(data)  # type: ignore[arg-type]
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            message = f"the file is damaged ({f'{where}: ' if where else ''}{first['msg']})."
            raise DamagedFileError(message, path=path) from None
        return record

    @classmethod
    def of(cls, values: Any, path: Path) -> Self:
        """Create a record from values parsed from JSON; see `from_json`."""
        return cls.from_json(orjson.dumps(values), path)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a dict of JSON values, with lists instead of tuples."""
        values: dict[str, Any] = orjson.loads(orjson.dumps(self))
        return values

    def to_json(self) -> bytes:
        """Return the record as indented JSON text."""
        return orjson.dumps(self, option=orjson.OPT_INDENT_2)


@dataclass(frozen=True, slots=True)
class InputRef(JsonRecord):
    """The name and digest of an input: a file, a dataset or a model.

    ``sha256`` is the digest, or empty for a dataset or model on the Hugging Face Hub. ``split`` is
    the split that was read from a dataset on the Hub.
    """

    name: str
    sha256: str = ""
    split: str = ""


def read_json(data: bytes, path: Path, line: int | None = None) -> Any:
    """Parse JSON text of one of our files.

    Raises:
        DamagedFileError: it is not JSON.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise DamagedFileError(f"the file is damaged ({error}).", path=path, line=line) from None


def checked(cls: Any, values: Any, path: Path, line: int | None = None) -> Any:
    """Create an object of a dataclass from values that were read from one of our files.

    Raises:
        DamagedFileError: a value has the wrong type, or a field is missing or unknown.
    """
    from pydantic import ValidationError

    names = {f.name for f in fields(cls)}
    unknown = values.keys() - names if isinstance(values, dict) else ()
    try:
        if unknown:
            raise KeyError(f"unknown: {min(unknown)}")
        return _adapter(cls).validate_python(values)
    except (KeyError, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedFileError(f"it is not valid ({reason}).", path=path, line=line) from None


@cache
def _adapter(cls: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)
