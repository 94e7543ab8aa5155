"""Memory that is free, but that the C library has not given back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

__all__ = ["trim_heap"]


def trim_heap() -> None:
    """Give it back, where the C library is glibc; elsewhere there is nothing to do.

    Arrays of some hundred kilobytes are cut out of the heap. Freed between others that live on they
    would stay with the process, and a limit would be no limit.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # no shared C library, or another one
        return None
    return found
