"""Compile functions with numba if it is installed, and cache them on disk if possible."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

try:
    from numba import config, njit
except ImportError:
    njit = None

COMPILED = njit is not None and not config.DISABLE_JIT


def jit(function):
    """Compile a function with numba; return it unchanged if numba is not installed."""
    if njit is None:
        return function
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:
        # numba raises this when no cache folder is writable, as in a read-only container.
        # The function is then compiled at every start.
        return njit(nogil=True)(function)
