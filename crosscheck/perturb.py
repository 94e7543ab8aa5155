"""e_pert: what rounding on the way into a stretch does to what comes out of it.

The oracle is run again with every forced value and every weight moved by a relative amount of the
size of the unit roundoff. Since the values are forced at every aligned site, one run gives the
response of all stretches at once, each to its own inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.compare import compare
from crosscheck.comparisons import Item, value_of
from crosscheck.errors import SideFailed
from crosscheck.judging import Judge, Perturbation, is_float
from crosscheck.noise import unit_roundoff
from crosscheck.observers import Comparer, Forcer, Key, chain
from crosscheck.run import Runner

__all__ = ["DRAWS", "measure"]

DRAWS = 4


class _Moved(Mapping[Key, np.ndarray]):
    """Forced values, each moved by a seeded relative perturbation of size ``unit``."""

    def __init__(self, values: Mapping[Key, np.ndarray], seed: int, unit: float) -> None:
        self._values, self._unit = values, unit
        self._random = np.random.Generator(np.random.Philox(seed))

    def __getitem__(self, key: Key) -> np.ndarray:
        return self.move(self._values[key])

    def move(self, value: np.ndarray) -> np.ndarray:
        """``value · (1 + u·ξ)``, ξ standard normal; float64. Integers stay."""
        if not is_float(value):
            return value
        wide = value.astype(np.float64)
        return wide * (1.0 + self._unit * self._random.standard_normal(wide.shape))

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
    wanted = {item.reference_key for item in items if item.phase in ("forward", "backward")}
    for draw in range(draws):
        moved = _Moved(forced, seed * draws + draw, unit)
        overrides = {p.name: moved.move(p.value) for p in parameters if is_float(p.value)}
        comparer = Comparer(lambda key, value: compare(value, base.values[key]), wanted)
        try:
            info = reference.run(
                chain(comparer, Forcer(moved)), float64=wide, overrides=overrides
            )
        except SideFailed:
            return {}  # ran unperturbed, fails perturbed: leave the floor as it is
        for item in items:
            if item.phase in ("forward", "backward"):
                difference = comparer.results.get(item.reference_key)
            else:
                now = (info.parameter_gradients | info.buffers).get(item.reference)  # type: ignore[operator]
                before = value_of(item, base, side="reference")
                difference = None if now is None or before is None else compare(now, before)
            if difference is not None:
                sums[item][0] += difference.l2**2  # type: ignore[attr-defined]
                sums[item][1] += difference.maximum**2  # type: ignore[attr-defined]
    return {
        item: Perturbation(math.sqrt(l2 / draws), math.sqrt(top / draws))
        for item, (l2, top) in sums.items()
    }
