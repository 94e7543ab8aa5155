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
from crosscheck.judging.left_out import gives_the_same, lies_in, parameters_of, spared
from crosscheck.judging.noise import underflow, unit_roundoff
from crosscheck.judging.precision import Grains
from crosscheck.observers import Comparer, Forcer, Key, chain
from crosscheck.run import Runner
from crosscheck.taps import Observer
from crosscheck.trace import RunInfo, Trace, owner

__all__ = ["DRAWS", "Moved", "Scope", "measure", "scopes"]

DRAWS = 4


_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = tuple(map(np.uint64, (30, 27, 31)))
_PIECE, _HALF = np.uint64(16), np.uint64(32)
_PIECES, _WORD = np.uint64(0x0000FFFF0000FFFF), np.uint64(0xFFFFFFFF)
BLOCK = 1 << 15
"""So many elements are moved at once: they and their noise stay in the cache."""


def _noise(values: np.ndarray, seed: int) -> np.ndarray:
    """Pseudo-random, mean 0 and variance 1, a function of each float64 value and the seed.

    The finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014); its four 16-bit pieces add up to
    something close enough to normal.
    """
    bits = np.ascontiguousarray(values).view(np.uint64) ^ np.uint64((seed * int(_ODD) + 1) % 2**64)
    high = bits >> _SHIFTS[0]
    bits ^= high
    for mix, shift in zip(_MIX, _SHIFTS[1:], strict=True):
        bits *= mix
        np.right_shift(bits, shift, out=high)
        bits ^= high
    np.right_shift(bits, _PIECE, out=high)
    high &= _PIECES
    bits &= _PIECES
    bits += high  # two sums of two
    np.right_shift(bits, _HALF, out=high)
    bits &= _WORD
    bits += high
    total = bits / 65535.0
    total -= 2.0
    total *= math.sqrt(3.0)
    return np.asarray(total)


class Moved(Mapping[Key, np.ndarray]):
    """Forced values, each moved by a seeded relative perturbation of the size of its grain.

    Args:
        grains: relative sizes by key; else ``unit``; else the unit roundoff of the value's type.
        factor: of all sizes.
        steps: absolute sizes by key, of what the candidate quantises.
        only: keys of the values that are moved; None: all.
    """

    def __init__(
        self,
        values: Mapping[Key, np.ndarray],
        seed: int,
        unit: float | None = None,
        grains: Mapping[Key, float] | None = None,
        factor: float = 1.0,
        steps: Mapping[Key, float] | None = None,
        only: frozenset[Key] | None = None,
    ) -> None:
        self._values, self._seed, self._unit = values, seed, unit
        self._grains, self._factor, self._steps = grains or {}, factor, steps or {}
        self._only = only

    def __getitem__(self, key: Key) -> np.ndarray:
        if self._only is not None and key not in self._only:
            return self._values[key]
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
        seed = zlib.crc32(name.encode()) + (self._seed << 32)
        flat, tiny = value.reshape(-1), underflow(value.dtype)
        moved = np.empty(flat.shape)
        with np.errstate(invalid="ignore"):
            for begin in range(0, flat.size, BLOCK):
                wide = flat[begin : begin + BLOCK].astype(np.float64)
                noise, size = _noise(wide, seed), np.abs(wide)
                subnormal = (size != 0.0) & (size < tiny)
                size = np.where(subnormal, 1.0, self._factor * unit)
                moved[begin : begin + BLOCK] = wide * (1.0 + size * noise)
                if step:
                    moved[begin : begin + BLOCK] += self._factor * step / math.sqrt(12.0) * noise
        return moved.reshape(value.shape)

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
        forced: the values that are put in.
        parameters: those that are moved.
        near: keys of the forced values that are moved; None: all.
        needless: layer calls that are left out.
        alone: whether the adapter computes only what is looked at (`Adapter.taken_by`).
    """

    runner: Runner
    forced: Mapping[Key, np.ndarray]
    parameters: Sequence[Parameter]
    needless: frozenset[str] = frozenset()
    alone: bool = False
    near: frozenset[Key] | None = None

    def run(
        self, observer: Observer, seed: int, grains: Grains, *, float64: bool, factor: float = 1.0
    ) -> RunInfo:
        """Run once, moved.

        Raises:
            SideFailed: it ran unmoved, and does not now.
        """
        moved = Moved(
            self.forced,
            seed,
            grains=grains.values,
            factor=factor,
            steps=grains.steps,
            only=self.near,
        )
        return self.runner.run(
            chain(observer, Forcer(moved, needless=self.needless)),
            float64=float64,
            overrides=moved.weights(self.parameters, grains),
        )


def scopes(
    reference: Runner,
    judge: Judge,
    items: Sequence[Item],
    forced: Mapping[Key, np.ndarray],
    parameters: Sequence[Parameter],
) -> list[Scope]:
    """For these items: as little as the adapter can do; then everything, should that fail.

    Args:
        judge: for the reference's free run, and for what it gives in the oracle's place.
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
    calls = spared(reference, judge.reference, items, forced)
    wide = judge.oracle is not None
    whole_run = judge.oracle if judge.oracle is not None else judge.reference
    if calls and gives_the_same(narrow.runner, items, forced, calls, whole_run, float64=wide):
        around = _around(judge.reference, items, forced, parameters)
        used = [p for p in parameters if not _is_inside(p, calls)]
        near = None
        if around is not None:
            used = [p for p in used if _is_used_in(p, around)]
            near = _keys_in(judge.reference, forced, around)
        narrow = replace(narrow, parameters=used, needless=calls, near=near)
    return [whole] if narrow is whole else [narrow, whole]


def _around(
    free: Trace,
    items: Sequence[Item],
    forced: Mapping[Key, np.ndarray],
    parameters: Sequence[Parameter],
) -> frozenset[str] | None:
    """The smallest calls outside which nothing bears on these items: all that goes into them,
    forward and backward, is forced. None where an item has no such call."""
    named = {p.name: p for p in parameters}
    found = set()
    for item in items:
        if item.phase in ("forward", "backward"):
            calls = [owner(site) for _, site in item.reference_keys]
            if item.kind in ("input", "cotangent"):  # made by the code in front, or behind
                calls = [free.info.parents.get(call, "") for call in calls]
        else:
            held = [named[name] for name in parameters_of([item]) if name in named]
            paths = {one.layer for p in held for one in (p, *p.also)}
            calls = [call for call in free.info.layers if call.partition("#")[0] in paths]
            calls = calls or [""]
        for call in calls:
            while call and not _is_closed(free, call, forced):
                call = free.info.parents.get(call, "")
            if not call:
                return None
            found.add(call)
    return frozenset(found)


def _is_closed(free: Trace, call: str, forced: Mapping[Key, np.ndarray]) -> bool:
    slots = free.inputs_of(call)
    needed: list[Key] = [("input", slot) for slot in slots]
    needed += [("cotangent", site) for site in free.outputs_of.get(call, ())]
    return bool(slots) and all(key in forced for key in needed if key in free.values)


def _keys_in(
    free: Trace, forced: Mapping[Key, np.ndarray], calls: frozenset[str]
) -> frozenset[Key]:
    """The forced values at these calls and inside them."""

    def is_inside(call: str | None) -> bool:
        while call is not None and call not in calls:
            call = free.info.parents.get(call)
        return call is not None

    return frozenset(key for key in forced if is_inside(owner(key[1])))


def _is_used_in(parameter: Parameter, calls: Iterable[str]) -> bool:
    """Whether a layer in one of these calls has a parameter."""
    return any(lies_in(p.layer, call) for p in (parameter, *parameter.also) for call in calls)


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
    for scope in scopes(reference, judge, items, forced, parameters):
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
