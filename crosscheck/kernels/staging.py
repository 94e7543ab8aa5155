"""How compiled code gets at arrays: addresses, and the blocks of a plan brought into one piece.

A block that already lies in one piece is left where it is; one that does not is copied, in its own
dtype, into a buffer in the first-level cache. Where an array runs fastest along the other axis of a
tile, eight by eight words are turned in registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic

from crosscheck.kernels.plan import ADDRESS, AXES, BLOCK, KIND, PIECES, PLACE, SIZE, STRIDE, TILE

__all__ = ["begin_of", "carray", "compiled", "enter", "place_in", "pointer", "staged"]

X, Y, Z = AXES - 3, AXES - 2, AXES - 1  # the axes of a block
WORDS = 8  # turned at once
LINE = 64  # bytes of a cache line

F = TypeVar("F", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[F], F]:
    """``numba.njit`` for functions that let go of the interpreter's lock."""
    return cast(Callable[[F], F], numba.njit(nogil=True, error_model="numpy", **options))


def _pointer(context: Any, address: Any) -> Any:
    """An address, as what `carray` takes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.voidptr(types.int64), generate


def _turned(context: Any, word: Any, source: Any, pitch: Any, target: Any, to: Any) -> Any:
    """Eight rows of eight words, ``pitch`` bytes apart -> their columns, ``to`` bytes apart."""
    bits = word.dtype.bitwidth

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row = ir.VectorType(ir.IntType(bits), WORDS)
        _, source, pitch, target, to = arguments

        def at(base: Any, step: Any, i: int) -> Any:
            offset = builder.mul(step, step.type(i))
            return builder.inttoptr(builder.add(base, offset), row.as_pointer())

        rows = [builder.load(at(source, pitch, i), align=bits // 8) for i in range(WORDS)]
        for half in (1, 2, 4):  # swap words, pairs of words, halves of rows
            _exchange(builder, rows, half)
        for i in range(WORDS):
            builder.store(rows[i], at(target, to, i), align=bits // 8)
        return context.get_dummy_value()

    return types.none(word, source, pitch, target, to), generate


def _asked_for(context: Any, address: Any) -> Any:
    """Ask for a cache line that is wanted soon. Any address will do: a prefetch never faults."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        place = builder.inttoptr(arguments[0], byte)
        builder.call(function, [place, flag(0), flag(3), flag(1)])  # to read, keep, data
        return context.get_dummy_value()

    return types.none(address), generate


# Of these Numba's type hints say nothing, or something else.
carray: Any = numba.carray  # type: ignore[attr-defined]
pointer: Any = cast(Any, intrinsic)(_pointer)
_turn: Any = cast(Any, intrinsic)(_turned)
_ask_for: Any = cast(Any, intrinsic)(_asked_for)


def _exchange(builder: Any, rows: list[Any], half: int) -> None:
    """Rows i and i + half give each other what the diagonal does not keep."""
    masks = [
        ir.Constant(
            ir.VectorType(ir.IntType(32), WORDS),
            [(j & ~half | second) + (WORDS if j & half else 0) for j in range(WORDS)],
        )
        for second in (0, half)
    ]
    for i in range(WORDS):
        if not i & half:
            pair = rows[i], rows[i + half]
            rows[i], rows[i + half] = (builder.shuffle_vector(*pair, mask) for mask in masks)


# -- blocks ----------------------------------------------------------------------------------------


@compiled()
def enter(job: np.ndarray, block: int, corner: np.ndarray, extent: np.ndarray) -> int:
    """Where a block begins and how far it goes along each axis. Returns its number of elements.

    The last axis but one goes first: the next tile has the rest of the same cache lines.
    """
    elements = 1
    for i in range(AXES):
        k = Y if i == 0 else Z if i == 1 else X - (i - 2)
        size, tile = job[SIZE + k], job[TILE + k]
        if size == 1:
            corner[k], extent[k] = 0, 1
            continue
        count = (size + tile - 1) // tile
        corner[k] = block % count * tile
        extent[k] = min(tile, size - corner[k])
        elements *= extent[k]
        block //= count
    return elements


@compiled()
def begin_of(job: np.ndarray, corner: np.ndarray) -> int:
    """The flat index of a block's first element."""
    place = 0
    for k in range(AXES):
        place += corner[k] * job[PLACE + k]
    return place


@compiled()
def place_in(job: np.ndarray, extent: np.ndarray, i: int) -> int:
    """How far the i-th element of a block is from its first, in the flat index."""
    rest = i // extent[Z]
    here = i % extent[Z] * job[PLACE + Z] + rest % extent[Y] * job[PLACE + Y]
    return int(here + rest // extent[Y] * job[PLACE + X])


def _copier(word: Any) -> Callable[..., None]:
    width = np.dtype(word).itemsize

    @compiled()
    def copy(source: int, target: int, n: int) -> None:
        ours = carray(pointer(source), (n,), word)
        theirs = carray(pointer(target), (n,), word)
        for i in range(n):
            theirs[i] = ours[i]

    @compiled()
    def plane(source: int, target: int, y: int, z: int, dy: int, dz: int) -> None:
        """A plane with strides ``dy``, ``dz`` in bytes, into one piece."""
        if dz == width:
            for j in range(y):
                for k in range(0, z * width, LINE):  # the same row of the next block
                    _ask_for(source + (j + y) * dy + k)
                copy(source + j * dy, target + j * z * width, z)
            return
        even_y = even_z = 0
        if dy == width:
            even_y, even_z = y // WORDS * WORDS, z // WORDS * WORDS
            for k in range(0, even_z, WORDS):
                for j in range(WORDS):
                    _ask_for(source + (k + j) * dz + even_y * dy + LINE)
                for j in range(0, even_y, WORDS):
                    to = target + (j * z + k) * width
                    _turn(word, source + j * dy + k * dz, dz, to, z * width)
        for j in range(y):
            for k in range(even_z if j < even_y else 0, z):
                copy(source + j * dy + k * dz, target + (j * z + k) * width, 1)

    return plane


_plane16, _plane32, _plane64 = _copier(np.uint16), _copier(np.uint32), _copier(np.uint64)


@compiled()
def _from_float16(bits: Any) -> Any:
    # The exponent moves from five bits to eight: multiplying by 2^112 does that exactly, for
    # denormals too. What was NaN or Inf then gets the highest exponent.
    word = np.uint32(bits)
    size = np.uint32((word & np.uint32(0x7FFF)) << np.uint32(13))
    grown = np.float32(size.view(np.float32) * np.float32(2.0**112)).view(np.uint32)
    top = np.uint32(0x7F800000) if size >= np.uint32(0x0F800000) else np.uint32(0)
    sign = np.uint32((word & np.uint32(0x8000)) << np.uint32(16))
    return np.uint32(grown | top | sign).view(np.float32)


@compiled()
def _widen(kind: int, source: int, target: int, n: int) -> None:
    """float16 or bfloat16 -> float32."""
    ours = carray(pointer(source), (n,), np.uint16)
    theirs = carray(pointer(target), (n,), np.float32)
    if kind == 2:
        for i in range(n):
            theirs[i] = _from_float16(ours[i])
    else:
        for i in range(n):
            theirs[i] = np.uint32(np.uint32(ours[i]) << np.uint32(16)).view(np.float32)


@compiled()
def staged(
    job: np.ndarray, side: int, corner: np.ndarray, extent: np.ndarray, n: int, scratch: int
) -> int:
    """The address of one array's share of a block, in one piece and in the order of the block's
    axes: float64 where the array is (kind 1), else float32.

    Args:
        scratch: address of `PIECES` buffers of `BLOCK` float64 for each array.
    """
    kind, stride = job[KIND + side], STRIDE + side * AXES
    width = 4 if kind == 0 else 8 if kind == 1 else 2
    x, y, z = extent[X], extent[Y], extent[Z]
    dx, dy, dz = job[stride + X], job[stride + Y], job[stride + Z]
    here = job[ADDRESS + side]
    for k in range(AXES):
        here += corner[k] * job[stride + k] * width
    raw = scratch + side * PIECES * BLOCK * 8
    if not ((z == 1 or dz == 1) and (y == 1 or dy == z) and (x == 1 or dx == y * z)):
        for i in range(x):
            source, target = here + i * dx * width, raw + i * y * z * width
            if width == 4:
                _plane32(source, target, y, z, dy * 4, dz * 4)
            elif width == 8:
                _plane64(source, target, y, z, dy * 8, dz * 8)
            else:
                _plane16(source, target, y, z, dy * 2, dz * 2)
        here = raw
    if width == 2:
        _widen(kind, here, raw + BLOCK * 8, n)
        here = raw + BLOCK * 8
    return int(here)
