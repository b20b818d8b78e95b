"""Derives random seeds from a base seed and other values. They are equal on all machines."""

from __future__ import annotations

import hashlib


def digest(seed: int, *parts: object) -> int:
    """Return a 64-bit integer derived from the arguments, the same in every process."""
    text = repr((seed, *parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
