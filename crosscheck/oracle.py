"""Stage 4, run: the oracle, which is the reference in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from crosscheck.errors import SideFailed
from crosscheck.observers import Forcer, Key, Recorder
from crosscheck.run import Runner
from crosscheck.trace import Trace, owner

__all__ = ["oracle"]


def oracle(
    reference: Runner,
    forced: Mapping[Key, np.ndarray] | None = None,
    *,
    needless: frozenset[str] = frozenset(),
    wanted: frozenset[Key] | None = None,
) -> Trace | None:
    """The reference in float64, free or forced; None if it does not run in float64.

    Args:
        needless: calls of layers whose forced values will do; the trace has nothing of them.
        wanted: the values that the trace shall have; None: all.
    """
    if not reference.adapter.capabilities.float64:
        return None
    observers = () if forced is None else (Forcer(forced, needless=needless),)
    try:
        recorder = None if wanted is None else Recorder(keys=wanted)
        trace = reference.record(
            *observers, float64=True, recorder=recorder, passive=forced is None
        )
    except SideFailed:
        return None  # it ran in its own precision: what fails is float64 (fused kernels, casts)
    if not needless:
        return trace
    computed = {
        (kind, site): value
        for (kind, site), value in trace.values.items()
        if kind not in ("activation", "input_cotangent") or owner(site) not in needless
    }
    return replace(trace, values=computed)
