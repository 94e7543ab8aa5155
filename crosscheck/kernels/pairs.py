"""Two or three arrays, or many such groups -> `PairSums`: compiled where it pays, else NumPy.

What decides is the sizes in one call and nothing that happened before, so that equal calls give
equal bits. Loading Numba takes half a second, which checks of small models never pay.
``CROSSCHECK_KERNELS=numpy`` or ``numba`` takes one of them always (as far as it can read the
arrays); without Numba everything is NumPy. The meaning is the same: counts, maxima and places are
equal, sums up to rounding.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import numpy as np

from crosscheck.errors import InvalidArgument
from crosscheck.kernels import blocked
from crosscheck.kernels.blocked import PairSums
from crosscheck.kernels.combine import combined
from crosscheck.kernels.plan import BLOCK, FIELDS, PIECES, plan, supported
from crosscheck.kernels.stacked import stacked_sums
from crosscheck.kernels.threads import share

__all__ = ["LARGE", "MANY", "group_sums", "moments", "pair_sums"]

LARGE, MANY = 1 << 18, 1 << 22
"""Elements in one group and in all groups of a call, from which on it is compiled."""
SHORT = 1 << 11
"""Groups of so many elements do not count: `stacked` is as fast for them."""
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
    for arrays in groups:
        if any(a.shape != arrays[0].shape for a in arrays):
            raise ValueError(f"shapes differ: {' and '.join(str(a.shape) for a in arrays)}")
    bounds = [math.inf] * len(groups) if limits is None else list(limits)
    kernels = _kernels([arrays[0].size for arrays in groups])
    able = [
        i
        for i, arrays in enumerate(groups)
        if kernels is not None and arrays[0].size and supported(*arrays)
    ]
    found: dict[int, tuple[PairSums, ...]] = {}
    if kernels is not None and able:
        sums = _compiled_sums(kernels, [groups[i] for i in able], [bounds[i] for i in able])
        # What overflows is taken in larger units by the other implementation.
        found = {i: s for i, s in zip(able, sums, strict=True) if all(map(_finite, s))}
    elif groups:
        found = stacked_sums(groups, bounds, _PAIRS[len(groups[0])].tolist())
    return [
        found[i] if i in found else _plain_sums(arrays, bounds[i])
        for i, arrays in enumerate(groups)
    ]


def _plain_sums(arrays: Sequence[np.ndarray], limit: float) -> tuple[PairSums, ...]:
    pairs = _PAIRS[len(arrays)].tolist()
    return tuple(blocked.pair_sums(arrays[i], arrays[j], limit) for i, j in pairs)


def _finite(sums: PairSums) -> bool:
    return math.isfinite(sums.diff2 + sums.a2 + sums.b2)


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
    try:
        from crosscheck.kernels import compiled
    except ImportError:
        return None
    except RuntimeError:  # Numba finds no folder that it may write its cache into
        return None
    return compiled


def _compiled_sums(
    kernels: ModuleType, groups: Sequence[Sequence[np.ndarray]], limits: Sequence[float]
) -> list[tuple[PairSums, ...]]:
    pairs = _PAIRS[len(groups[0])]
    p, bounds = plan(groups), np.array(limits, np.float64)
    out = np.empty((len(p.chunks), len(pairs), len(FIELDS)))

    def work(first: int, last: int) -> None:
        scratch = np.empty((len(groups[0]), PIECES, BLOCK))
        address = scratch.__array_interface__["data"][0]
        kernels.compare_chunks(p.jobs, p.chunks, first, last, pairs, bounds, address, out)

    share(work, len(p.chunks), alone=p.elements < ALONE)
    return [tuple(PairSums.of(row) for row in rows) for rows in combined(out, p.first).tolist()]


def moments(value: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Sums over the finite elements of an array, in any order of its memory; None: take NumPy.

    Returns:
        float64 (5,): Σx, Σx², Σ|x|, the number of non-finite elements, max|x|; and (3,): Σ(x − r)⁺,
        Σ(−x − r)⁺, Σ(|x| − 2r)⁺ with r the root mean square.
    """
    kernels = _kernels([value.size])
    if kernels is None or not value.size or not supported(value):
        return None
    p = plan([(value,)])
    first, second = np.empty((len(p.chunks), 5)), np.empty((len(p.chunks), 3))

    def sums(begin: int, end: int) -> None:
        scratch = np.empty((2, PIECES, BLOCK))
        address = scratch.__array_interface__["data"][0]
        kernels.moment_chunks(p.jobs, p.chunks, begin, end, address, first)

    def tails(begin: int, end: int) -> None:
        scratch = np.empty((2, PIECES, BLOCK))
        address = scratch.__array_interface__["data"][0]
        kernels.tail_chunks(p.jobs, p.chunks, begin, end, rms, address, second)

    share(sums, len(p.chunks), alone=p.elements < ALONE)
    total = first.sum(axis=0)
    total[4] = first[:, 4].max()
    rms = np.array([math.sqrt(total[1] / max(value.size - total[3], 1.0))])
    share(tails, len(p.chunks), alone=p.elements < ALONE)
    return total, second.sum(axis=0)
