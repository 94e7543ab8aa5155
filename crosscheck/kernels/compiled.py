"""The compiled passes over arrays; importing this loads Numba.

The three kernels at the ends of the sections take numbers and addresses and allocate nothing;
`crosscheck.kernels.machine` compiles them.

A block of each array is looked at where it lies, or in a buffer in the first-level cache, by simple
loops that the compiler vectorises. The largest difference is taken over the *integer* bit pattern
of its size, which has the order of the numbers: integers have a vectorised maximum, and nothing is
assumed about NaN. Only a block whose squares do not add up to something finite is looked at element
by element.

Every difference, product and sum is taken in float64 whatever the dtypes. For N elements the
relative error of a sum of squares is at most (2048 + 32 + N/65536)·2⁻⁵³, 2e-12 for 10⁹ elements; an
inner product has that error relative to the product of the norms.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from crosscheck.kernels.plan import AXES, BLOCK, FIELDS, KIND, PIECES, ROOM, WIDTH
from crosscheck.kernels.staging import (
    begin_of,
    carray,
    compiled,
    enter,
    place_in,
    pointer,
    staged,
)

__all__ = ["compare_chunks", "moment_chunks", "tail_chunks"]

_COUNT, _DIFF2, _A2, _B2, _AB, _MAX_DIFF, _ARGMAX, _MAX_A, _MAX_B = range(9)
_OVER, _NONFINITE, _MISMATCH, _FIRST = range(9, len(FIELDS))
_SIZE_BITS = np.int64(0x7FFFFFFFFFFFFFFF)  # of a float64, all but the sign
_SPARE = PIECES * BLOCK * 8  # bytes: behind the buffers of the first array
_HELD, _BEST = 2 * AXES * 8, 2 * AXES * 8 + 32  # bytes: where in its room a kernel has what
_SUMS = {"reassoc", "contract", "nsz"}  # NaN and Inf keep their meaning


@compiled()
def _corners(room: int) -> Any:
    """Where a block begins, and how far it goes."""
    return (
        carray(pointer(room), (AXES,), np.int64),
        carray(pointer(room + AXES * 8), (AXES,), np.int64),
    )


# -- two arrays ------------------------------------------------------------------------------------


@compiled(fastmath=_SUMS)
def _all_at_once(a: np.ndarray, b: np.ndarray) -> Any:
    diff2 = a2 = b2 = ab = 0.0
    top = top_a = top_b = np.int64(0)
    for i in range(a.size):
        x, y = np.float64(a[i]), np.float64(b[i])
        d = x - y
        diff2 += d * d
        a2 += x * x
        b2 += y * y
        ab += x * y
        top = max(top, np.float64(d).view(np.int64) & _SIZE_BITS)
        top_a = max(top_a, np.float64(x).view(np.int64) & _SIZE_BITS)
        top_b = max(top_b, np.float64(y).view(np.int64) & _SIZE_BITS)
    return diff2, a2, b2, ab, top, top_a, top_b


@compiled()
def _sums(wide: Any, a: int, b: int, n: int) -> Any:
    """``wide``: which of the two addresses hold float64."""
    if wide[0]:
        x = carray(pointer(a), (n,), np.float64)
        if wide[1]:
            return _all_at_once(x, carray(pointer(b), (n,), np.float64))
        return _all_at_once(x, carray(pointer(b), (n,), np.float32))
    y = carray(pointer(a), (n,), np.float32)
    if wide[1]:
        return _all_at_once(y, carray(pointer(b), (n,), np.float64))
    return _all_at_once(y, carray(pointer(b), (n,), np.float32))


@compiled()
def _number(wide: bool, address: int, i: int) -> float:
    if wide:
        return float(carray(pointer(address), (i + 1,), np.float64)[i])
    return float(carray(pointer(address), (i + 1,), np.float32)[i])


@compiled()
def _add_block(
    wide: Any,
    a: int,
    b: int,
    n: int,
    job: np.ndarray,
    begin: int,
    extent: np.ndarray,
    limit: float,
    best: np.ndarray,
    row: np.ndarray,
) -> None:
    """Add a block to a row of the result.

    Args:
        best: the largest difference of the job so far and its place: what is smaller need not be
            looked for.
    """
    diff2, a2, b2, ab, top, top_a, top_b = _sums(wide, a, b, n)
    if not np.isfinite(a2 + b2):
        _add_one_by_one(wide, a, b, n, job, begin, extent, limit, best, row)
        return
    row[_COUNT] += n
    row[_DIFF2] += diff2
    row[_A2] += a2
    row[_B2] += b2
    row[_AB] += ab
    row[_MAX_A] = max(row[_MAX_A], np.int64(top_a).view(np.float64))
    row[_MAX_B] = max(row[_MAX_B], np.int64(top_b).view(np.float64))
    size = np.int64(top).view(np.float64)
    row[_MAX_DIFF] = max(row[_MAX_DIFF], size)
    if size > limit:
        for i in range(n):
            row[_OVER] += abs(_number(wide[0], a, i) - _number(wide[1], b, i)) > limit
    if best[1] < 0 or size > best[0] or (size == best[0] and begin < best[1]):
        for i in range(n):
            if abs(_number(wide[0], a, i) - _number(wide[1], b, i)) == size:
                _offer(best, row, size, begin + place_in(job, extent, i))


@compiled()
def _offer(best: np.ndarray, row: np.ndarray, size: float, place: int) -> None:
    """A difference that may be the largest so far, or an earlier one of the same size."""
    if best[1] < 0 or size > best[0] or (size == best[0] and place < best[1]):
        best[0], best[1] = size, place
        row[_ARGMAX] = place


@compiled()
def _add_one_by_one(
    wide: Any,
    a: int,
    b: int,
    n: int,
    job: np.ndarray,
    begin: int,
    extent: np.ndarray,
    limit: float,
    best: np.ndarray,
    row: np.ndarray,
) -> None:
    for i in range(n):
        x, y = _number(wide[0], a, i), _number(wide[1], b, i)
        if not (np.isfinite(x) and np.isfinite(y)):
            row[_NONFINITE] += 1
            if not (x == y or (np.isnan(x) and np.isnan(y))):
                place = begin + place_in(job, extent, i)
                row[_MISMATCH] += 1
                if row[_FIRST] < 0 or place < row[_FIRST]:
                    row[_FIRST] = place
            continue
        d = x - y
        row[_COUNT] += 1
        row[_DIFF2] += d * d
        row[_A2] += x * x
        row[_B2] += y * y
        row[_AB] += x * y
        row[_OVER] += abs(d) > limit
        row[_MAX_A], row[_MAX_B] = max(row[_MAX_A], abs(x)), max(row[_MAX_B], abs(y))
        row[_MAX_DIFF] = max(row[_MAX_DIFF], abs(d))
        if best[1] < 0 or abs(d) >= best[0]:
            _offer(best, row, abs(d), begin + place_in(job, extent, i))


@compiled()
def _compare(
    jobs: np.ndarray,
    chunks: np.ndarray,
    first: int,
    last: int,
    pairs: np.ndarray,
    limits: np.ndarray,
    room: int,
    out: np.ndarray,
) -> None:
    corner, extent = _corners(room)
    held = carray(pointer(room + _HELD), (3,), np.int64)
    best = carray(pointer(room + _BEST), (len(pairs), 2), np.float64)
    scratch = room + ROOM
    sides = 0
    for k in range(len(pairs)):
        sides = max(sides, pairs[k, 0] + 1, pairs[k, 1] + 1)
    number = -1
    for chunk in range(first, last):
        if chunks[chunk, 0] != number:
            number = chunks[chunk, 0]
            best[:] = -1.0
        job = jobs[number]
        out[chunk] = 0.0
        out[chunk, :, _ARGMAX] = out[chunk, :, _FIRST] = -1.0
        for block in range(chunks[chunk, 1], chunks[chunk, 2]):
            n = enter(job, block, corner, extent)
            begin = begin_of(job, corner)
            for side in range(sides):
                held[side] = staged(job, side, corner, extent, n, scratch)
            for k in range(len(pairs)):
                i, j = pairs[k]
                wide = job[KIND + i] == 1, job[KIND + j] == 1
                row = out[chunk, k]
                _add_block(
                    wide, held[i], held[j], n, job, begin, extent, limits[number], best[k], row
                )


def compare_chunks(
    jobs: int,
    chunks: int,
    first: int,
    last: int,
    pairs: int,
    count: int,
    limits: int,
    room: int,
    out: int,
) -> None:
    """Compare the arrays of each job over the chunks from ``first`` to ``last``.

    Args:
        jobs, chunks: of a `Plan`.
        pairs: int64 (count, 2): which arrays of a job are compared, as (a, b).
        limits: float64 (jobs,): differences above are counted.
        room: `ROOM` bytes, and behind them the buffers of `staging.staged`.
        out: float64 (chunks, count, `FIELDS`), written. A chunk's argmax is left at −1 where an
            earlier chunk of the same call has a larger difference.
    """
    # A job has a chunk at least: there are no more than `last` of them here.
    _compare(
        carray(pointer(jobs), (last, WIDTH), np.int64),
        carray(pointer(chunks), (last, 3), np.int64),
        first,
        last,
        carray(pointer(pairs), (count, 2), np.int64),
        carray(pointer(limits), (last,), np.float64),
        room,
        carray(pointer(out), (last, count, len(FIELDS)), np.float64),
    )


# -- one array: what no permutation of its elements changes ----------------------------------------


@compiled(fastmath=_SUMS)
def _moments(values: np.ndarray) -> Any:
    total = squares = sizes = 0.0
    top = np.int64(0)
    for i in range(values.size):
        x = np.float64(values[i])
        total += x
        squares += x * x
        sizes += abs(x)
        top = max(top, np.float64(x).view(np.int64) & _SIZE_BITS)
    return total, squares, sizes, np.int64(top).view(np.float64)


@compiled(fastmath=_SUMS)
def _tails(values: np.ndarray, rms: float) -> Any:
    above = below = twice = 0.0
    for i in range(values.size):
        x = np.float64(values[i])
        up, down, out = x - rms, -x - rms, abs(x) - 2.0 * rms
        above += up if up > 0.0 else 0.0
        below += down if down > 0.0 else 0.0
        twice += out if out > 0.0 else 0.0
    return above, below, twice


@compiled()
def _clean(wide: bool, address: int, n: int, target: int) -> Any:
    """Float64 at ``target``, zeros for what is NaN or Inf. Returns them, and how many were."""
    values = carray(pointer(target), (n,), np.float64)
    count = 0
    for i in range(n):
        x = _number(wide, address, i)
        finite = np.isfinite(x)
        values[i] = x if finite else 0.0
        count += not finite
    return values, count


@compiled()
def _add_moments(
    jobs: np.ndarray, chunks: np.ndarray, first: int, last: int, room: int, out: np.ndarray
) -> None:
    corner, extent = _corners(room)
    first_array, scratch = 0, room + ROOM
    for chunk in range(first, last):
        out[chunk] = 0.0
        job = jobs[chunks[chunk, 0]]
        wide = job[KIND] == 1
        for block in range(chunks[chunk, 1], chunks[chunk, 2]):
            n = enter(job, block, corner, extent)
            here = staged(job, first_array, corner, extent, n, scratch)
            if wide:
                found = _moments(carray(pointer(here), (n,), np.float64))
            else:
                found = _moments(carray(pointer(here), (n,), np.float32))
            if not np.isfinite(found[1]):
                values, bad = _clean(wide, here, n, scratch + _SPARE)
                found = _moments(values)
                out[chunk, 3] += bad
            out[chunk, 0] += found[0]
            out[chunk, 1] += found[1]
            out[chunk, 2] += found[2]
            out[chunk, 4] = max(out[chunk, 4], found[3])


def moment_chunks(jobs: int, chunks: int, first: int, last: int, room: int, out: int) -> None:
    """Sums over the finite elements of single arrays, by chunks.

    Args:
        room: as for `compare_chunks`, with buffers for two arrays.
        out: float64 (chunks, 5), written: Σx, Σx², Σ|x|, the number of non-finite elements, max|x|.
    """
    _add_moments(
        carray(pointer(jobs), (last, WIDTH), np.int64),
        carray(pointer(chunks), (last, 3), np.int64),
        first,
        last,
        room,
        carray(pointer(out), (last, 5), np.float64),
    )


@compiled()
def _add_tails(
    jobs: np.ndarray,
    chunks: np.ndarray,
    first: int,
    last: int,
    rms: np.ndarray,
    room: int,
    out: np.ndarray,
) -> None:
    corner, extent = _corners(room)
    first_array, scratch = 0, room + ROOM
    for chunk in range(first, last):
        out[chunk] = 0.0
        job, r = jobs[chunks[chunk, 0]], rms[chunks[chunk, 0]]
        wide = job[KIND] == 1
        for block in range(chunks[chunk, 1], chunks[chunk, 2]):
            n = enter(job, block, corner, extent)
            here = staged(job, first_array, corner, extent, n, scratch)
            if wide:
                found = _tails(carray(pointer(here), (n,), np.float64), r)
            else:
                found = _tails(carray(pointer(here), (n,), np.float32), r)
            if not np.isfinite(found[0] + found[1]):
                found = _tails(_clean(wide, here, n, scratch + _SPARE)[0], r)
            out[chunk, 0] += found[0]
            out[chunk, 1] += found[1]
            out[chunk, 2] += found[2]


def tail_chunks(
    jobs: int, chunks: int, first: int, last: int, rms: int, room: int, out: int
) -> None:
    """How far the finite elements exceed their rms, by chunks.

    Args:
        rms: float64 (jobs,).
        room: as for `moment_chunks`.
        out: float64 (chunks, 3), written: Σ(x − rms)⁺, Σ(−x − rms)⁺, Σ(|x| − 2 rms)⁺.
    """
    _add_tails(
        carray(pointer(jobs), (last, WIDTH), np.int64),
        carray(pointer(chunks), (last, 3), np.int64),
        first,
        last,
        carray(pointer(rms), (last,), np.float64),
        room,
        carray(pointer(out), (last, 3), np.float64),
    )
