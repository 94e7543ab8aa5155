"""The flags that attention is given: which keys a query may see."""

from __future__ import annotations

import numpy as np

from crosscheck.explain.evidence import Evidence
from crosscheck.explain.hidden import HIDDEN

__all__ = ["dropped", "flags_in"]


def flags_in(e: Evidence) -> list[np.ndarray]:
    """The flags among a layer's inputs: booleans, and what is added to scores, 0 for what is seen
    and minus infinity (or another large number) for what is hidden; there True hides."""
    found = []
    for x in e.inputs:
        if x.ndim not in (2, 3, 4) or not x.size:
            continue
        if x.dtype.kind == "b":
            found.append(x)
        elif x.dtype.kind == "f" and np.min(x) <= HIDDEN and np.all((x == 0.0) | (x <= HIDDEN)):
            found.append(x <= HIDDEN)
    return found


def dropped(e: Evidence, shape: tuple[int, ...], *, true_drops: bool, unread: int) -> np.ndarray:
    """Which of scores (B, H, T, S) all flags but number ``unread`` hide."""
    hidden = np.zeros(shape, dtype=bool)
    for i, flags in enumerate(flags_in(e)):
        if i != unread:
            hidden |= _spread(flags, shape) == true_drops
    return hidden


def _spread(flags: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Flags so that they spread over scores."""
    if flags.ndim == 2 and flags.shape != shape[-2:]:
        return flags[:, None, None, :]  # of each example's keys
    if flags.ndim == 3:
        return flags.reshape(shape[0], -1, *shape[-2:])
    return flags
