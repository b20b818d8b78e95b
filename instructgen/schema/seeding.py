"""Random seeds made from a seed and any values: the same on every machine."""

from __future__ import annotations

import hashlib


def digest(seed: int, *parts: object) -> int:
    """A number from a seed and what it is for: the same on every machine and in every process."""
    text = repr((seed, *parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
