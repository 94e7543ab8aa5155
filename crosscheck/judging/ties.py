"""Part of stage 7, judge: ties, where rounding decides between values that lie far apart.

Which of two nearly equal maxima is taken, whether a number just above zero passes a ReLU, to which
of two float8 numbers a value goes: there two honest implementations part by as much as the choice
makes out. The oracle shows which elements those are. Moved by about the noise floor, again and
again, they jump between a few values and take none in between. Such an element is a tie if the
candidate holds one of its values; it is counted, reported and left out of both norms, so that it
neither condemns an honest port nor raises the floor for the elements beside it.

An exact tie (two equal maxima) is none: equal values move equally (`perturb`), nothing jumps, and
how a port resolves it remains visible.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.arrays import is_complex, is_float
from crosscheck.comparisons import Item, value_of
from crosscheck.errors import SideFailed
from crosscheck.judging.judge import Judge, in_reference_layout
from crosscheck.judging.noise import AGREE
from crosscheck.judging.perturb import Scope, scopes
from crosscheck.judging.precision import Grains
from crosscheck.observers import Comparer, Key
from crosscheck.run import Runner
from crosscheck.trace import Trace

__all__ = ["DRAWS", "find_ties", "ties_among"]

DRAWS = 8
REACH = 4.0
"""Values move by so many noise floors: an honest port is within that of the choice it missed."""
LARGEST = 1 << 20
MOST = 0.5
"""Where more than this share of the elements is off, it is not for a tie."""


def find_ties(
    reference: Runner,
    judge: Judge,
    items: Sequence[Item],
    candidate: Trace,
    forced: Mapping[Key, np.ndarray],
    *,
    parameters: Sequence[Parameter],
    seed: int,
    grains: Grains,
) -> dict[Item, np.ndarray]:
    """Of each item that has ties, where they are (a mask in the reference's layout)."""
    suspected = {}
    for item in items:
        offered = _offered(judge, item, candidate)
        if offered is not None:
            suspected[item] = offered
    if not suspected:
        return {}
    factor = REACH * max(growth_of(judge, item) for item in suspected)
    for scope in scopes(reference, judge, [*suspected], forced, parameters):
        try:
            draws = _draws(scope, judge, [*suspected], seed, grains, factor)
            break
        except SideFailed:
            pass
    else:
        return {}
    found = {}
    for item, v in suspected.items():
        mask = ties_among((v.candidate, v.reference), v.truth, draws[item], v.near)
        if mask.any():
            found[item] = mask
    return found


def _draws(
    scope: Scope, judge: Judge, items: Sequence[Item], seed: int, grains: Grains, factor: float
) -> dict[Item, list[np.ndarray]]:
    """The oracle's values, each time moved a little."""
    wanted = {key for item in items for key in item.reference_keys}
    draws: dict[Item, list[np.ndarray]] = {item: [] for item in items}
    grains = replace(grains, steps={})  # a step is no noise floor
    for draw in range(DRAWS):
        seen = Comparer(lambda key, value: np.array(value), wanted, alone=scope.alone)
        wide = judge.oracle is not None
        info = scope.run(seen, seed * DRAWS + draw, grains, float64=wide, factor=factor)
        trace = Trace(cast("dict[Key, np.ndarray]", seen.results), info, "")
        for item, values in draws.items():
            value = value_of(item, trace, side="reference")
            if value is not None:
                values.append(value)
    return draws


def growth_of(judge: Judge, item: Item) -> float:
    """How many roundings add up in one element, in quadrature."""
    return max(1.0, 0.5 * math.sqrt(judge.reductions.length(item)))


@dataclass(frozen=True)
class _Values:
    """What both sides and the oracle hold at one item (float64), and what counts as equal."""

    candidate: np.ndarray
    reference: np.ndarray
    truth: np.ndarray
    near: float


def _offered(judge: Judge, item: Item, candidate: Trace) -> _Values | None:
    """The values of an item that may hold ties."""
    reference = value_of(item, judge.reference, side="reference")
    raw = value_of(item, candidate, side="candidate")
    if reference is None or raw is None or not 0 < reference.size <= LARGEST:
        return None
    value = in_reference_layout(item, raw, reference)
    if value is None or is_float(value) != is_float(reference) or is_complex(value):
        return None
    truth = judge.truth(item, reference)
    near = AGREE * judge.plain_eta_max(item, value) if is_float(value) else 0.0
    found = _Values(
        value.astype(np.float64), reference.astype(np.float64), truth.astype(np.float64), near
    )
    off = _apart(found.candidate, found.truth, near) | _apart(found.reference, found.truth, near)
    return found if 0 < np.count_nonzero(off) <= max(1.0, MOST * off.size) else None


def _apart(value: np.ndarray, other: np.ndarray, near: float) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # infinite on both sides
        return np.asarray(~((np.abs(value - other) <= near) | (value == other)))


def ties_among(
    held: Sequence[np.ndarray], truth: np.ndarray, draws: Sequence[np.ndarray], near: float
) -> np.ndarray:
    """Where the oracle jumps between a few values, and both sides hold one of these.

    Args:
        held: what the sides hold, float64.
        truth: the oracle's, unmoved.
        draws: the oracle's, each time moved a little.
        near: the distance within which two values are one.
    """
    points = np.stack([truth, *(d.astype(np.float64) for d in draws)])
    with np.errstate(invalid="ignore"):
        distance = np.abs(points - truth)
        jumps = (distance > 4.0 * near).any(0)
        between = ((distance > near) & ~(distance > 4.0 * near)).any(0)
        alone = np.zeros(truth.shape, int)
        for i, one in enumerate(points):
            others = np.delete(points, i, axis=0)
            alone += ~(np.abs(others - one) <= near).any(0)
        taken = np.ones(truth.shape, bool)
        for value in held:
            taken &= (np.abs(points - value) <= near).any(0)
    return np.asarray(jumps & ~between & (alone <= 1) & taken)
