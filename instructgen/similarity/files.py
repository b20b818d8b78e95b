"""Indexes on disk: one file of arrays, mapped into memory when it is opened.

The kind of the index on the first line, its settings as JSON on the second,
then the arrays, each at a multiple of 64 bytes.
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
    """Write an index so that its name always stands for a whole file.

    Raises:
        OSError: the disk refuses; a file that was there is as it was.
    """
    header = {"settings": settings, "arrays": [[a.dtype.str, a.shape] for a in arrays]}
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(f"instructgen {kind}\n{json.dumps(header)}\n".encode())
        for array in arrays:
            file.write(b"\0" * (-file.tell() % _ALIGNED))
            array.tofile(file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read(path: str | Path, kind: str) -> tuple[dict[str, Any], list[Array]]:
    """Settings and arrays of an index; what is written into them does not change the file.

    Raises:
        InputError: the file is no index of this kind, or not whole.
        OSError: it cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        if file.readline(200) != f"instructgen {kind}\n".encode():
            raise InputError(f"no {kind}.", path=path, hint="Check the path.")
        try:
            header = json.loads(file.readline())
            settings = dict(header["settings"])
            kinds = [(np.dtype(name), tuple(shape)) for name, shape in header["arrays"]]
            counts = [int(np.prod(shape)) for _, shape in kinds]
        except (ValueError, TypeError, KeyError):
            raise InputError("the index is damaged.", path=path, hint="Save it again.") from None
        at = file.tell()
    data = np.memmap(path, np.uint8, mode="c")
    arrays: list[Array] = []
    for (dtype, shape), count in zip(kinds, counts, strict=True):
        at += -at % _ALIGNED
        end = at + count * dtype.itemsize
        if end > len(data):
            raise InputError("the index is cut off.", path=path, hint="Save it again.")
        arrays.append(np.asarray(data[at:end]).view(dtype).reshape(shape))
        at = end
    return settings, arrays
