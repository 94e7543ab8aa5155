"""Bounded memory: the values of runs beyond a limit lie in a scratch file (``max_memory=``).

limits      what a limit is and how it is written; `limited`, within which it holds
budget      what is held, which values go first, the thread that writes them
scratch     the file that they go to
values      `Values`: the mapping that a run is recorded into
recalled    `Recalled`: what was dropped, and is made again if somebody asks for it
"""

from __future__ import annotations

from crosscheck.memory.limits import (
    is_limited,
    limited,
    new_values,
    parse_bytes,
    portions,
    spilled,
    within_limit,
)
from crosscheck.memory.recalled import Recalled
from crosscheck.memory.values import Overlaid, Values, shape_of

__all__ = [
    "Overlaid",
    "Recalled",
    "Values",
    "is_limited",
    "limited",
    "new_values",
    "parse_bytes",
    "shape_of",
    "spilled",
    "portions",
    "within_limit",
]
