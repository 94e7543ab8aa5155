"""e_pert: what rounding on the way into a stretch does to what comes out of it.

The oracle is run again with every forced value and every weight moved by a relative amount of the
size of its own unit roundoff, that of the side which holds it more coarsely (`precision.Grains`).
Since the values are forced at every aligned site, one run gives the response of all stretches at
once, each to its own inputs. A subnormal number moves by its own size: hardware may flush it.

Equal values move equally: the noise is a hash of the value. Both sides are forced onto the very
same numbers, so an exact tie (two equal maxima in a pooling window) is a tie for both, and how it
is resolved is part of the function, not of its rounding.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.arrays import is_float
from crosscheck.compare import Difference, compare
from crosscheck.comparisons import Item, gradient_of, value_of
from crosscheck.errors import SideFailed
from crosscheck.judging.judge import Judge, Perturbation
from crosscheck.judging.left_out import lies_in, spared
from crosscheck.judging.noise import underflow, unit_roundoff
from crosscheck.judging.precision import Grains
from crosscheck.observers import Comparer, Forcer, Key, chain
from crosscheck.run import Runner
from crosscheck.taps import Observer
from crosscheck.trace import RunInfo, Trace

__all__ = ["DRAWS", "Moved", "Scope", "measure", "scopes"]

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


class Moved(Mapping[Key, np.ndarray]):
    """Forced values, each moved by a seeded relative perturbation of the size of its grain.

    Args:
        grains: relative sizes by key; else ``unit``; else the unit roundoff of the value's type.
        factor: of all sizes.
        steps: absolute sizes by key, of what the candidate quantises.
    """

    def __init__(
        self,
        values: Mapping[Key, np.ndarray],
        seed: int,
        unit: float | None = None,
        grains: Mapping[Key, float] | None = None,
        factor: float = 1.0,
        steps: Mapping[Key, float] | None = None,
    ) -> None:
        self._values, self._seed, self._unit = values, seed, unit
        self._grains, self._factor, self._steps = grains or {}, factor, steps or {}

    def __getitem__(self, key: Key) -> np.ndarray:
        return self.move(
            self._values[key], "/".join(key), self._grains.get(key), self._steps.get(key, 0.0)
        )

    def move(
        self, value: np.ndarray, name: str, grain: float | None = None, step: float = 0.0
    ) -> np.ndarray:
        """``value · (1 + u·ξ) + step·ξ/√12`` in float64; integers stay."""
        if not is_float(value):
            return value
        unit = self._unit if grain is None else grain
        unit = unit_roundoff(value.dtype) if unit is None else unit
        wide = value.astype(np.float64)
        seed = zlib.crc32(name.encode()) + (self._seed << 32)
        subnormal = (wide != 0.0) & (np.abs(wide) < underflow(value.dtype))
        size = np.where(subnormal, 1.0, self._factor * unit)
        with np.errstate(invalid="ignore"):
            noise = _noise(wide, seed)
            moved = wide * (1.0 + size * noise) + self._factor * step / math.sqrt(12.0) * noise
        return np.asarray(moved)

    def weights(self, parameters: Sequence[Parameter], grains: Grains) -> dict[str, np.ndarray]:
        """The floating-point parameters, moved, by name."""
        units, steps = grains.parameters, grains.parameter_steps
        return {
            p.name: self.move(p.value, p.name, units.get(p.name), steps.get(p.name, 0.0))
            for p in parameters
            if is_float(p.value)
        }

    def __iter__(self) -> Iterator[Key]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


@dataclass(frozen=True)
class Scope:
    """What a perturbed run moves and computes.

    Attributes:
        runner: the reference; without a backward pass where nothing backward is looked at.
        forced: the values that are moved and put in.
        parameters: those that are moved.
        needless: layer calls that are left out.
        alone: whether the adapter computes only what is looked at (`Adapter.taken_by`).
    """

    runner: Runner
    forced: Mapping[Key, np.ndarray]
    parameters: Sequence[Parameter]
    needless: frozenset[str] = frozenset()
    alone: bool = False

    def run(
        self, observer: Observer, seed: int, grains: Grains, *, float64: bool, factor: float = 1.0
    ) -> RunInfo:
        """Run once, moved.

        Raises:
            SideFailed: it ran unmoved, and does not now.
        """
        moved = Moved(self.forced, seed, grains=grains.values, factor=factor, steps=grains.steps)
        return self.runner.run(
            chain(observer, Forcer(moved, needless=self.needless)),
            float64=float64,
            overrides=moved.weights(self.parameters, grains),
        )


def scopes(
    reference: Runner,
    free: Trace,
    items: Sequence[Item],
    forced: Mapping[Key, np.ndarray],
    parameters: Sequence[Parameter],
) -> list[Scope]:
    """For these items: as little as the adapter can do; then everything, should that fail.

    Args:
        free: the reference's free run.
    """
    whole, adapter = Scope(reference, forced, parameters), reference.adapter
    if not all(item.phase == "forward" for item in items):
        narrow = whole
    elif (taken := adapter.taken_by(_keys(items), forced.keys())) is not None:
        values = {key: forced[key] for key in taken[0]}
        named = [p for p in parameters if p.name in taken[1]]
        return [Scope(reference, values, named, alone=True)]
    elif adapter.capabilities.transparent:
        narrow = replace(whole, runner=replace(reference, cotangents=None))
    else:
        narrow = whole
    calls = spared(reference, free, items, forced)
    if calls:
        used = [p for p in parameters if not _is_inside(p, calls)]
        narrow = replace(narrow, parameters=used, needless=calls)
    return [whole] if narrow is whole else [narrow, whole]


def _keys(items: Sequence[Item]) -> set[Key]:
    return {key for item in items for key in item.reference_keys}


def _is_inside(parameter: Parameter, calls: Iterable[str]) -> bool:
    """Whether only layers in these calls have a parameter."""
    return all(any(lies_in(p.layer, call) for call in calls) for p in (parameter, *parameter.also))


def measure(
    reference: Runner,
    judge: Judge,
    items: Sequence[Item],
    forced: Mapping[Key, np.ndarray],
    *,
    parameters: Sequence[Parameter],
    seed: int,
    draws: int = DRAWS,
    grains: Grains | None = None,
) -> dict[Item, Perturbation]:
    """RMS response over ``draws`` perturbed oracle runs, for each of ``items``.

    Without a float64 oracle the reference's own precision takes its place.
    """
    for scope in scopes(reference, judge.reference, items, forced, parameters):
        try:
            return _responses(scope, judge, items, seed, draws, grains or Grains())
        except SideFailed:
            pass
    return {}  # ran unperturbed, fails perturbed: leave the floor as it is


def _responses(
    scope: Scope, judge: Judge, items: Sequence[Item], seed: int, draws: int, grains: Grains
) -> dict[Item, Perturbation]:
    wide = judge.oracle is not None
    base = judge.oracle if judge.oracle is not None else judge.reference
    sums = {item: [0.0, 0.0] for item in items}
    seen = [item for item in items if item.phase in ("forward", "backward")]
    ties = {item.reference_key: ~judge.ties[item] for item in seen if item in judge.ties}

    def response(key: Key, value: np.ndarray) -> Difference:
        still = base.values[key]
        kept = ties.get(key)
        return compare(value, still) if kept is None else compare(value[kept], still[kept])

    for draw in range(draws):
        comparer = Comparer(response, _keys(seen), alone=scope.alone)
        info = scope.run(comparer, seed * draws + draw, grains, float64=wide)
        for item in items:
            if item.phase in ("forward", "backward"):
                found = [comparer.results.get(key) for key in item.reference_keys]
            else:
                now = gradient_of(item, info.parameter_gradients | info.buffers, side="reference")  # type: ignore[operator]
                before = value_of(item, base, side="reference")
                kept = ~judge.ties[item] if item in judge.ties else ...
                found = [
                    None if now is None or before is None else compare(now[kept], before[kept])
                ]
            for difference in (one for one in found if one is not None):
                sums[item][0] += difference.l2**2  # type: ignore[attr-defined]
                sums[item][1] += difference.maximum**2  # type: ignore[attr-defined]
    return {
        item: Perturbation(math.sqrt(l2 / draws), math.sqrt(top / draws))
        for item, (l2, top) in sums.items()
    }
