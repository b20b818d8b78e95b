"""Derives random seeds from a base seed and other values; equal inputs give equal seeds."""

from __future__ import annotations

import hashlib


def digest(seed: int, *parts: object) -> int:
    """Return a 64-bit random seed; the same arguments give the same seed in every process."""
    text = repr((seed, *parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
