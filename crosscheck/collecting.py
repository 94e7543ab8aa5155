"""How often Python's garbage collector looks around while a check runs."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["seldom"]

TIMES = 50
"""A check of a deep model makes objects by the hundred thousand, nearly none of them in cycles, and
each full collection visits all that a framework holds: a fifth of the time went there. The arrays
that garbage may hold until it is found are those of so many objects more."""


_lock = threading.Lock()
_checks = 0  # under way, in whatever threads
_before = (0, 0, 0)


@contextmanager
def seldom() -> Iterator[None]:
    """Within it, the collector waits for `TIMES` as many new objects; where the caller has turned
    it off it stays off."""
    global _checks, _before
    with _lock:
        if _checks == 0:
            _before = gc.get_threshold()
            gc.set_threshold(TIMES * _before[0], *_before[1:])
        _checks += 1
    try:
        yield
    finally:
        with _lock:
            _checks -= 1
            if _checks == 0:
                gc.set_threshold(*_before)
