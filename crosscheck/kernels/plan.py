"""How a compiled kernel walks over arrays: blocks that fit the cache, whatever the strides.

Two or three arrays of one shape are one *job*. Its axes are put into the order of the last array's
memory and merged where that leaves all strides linear; the last three make up a block. Where
another array runs fastest along another axis (channels last against first), the block is a tile of
eight rows. Consecutive blocks form chunks of about 65,536 elements. Chunks depend on shapes and
strides alone: not on the number of threads, which only share them out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import ml_dtypes
import numpy as np

__all__ = [
    "ADDRESS",
    "AXES",
    "BLOCK",
    "CHUNK",
    "FIELDS",
    "KIND",
    "KINDS",
    "PIECES",
    "PLACE",
    "ROOM",
    "SIZE",
    "STRIDE",
    "TILE",
    "WIDTH",
    "Plan",
    "address",
    "plan",
    "supported",
]

BLOCK = 2048
"""Elements in a block: as float32, 8 KiB for each array."""
CHUNK = 32 * BLOCK
ROOM = 256  # bytes in front of the buffers, for a kernel's own notes
PIECES = 2  # buffers of BLOCK float64 that each array needs to be brought into one piece
RUN = 8  # rows of a tile between two orders: they are long, which is what memory likes
AXES = 8  # of a job, after merging
MOST_SIDES = 3
KINDS = {
    np.dtype(np.float32): 0,
    np.dtype(np.float64): 1,
    np.dtype(np.float16): 2,
    np.dtype(ml_dtypes.bfloat16): 3,
}

FIELDS = ("count", "diff2", "a2", "b2", "ab", "max_diff", "argmax", "max_a", "max_b")
FIELDS += ("over", "nonfinite", "mismatch", "first_mismatch")  # type: ignore[assignment]
"""Columns of a result for one pair, in the order of `PairSums`."""

# The columns of a job. Two for each array, then its axes (size, tile, stride in the flat index),
# then the strides of each array, in elements.
KIND, ADDRESS = 0, MOST_SIDES
SIZE = 2 * MOST_SIDES
TILE, PLACE, STRIDE = SIZE + AXES, SIZE + 2 * AXES, SIZE + 3 * AXES
WIDTH = STRIDE + MOST_SIDES * AXES


class _Axis(NamedTuple):
    size: int
    place: int
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What a kernel is given.

    Attributes:
        jobs: (number of jobs, `WIDTH`) int64.
        chunks: (number of chunks, 3) int64: job, first block, behind the last block.
        first: the first chunk of each job.
        elements: of all jobs together.
    """

    jobs: np.ndarray
    chunks: np.ndarray
    first: np.ndarray
    elements: int


def supported(*arrays: np.ndarray) -> bool:
    """Whether kernels can read the memory of these arrays (of one shape, not empty)."""
    return all(
        a.dtype in KINDS
        and a.flags.aligned
        and all(stride % a.itemsize == 0 for stride in a.strides)
        for a in arrays
    ) and (arrays[0].ndim <= AXES or len(_merged(arrays)) <= AXES)


def address(array: np.ndarray) -> int:
    """Of its first element; the array must outlive its use."""
    return int(array.__array_interface__["data"][0])


def plan(groups: Sequence[Sequence[np.ndarray]]) -> Plan:
    """The plan for jobs of `supported` arrays. The arrays must outlive its use: it holds their
    addresses."""
    jobs = np.zeros((len(groups), WIDTH), np.int64)
    jobs[:, SIZE:PLACE] = 1  # of axes that are not there, and their tiles
    sides = len(groups[0])
    jobs[:, KIND : KIND + sides] = [[KINDS[a.dtype] for a in arrays] for arrays in groups]
    jobs[:, ADDRESS : ADDRESS + sides] = [[address(a) for a in arrays] for arrays in groups]
    plain = np.array([all(a.flags.c_contiguous for a in arrays) for arrays in groups])
    sizes = np.array([arrays[0].size for arrays in groups])
    _fill_plain(jobs, plain, sizes, sides)
    for number in np.flatnonzero(~plain).tolist():
        _fill(jobs[number], groups[number])
    return Plan(jobs, *_chunks(jobs), int(sizes.sum()))


def _fill_plain(jobs: np.ndarray, plain: np.ndarray, sizes: np.ndarray, sides: int) -> None:
    """The axes of arrays in one piece: a single one."""
    last = AXES - 1
    jobs[plain, SIZE + last] = sizes[plain]
    jobs[plain, TILE + last] = np.minimum(sizes[plain], BLOCK)
    jobs[plain, PLACE + last] = 1
    for side in range(sides):
        jobs[plain, STRIDE + side * AXES + last] = 1


def _fill(job: np.ndarray, arrays: Sequence[np.ndarray]) -> None:
    axes = _merged(arrays)
    tile = _tile([axis.size for axis in axes], _two_orders(axes, len(arrays)))
    for k, (axis, length) in enumerate(zip(axes, tile, strict=True), AXES - len(axes)):
        job[SIZE + k], job[TILE + k], job[PLACE + k] = axis.size, length, axis.place
        for side, stride in enumerate(axis.strides):
            job[STRIDE + side * AXES + k] = stride


def _chunks(jobs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(chunks, first), as in `Plan`."""
    size, tile = jobs[:, SIZE:TILE], jobs[:, TILE:PLACE]
    blocks = (-(-size // tile)).prod(axis=1)
    at_once = np.maximum(CHUNK // tile.prod(axis=1), 1)
    counts = -(-blocks // at_once)
    first = np.cumsum(counts) - counts
    number = np.repeat(np.arange(len(jobs)), counts)
    begin = (np.arange(len(number)) - first[number]) * at_once[number]
    end = np.minimum(begin + at_once[number], blocks[number])
    return np.stack([number, begin, end], axis=1), first


def _merged(arrays: Sequence[np.ndarray]) -> list[_Axis]:
    """The axes, slowest first, in the order of the last array's memory; those merged that stay
    linear in every array and in the flat index."""
    first = arrays[0]
    strides = [tuple(s // a.itemsize for s in a.strides) for a in arrays]
    place, axes = 1, []
    for k in reversed(range(first.ndim)):
        if first.shape[k] != 1:
            axes.append(_Axis(first.shape[k], place, tuple(s[k] for s in strides)))
        place *= first.shape[k]
    axes.sort(key=_speed)
    merged = axes[:1]
    for axis in axes[1:]:
        last = merged[-1]
        linear = all(
            ours == last.size * theirs
            for ours, theirs in zip(axis.strides, last.strides, strict=True)
        )
        if linear and axis.place == last.size * last.place:
            merged[-1] = _Axis(last.size * axis.size, last.place, last.strides)
        else:
            merged.append(axis)
    return merged[::-1] or [_Axis(1, 1, (1,) * len(arrays))]


def _speed(axis: _Axis) -> tuple[int, int]:
    # An axis that is broadcast (stride 0) has no order of its own there: the other arrays decide.
    steps = [abs(s) for s in reversed(axis.strides)]
    return next((s for s in steps if s), 0), axis.place


def _two_orders(axes: list[_Axis], sides: int) -> bool:
    """Whether some array runs fastest along another axis than the last. If so, that axis is made
    the last but one (in place)."""
    for side in range(sides):
        own = min(reversed(axes), key=lambda axis: abs(axis.strides[side]) or math.inf)
        if own is not axes[-1]:
            axes.remove(own)
            axes.insert(len(axes) - 1, own)
            return True
    return False


def _tile(sizes: list[int], two_orders: bool) -> list[int]:
    tile = [1] * len(sizes)
    if two_orders:
        tile[-2] = min(sizes[-2], RUN)
    room = BLOCK
    for k in range(len(sizes) - 1, max(len(sizes) - 4, -1), -1):
        others = tile[-2] if two_orders and k == len(sizes) - 1 else 1
        tile[k] = min(sizes[k], max(room // others, 1))
        room = max(room // tile[k], 1)
    return tile
