"""numba as the kernels use it: compiled once and kept on disk where that can be."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

try:
    from numba import config, njit
except ImportError:
    njit = None

COMPILED = njit is not None and not config.DISABLE_JIT


def jit(function):
    """The function compiled, or as it is without numba."""
    if njit is None:
        return function
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:
        # No folder may be written to, as in a read-only container: numba
        # refuses to cache, so it compiles at every start.
        return njit(nogil=True)(function)
