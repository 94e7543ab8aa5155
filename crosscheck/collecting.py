"""How often Python's garbage collector looks around while a check runs."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = ["seldom"]

TIMES = 50
"""A check of a deep model makes objects by the hundred thousand, nearly none of them in cycles, and
looks at each of them would take a tenth of its time. The arrays that garbage may hold until it is
found are those of so many objects more."""
LONGER, SHARE, MOST = 8, 0.01, 1 << 30
"""While no more than that share of the new objects is garbage, it waits so many times as long."""


_lock = threading.Lock()
_checks = 0  # under way, in whatever threads
_before = (0, 0, 0)


@contextmanager
def seldom() -> Iterator[None]:
    """Within it, the collector waits for `TIMES` as many new objects, and ever longer while it
    finds nothing; where the caller has turned it off it stays off."""
    global _checks, _before
    with _lock:
        if _checks == 0:
            _before = gc.get_threshold()
            gc.set_threshold(TIMES * _before[0], *_before[1:])
            gc.callbacks.append(_adjust)
        _checks += 1
    try:
        yield
    finally:
        with _lock:
            _checks -= 1
            if _checks == 0:
                gc.callbacks.remove(_adjust)
                gc.set_threshold(*_before)


def _adjust(phase: str, info: Mapping[str, Any]) -> None:
    """Called by the collector, which any allocation may start: takes no lock."""
    if phase == "stop":
        waited, first = gc.get_threshold()[0], TIMES * _before[0]
        needless = info["collected"] <= SHARE * waited
        gc.set_threshold(min(LONGER * waited, MOST) if needless else first, *_before[1:])
