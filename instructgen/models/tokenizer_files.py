"""Checks the tokenizer of a model before it is used: its normalizer is a program, too.

A damaged or hostile tokenizer.json can end the process that reads it, for example if its normalizer
doubles a text until the memory is full, or it can fail for every text with an unknown character.
So a process with limits uses it first.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from instructgen.errors import ConfigError
from instructgen.models.limited import succeeds

_SECONDS, _MEMORY = 20, 2**31
_PROGRAM = r"""
import os, string, sys
os.environ["TOKENIZERS_PARALLELISM"] = "false"
from tokenizers import Tokenizer
try:
    tokenizer = Tokenizer.from_buffer(open(os.fsdecode(sys.stdin.buffer.read()), "rb").read())
except MemoryError:
    sys.exit(1)
except Exception:
    # Whoever loads the tokenizer reports what is wrong with it.
    sys.exit(0)
# The last one is a character that no vocabulary contains.
tokenizer.encode_batch([string.printable, "Été, 日本語, हिन्दी, العربية 🙂", "\ue000"])
"""


def check_tokenizer(folder: Path, name: str) -> None:
    """Read each tokenizer file in a folder and split a text with it, in a process with limits.

    Args:
        folder: the folder of the model.
        name: the name of the model, for the message.

    Raises:
        ConfigError: a tokenizer fails, or needs too much time or memory.
    """
    for file in sorted(path for path in folder.glob("tokenizer*.json") if path.is_file()):
        status = file.stat()
        if not _splits(file, status.st_mtime_ns, status.st_size):
            raise ConfigError(
                f"{name}: {file.name} cannot split a short text with unknown characters into "
                f"tokens within {_SECONDS} seconds and {_MEMORY >> 30} GiB.",
                "Use another model, or correct its tokenizer.",
            )


@lru_cache(maxsize=64)
def _splits(file: Path, _changed: int, _size: int) -> bool:
    return succeeds(_PROGRAM, os.fsencode(file.resolve()), seconds=_SECONDS, memory=_MEMORY)
