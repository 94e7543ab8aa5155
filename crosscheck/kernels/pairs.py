"""Two or three arrays, or many such groups -> `PairSums`: compiled where it pays, else NumPy.

What decides is the sizes in one call and nothing that happened before, so that equal calls give
equal bits. Compiled code takes 0.05 seconds to load, and several to compile the first time, which
checks of small models never pay.
``CROSSCHECK_KERNELS=numpy`` or ``numba`` takes one of them always (as far as it can read the
arrays); without Numba everything is NumPy. The meaning is the same: counts, maxima and places are
equal, sums up to rounding.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import astuple
from functools import cache
from types import ModuleType

import numpy as np

from crosscheck.errors import InvalidArgument
from crosscheck.kernels import blocked
from crosscheck.kernels.blocked import PairSums
from crosscheck.kernels.combine import combined
from crosscheck.kernels.on_device import (
    DeviceArray,
    as_host,
    device_moments,
    device_rows,
    together,
)
from crosscheck.kernels.plan import BLOCK, FIELDS, PIECES, ROOM, address, plan, supported
from crosscheck.kernels.stacked import stacked_rows
from crosscheck.kernels.threads import share

__all__ = ["LARGE", "MANY", "group_rows", "group_sums", "moments", "moments_of", "pair_sums"]

LARGE, MANY = 1 << 17, 1 << 22
"""Elements in one group and in all groups of a call, from which on it is compiled."""
SHORT = 1 << 11
"""Groups of so many elements do not count: `stacked` is as fast for them."""
Moments = tuple[np.ndarray, np.ndarray]
"""Float64 (5,): Σx, Σx², Σ|x|, the number of non-finite elements, max|x|; and (3,): Σ(x − r)⁺,
Σ(−x − r)⁺, Σ(|x| − 2r)⁺ with r the root mean square."""
ALONE = 1 << 19  # elements that one thread compares sooner than others are woken up
_PAIRS = {
    2: np.array([[0, 1]]),
    3: np.array([[0, 2], [1, 2], [0, 1]]),
}


def pair_sums(a: np.ndarray, b: np.ndarray) -> PairSums:
    """Compare two arrays of one shape, in any real dtypes, strided in any way.

    Raises:
        ValueError: the shapes differ.
    """
    return group_sums([(a, b)])[0][0]


def group_sums(
    groups: Sequence[Sequence[np.ndarray]], limits: Sequence[float] | None = None
) -> list[tuple[PairSums, ...]]:
    """Compare many groups of arrays in one call; a group has one shape.

    Args:
        groups: of two arrays (a, b), or of three (a, b, truth), all of a kind.
        limits: for each group, a difference; larger ones are counted (`PairSums.over`).

    Returns:
        For each group: of two, (a with b,); of three, (a with truth, b with truth, a with b).

    Raises:
        ValueError: the shapes in a group differ.
    """
    return [tuple(map(PairSums.of, rows)) for rows in group_rows(groups, limits).tolist()]


def group_rows(
    groups: Sequence[Sequence[np.ndarray]], limits: Sequence[float] | None = None
) -> np.ndarray:
    """`group_sums` as columns: float64 (groups, 1 or 3, fields of `PairSums`)."""
    for first, *others in groups:
        for other in others:
            if other.shape != first.shape:
                raise ValueError(f"shapes differ: {first.shape} and {other.shape}")
    bounds = [math.inf] * len(groups) if limits is None else list(limits)
    pairs = _PAIRS[len(groups[0]) if groups else 2]
    if not DeviceArray.made:
        return _on_host(groups, bounds, pairs)
    rows = np.empty((len(groups), len(pairs), len(FIELDS) + 1))
    there = np.array([together(arrays) for arrays in groups], bool)
    some: list[int] = np.flatnonzero(there).tolist()
    rest: list[int] = np.flatnonzero(~there).tolist()
    if some:
        rows[some] = device_rows(
            [groups[i] for i in some], [bounds[i] for i in some], pairs.tolist()
        )
    if rest:
        hosts = [[*map(as_host, groups[i])] for i in rest]
        rows[rest] = _on_host(hosts, [bounds[i] for i in rest], pairs)
    return rows


def _on_host(
    groups: Sequence[Sequence[np.ndarray]], bounds: Sequence[float], pairs: np.ndarray
) -> np.ndarray:
    rows = np.empty((len(groups), len(pairs), len(FIELDS) + 1))
    done = np.zeros(len(groups), bool)
    kernels = _kernels([arrays[0].size for arrays in groups])
    if kernels is None:
        done = stacked_rows(groups, bounds, pairs.tolist(), rows)
    able = [i for i, arrays in enumerate(groups) if kernels and _is_able(arrays)]
    if kernels is not None and able:
        rows[able, :, :-1] = _compiled_sums(
            kernels, [groups[i] for i in able], [bounds[i] for i in able]
        )
        rows[able, :, -1] = 1.0
        # What overflows is taken in larger units by the other implementation.
        done[able] = np.isfinite(rows[able, :, 1:4]).all(axis=(1, 2))
    for i in np.flatnonzero(~done).tolist():
        one = groups[i]
        rows[i] = [astuple(blocked.pair_sums(one[j], one[k], bounds[i])) for j, k in pairs.tolist()]
    return rows


def _is_able(arrays: Sequence[np.ndarray]) -> bool:
    """Whether the compiled kernels read them."""
    return arrays[0].size > 0 and supported(*arrays)


def _kernels(sizes: Sequence[int]) -> ModuleType | None:
    """The compiled kernels, if arrays of these sizes are worth it; None: take NumPy.

    Raises:
        InvalidArgument: ``CROSSCHECK_KERNELS`` is something else than auto, numpy or numba.
    """
    choice = os.environ.get("CROSSCHECK_KERNELS") or "auto"
    if choice not in ("auto", "numpy", "numba"):
        raise InvalidArgument(f"CROSSCHECK_KERNELS={choice}: must be auto, numpy or numba")
    sizes = [size for size in sizes if size > SHORT]
    worth = choice == "numba" or max(sizes, default=0) >= LARGE or sum(sizes) >= MANY
    return _load() if worth and choice != "numpy" else None


@cache
def _load() -> ModuleType | None:
    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        return None
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        from crosscheck.kernels import machine

        for name in machine.KERNELS:  # all of them, or none
            machine.kernel(name)
    except ImportError:
        return None
    return machine


def _compiled_sums(
    kernels: ModuleType, groups: Sequence[Sequence[np.ndarray]], limits: Sequence[float]
) -> np.ndarray:
    """Float64 (groups, 1 or 3, `FIELDS`)."""
    pairs = _PAIRS[len(groups[0])]
    p, bounds = plan(groups), np.array(limits, np.float64)
    out = np.empty((len(p.chunks), len(pairs), len(FIELDS)))
    compare = kernels.kernel("compare_chunks")
    given = address(p.jobs), address(p.chunks)
    more = address(pairs), len(pairs), address(bounds)

    def work(first: int, last: int) -> None:
        room = _room(len(groups[0]))
        compare(*given, first, last, *more, address(room), address(out))

    share(work, len(p.chunks), alone=p.elements < ALONE)
    return combined(out, p.first)


def _room(arrays: int) -> np.ndarray:
    """What a kernel writes its notes and the blocks of so many arrays into."""
    return np.empty(ROOM + arrays * PIECES * BLOCK * 8, np.uint8)


def moments(value: np.ndarray) -> Moments | None:
    """Sums over the finite elements of an array, in any order of its memory; None: take NumPy."""
    return moments_of([value])[0]


def moments_of(values: Sequence[np.ndarray]) -> list[Moments | None]:
    """The `moments` of each value, with the bits that it has alone."""
    found: list[Moments | None] = [None] * len(values)
    for i, value in enumerate(values):
        if isinstance(value, DeviceArray):
            found[i] = device_moments(value)
    able = [
        i
        for i, v in enumerate(values)
        if found[i] is None and _kernels([v.size]) is not None and _is_able([v])
    ]
    begin = np.cumsum([values[i].size for i in able]) // MANY  # which portion each belongs to
    for portion in dict.fromkeys(begin.tolist()):
        some = [i for i, number in zip(able, begin.tolist(), strict=True) if number == portion]
        for i, sums in zip(some, _moments([values[i] for i in some]), strict=True):
            found[i] = sums
    return found


def _moments(values: Sequence[np.ndarray]) -> list[Moments]:
    kernels = _load()
    assert kernels is not None
    p = plan([(value,) for value in values])
    first, second = np.empty((len(p.chunks), 5)), np.empty((len(p.chunks), 3))
    add_moments, add_tails = map(kernels.kernel, ("moment_chunks", "tail_chunks"))
    given = address(p.jobs), address(p.chunks)

    def sums(begin: int, end: int) -> None:
        room = _room(2)
        add_moments(*given, begin, end, address(room), address(first))

    def tails(begin: int, end: int) -> None:
        room = _room(2)
        add_tails(*given, begin, end, address(rms), address(room), address(second))

    share(sums, len(p.chunks), alone=p.elements < ALONE)
    total = np.add.reduceat(first, p.first)
    total[:, 4] = np.maximum.reduceat(first[:, 4], p.first)
    finite = np.array([value.size for value in values]) - total[:, 3]
    rms = np.sqrt(total[:, 1] / np.maximum(finite, 1.0))
    share(tails, len(p.chunks), alone=p.elements < ALONE)
    return list(zip(total, np.add.reduceat(second, p.first), strict=True))
