"""e_pert: what rounding on the way into a stretch does to what comes out of it.

The oracle is run again with every forced value and every weight moved by a relative amount of the
size of the unit roundoff. Since the values are forced at every aligned site, one run gives the
response of all stretches at once, each to its own inputs.

Equal values move equally: the noise is a hash of the value. Both sides are forced onto the very
same numbers, so an exact tie (two equal maxima in a pooling window) is a tie for both, and how it
is resolved is part of the function, not of its rounding.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.arrays import is_float
from crosscheck.compare import compare
from crosscheck.comparisons import Item, gradient_of, value_of
from crosscheck.errors import SideFailed
from crosscheck.judging import Judge, Perturbation
from crosscheck.noise import unit_roundoff
from crosscheck.observers import Comparer, Forcer, Key, chain
from crosscheck.run import Runner

__all__ = ["DRAWS", "measure"]

DRAWS = 4


_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def _noise(values: np.ndarray, seed: int) -> np.ndarray:
    """Pseudo-random, mean 0 and variance 1, a function of each float64 value and the seed.

    The finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014); four of its 16-bit pieces add
    up to something close enough to normal.
    """
    salt = (seed * int(_ODD) + 1) % 2**64
    bits = np.ascontiguousarray(values).view(np.uint64) ^ np.uint64(salt)
    with np.errstate(over="ignore"):
        bits = (bits ^ (bits >> np.uint64(30))) * _MIX[0]
        bits = (bits ^ (bits >> np.uint64(27))) * _MIX[1]
    bits = bits ^ (bits >> np.uint64(31))
    low = np.uint64(0xFFFF)
    total = sum(((bits >> np.uint64(shift)) & low for shift in (16, 32, 48)), bits & low)
    return (total.astype(np.float64) / 65535.0 - 2.0) * math.sqrt(3.0)


class _Moved(Mapping[Key, np.ndarray]):
    """Forced values, each moved by a seeded relative perturbation of size ``unit``."""

    def __init__(self, values: Mapping[Key, np.ndarray], seed: int, unit: float) -> None:
        self._values, self._seed, self._unit = values, seed, unit

    def __getitem__(self, key: Key) -> np.ndarray:
        return self.move(self._values[key], "/".join(key))

    def move(self, value: np.ndarray, name: str) -> np.ndarray:
        """``value · (1 + u·ξ)`` in float64; integers stay."""
        if not is_float(value):
            return value
        wide = value.astype(np.float64)
        seed = zlib.crc32(name.encode()) + (self._seed << 32)
        return wide * (1.0 + self._unit * _noise(wide, seed))

    def __iter__(self) -> Iterator[Key]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def measure(
    reference: Runner,
    judge: Judge,
    items: Sequence[Item],
    forced: Mapping[Key, np.ndarray],
    *,
    parameters: Sequence[Parameter],
    seed: int,
    draws: int = DRAWS,
) -> dict[Item, Perturbation]:
    """RMS response over ``draws`` perturbed oracle runs, for each of ``items``.

    Without a float64 oracle the reference's own precision takes its place.
    """
    wide = judge.oracle is not None
    base = judge.oracle if judge.oracle is not None else judge.reference
    unit = max((unit_roundoff(v.dtype) for v in judge.reference.values.values()), default=0.0)
    sums = {item: [0.0, 0.0] for item in items}
    seen = [item for item in items if item.phase in ("forward", "backward")]
    wanted = {key for item in seen for key in item.reference_keys}
    for draw in range(draws):
        moved = _Moved(forced, seed * draws + draw, unit)
        overrides = {p.name: moved.move(p.value, p.name) for p in parameters if is_float(p.value)}
        comparer = Comparer(lambda key, value: compare(value, base.values[key]), wanted)
        try:
            info = reference.run(chain(comparer, Forcer(moved)), float64=wide, overrides=overrides)
        except SideFailed:
            return {}  # ran unperturbed, fails perturbed: leave the floor as it is
        for item in items:
            if item.phase in ("forward", "backward"):
                found = [comparer.results.get(key) for key in item.reference_keys]
            else:
                now = gradient_of(item, info.parameter_gradients | info.buffers, side="reference")  # type: ignore[operator]
                before = value_of(item, base, side="reference")
                found = [None if now is None or before is None else compare(now, before)]
            for difference in (one for one in found if one is not None):
                sums[item][0] += difference.l2**2  # type: ignore[attr-defined]
                sums[item][1] += difference.maximum**2  # type: ignore[attr-defined]
    return {
        item: Perturbation(math.sqrt(l2 / draws), math.sqrt(top / draws))
        for item, (l2, top) in sums.items()
    }
