"""Saves a similarity index (ROUGE-L or MinHash) to one file, and reads it by memory mapping.

The first line of the file names the kind of index. The second line is JSON with the settings of
the index and the data types and shapes of its arrays. The arrays follow, each aligned to 64 bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instructgen.errors import InputError
from instructgen.similarity.blocks import Array

_ALIGNED = 64


def write(path: str | Path, kind: str, settings: dict[str, Any], arrays: Sequence[Array]) -> None:
    """Write an index to a file; replace an existing file only after the new one is complete.

    Raises:
        OSError: the new file cannot be written; an existing file is not changed.
    """
    header = {"settings": settings, "arrays": [[a.dtype.str, a.shape] for a in arrays]}
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    # A link in its place is not followed.
    partial.unlink(missing_ok=True)
    with partial.open("xb") as file:
        file.write(f"instructgen {kind}\n{json.dumps(header)}\n".encode())
        for array in arrays:
            file.write(b"\0" * (-file.tell() % _ALIGNED))
            array.tofile(file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read(path: str | Path, kind: str) -> tuple[dict[str, Any], list[Array]]:
    """Return the settings and arrays of an index. Changes to the arrays do not change the file.

    Raises:
        InputError: the file is not an index of this kind, or is damaged or truncated.
        OSError: the file cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        if file.readline(200) != f"instructgen {kind}\n".encode():
            raise InputError(
                f"the file is not a saved {kind!r}.", path=path, hint="Check the path."
            )
        try:
            header = json.loads(file.readline())
            settings = dict(header["settings"])
            kinds = [(np.dtype(name), tuple(shape)) for name, shape in header["arrays"]]
            counts = [int(np.prod(shape)) for _, shape in kinds]
        except (ValueError, TypeError, KeyError):
            hint = "Save the index again."
            raise InputError("the header of the file is damaged.", path=path, hint=hint) from None
        start = file.tell()
    data = np.memmap(path, np.uint8, mode="c")
    arrays: list[Array] = []
    for (dtype, shape), count in zip(kinds, counts, strict=True):
        start += -start % _ALIGNED
        end = start + count * dtype.itemsize
        if end > len(data):
            raise InputError("the file is truncated.", path=path, hint="Save the index again.")
        arrays.append(np.asarray(data[start:end]).view(dtype).reshape(shape))
        start = end
    return settings, arrays
