"""Reads and writes dataclasses as JSON files; a file with other contents is damaged."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import orjson

from instructgen.errors import DamagedFileError

# Package, version and digest of plug-in code, by GROUP.NAME.
Plugins = dict[str, dict[str, str]]


class JsonRecord:
    """Base class of dataclasses that are kept as JSON files."""

    __slots__ = ()

    @classmethod
    def from_json(cls, data: bytes, path: Path) -> Self:
        """Read a record.

        Args:
            data: the JSON text. Keys that the class does not have are ignored.
            path: the file it came from, for the message.

        Raises:
            DamagedFileError: the text is not JSON, a key is missing, or a value has another
                type.
        """
        from pydantic import ValidationError

        try:
            record: Self = _adapter(cls).validate_json(data)  # type: ignore[arg-type]
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            message = f"is damaged ({f'{where}: ' if where else ''}{first['msg']})."
            raise DamagedFileError(message, path=path) from None
        return record

    @classmethod
    def of(cls, values: Any, path: Path) -> Self:
        """Read a record from parsed JSON; see `from_json`."""
        return cls.from_json(orjson.dumps(values), path)

    def to_dict(self) -> dict[str, Any]:
        """The record as plain data; absent values (None) included."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    def to_json(self) -> bytes:
        """The record as indented JSON text."""
        return orjson.dumps(self, option=orjson.OPT_INDENT_2)


@dataclass(frozen=True, slots=True)
class InputRef(JsonRecord):
    """A file, dataset or model that something was made from, by name and digest.

    ``split`` is that of a dataset on the Hub, which has no digest here.
    """

    name: str
    sha256: str = ""
    split: str = ""


@cache
def _adapter(cls: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)
