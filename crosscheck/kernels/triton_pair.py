"""Two tensors on a CUDA device -> `PairSums`, where they lie: one fused Triton kernel.

Each program takes a fixed stretch of the flat index, adds it up in float64 and writes one row; the
rows, a few kilobytes, are combined on the host in their order. So the result does not depend on
which program runs when. Tensors may be strided: offsets are computed from the flat index. With
``TRITON_INTERPRET=1`` the same kernel runs on host tensors, slowly, which is how it is tested.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# Triton reads the annotations of a kernel's arguments and knows no other types than its own.

from __future__ import annotations

import math
import sys
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import numpy as np

from crosscheck.errors import InvalidArgument
from crosscheck.kernels.blocked import PairSums
from crosscheck.kernels.combine import combined
from crosscheck.kernels.plan import FIELDS
from crosscheck.kernels.two_llvms import require_triton

require_triton()
import triton  # type: ignore[import,unused-ignore]  # noqa: E402
import triton.language as tl  # type: ignore[import,unused-ignore]  # noqa: E402

__all__ = ["pair_sums"]

BLOCK = 1024  # elements at a time
PROGRAMS, MOST_ROUNDS = 1024, 32  # so many programs before one takes several blocks, and how many
MOST_AXES = 5
WARPS = 8  # with 4, the sums do not fit into registers
SMALLER = 2.0**-600  # brings the largest float64 to where its square is finite
FLOATS = ("float16", "bfloat16", "float32", "float64")


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _offsets(i, sizes, strides_a, strides_b, AXES: tl.constexpr):
    """Flat indices -> offsets in two strided tensors; axes run from the fastest on."""
    of_a, of_b, rest = i * 0, i * 0, i
    for k in tl.static_range(AXES - 1):
        size = tl.load(sizes + k)
        along = rest % size
        of_a += along * tl.load(strides_a + k)
        of_b += along * tl.load(strides_b + k)
        rest = rest // size
    of_a += rest * tl.load(strides_a + AXES - 1)  # most have one axis, and no division
    of_b += rest * tl.load(strides_b + AXES - 1)
    return of_a, of_b


@triton.jit(do_not_specialize=["n"])  # type: ignore[untyped-decorator,unused-ignore]
def _rows(
    a,
    b,
    sizes,
    strides_a,
    strides_b,
    limit,
    out,
    n,
    AXES: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
    ROUNDS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One row of `FIELDS` for each stretch of ``BLOCK * ROUNDS`` elements."""
    start = tl.program_id(0).to(tl.int64) * (BLOCK * ROUNDS)
    most = tl.load(limit)
    nothing = tl.zeros((BLOCK,), tl.float64)
    count, diff2, a2, b2, ab = nothing, nothing, nothing, nothing, nothing
    over, bad, wrong, max_a, max_b = nothing, nothing, nothing, nothing, nothing
    size, place, first = nothing - 1.0, nothing - 1.0, nothing + float("inf")
    for k in range(ROUNDS):
        i = start + k * BLOCK + tl.arange(0, BLOCK)
        here = i < n
        of_a, of_b = _offsets(i, sizes, strides_a, strides_b, AXES)
        x = tl.load(a + of_a, mask=here, other=0.0)
        y = tl.load(b + of_b, mask=here, other=0.0)
        x, y = x.to(tl.float64) * SCALE, y.to(tl.float64) * SCALE
        finite = here & (tl.abs(x) < float("inf")) & (tl.abs(y) < float("inf"))
        same = (x == y) | ((x != x) & (y != y))
        differ = here & ~finite & ~same
        x, y = tl.where(finite, x, 0.0), tl.where(finite, y, 0.0)
        d = x - y
        count += finite.to(tl.float64)
        diff2 += d * d
        a2 += x * x
        b2 += y * y
        ab += x * y
        bad += (here & ~finite).to(tl.float64)
        wrong += differ.to(tl.float64)
        over += (finite & (tl.abs(d) > most)).to(tl.float64)
        max_a, max_b = tl.maximum(max_a, tl.abs(x)), tl.maximum(max_b, tl.abs(y))
        larger = finite & (tl.abs(d) > size)  # of equal ones the first stays
        size = tl.where(larger, tl.abs(d), size)
        place = tl.where(larger, i.to(tl.float64), place)
        first = tl.where(differ, tl.minimum(first, i.to(tl.float64)), first)
    top = tl.max(size)
    argmax = tl.min(tl.where((size == top) & (place >= 0.0), place, float("inf")))
    row = out + tl.program_id(0) * WIDTH
    tl.store(row + 0, tl.sum(count))
    tl.store(row + 1, tl.sum(diff2))
    tl.store(row + 2, tl.sum(a2))
    tl.store(row + 3, tl.sum(b2))
    tl.store(row + 4, tl.sum(ab))
    tl.store(row + 5, tl.maximum(top, 0.0))
    tl.store(row + 6, tl.where(argmax < float("inf"), argmax, -1.0))
    tl.store(row + 7, tl.max(max_a))
    tl.store(row + 8, tl.max(max_b))
    tl.store(row + 9, tl.sum(over))
    tl.store(row + 10, tl.sum(bad))
    tl.store(row + 11, tl.sum(wrong))
    least = tl.min(first)
    tl.store(row + 12, tl.where(least < float("inf"), least, -1.0))


def pair_sums(a: Any, b: Any, limit: float = math.inf) -> PairSums:
    """Compare two tensors of one shape on one device: PyTorch's, or what gives DLPack (CuPy, JAX).

    Args:
        limit: differences above are counted (`PairSums.over`).

    Raises:
        ValueError: the shapes differ.
        InvalidArgument: the tensors are on different devices, or no floating point tensors.
    """
    a, b = _tensor(a), _tensor(b)
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    if a.device != b.device:
        raise InvalidArgument(f"tensors on {a.device} and {b.device}: move one to the other")
    if not a.numel():
        return PairSums()
    total = _sums(a, b, limit, 1.0)
    if math.isfinite(total.diff2 + total.a2 + total.b2):
        return total
    total = _sums(a, b, limit * SMALLER, SMALLER)
    total.unit = 1.0 / SMALLER
    return total


def _tensor(value: Any) -> Any:
    tensor = value
    if not hasattr(value, "data_ptr"):
        if not hasattr(value, "__dlpack__"):
            raise InvalidArgument(f"{type(value).__name__}: neither a tensor nor an array")
        if min(getattr(value, "strides", ()), default=0) < 0:  # PyTorch would end the process
            raise InvalidArgument("an array with negative strides: make it contiguous first")
        tensor = import_module("torch").from_dlpack(value)  # nobody may have needed it so far
    if str(tensor.dtype).removeprefix("torch.") not in FLOATS:
        raise InvalidArgument(f"a tensor of {tensor.dtype}: only {', '.join(FLOATS)} are compared")
    return tensor.detach()


def _sums(a: Any, b: Any, limit: float, scale: float) -> PairSums:
    torch = sys.modules["torch"]
    axes = _axes(a, b)
    if len(axes) > MOST_AXES:
        a, b = a.contiguous(), b.contiguous()
        axes = [(a.numel(), 1, 1)]
    n = a.numel()
    rounds = min(triton.next_power_of_2(triton.cdiv(n, BLOCK * PROGRAMS)), MOST_ROUNDS)
    programs = triton.cdiv(n, BLOCK * rounds)
    out = torch.empty((programs, len(FIELDS)), dtype=torch.float64, device=a.device)
    table = torch.tensor(axes, dtype=torch.int64, device=a.device).T.contiguous()
    most = torch.tensor([limit], dtype=torch.float64, device=a.device)
    # Triton launches on the current device, whatever the tensors lie on.
    with torch.cuda.device(a.device) if a.is_cuda else nullcontext():
        _rows[(programs,)](
            a,
            b,
            *table,
            most,
            out,
            n,
            AXES=len(axes),
            SCALE=scale,
            BLOCK=BLOCK,
            ROUNDS=rounds,
            WIDTH=len(FIELDS),
            num_warps=WARPS,
        )
    rows = out.cpu().numpy()[:, None, :]
    return PairSums.of(combined(rows, np.zeros(1, np.int64))[0, 0].tolist())


def _axes(a: Any, b: Any) -> list[tuple[int, int, int]]:
    """(size, stride of a, stride of b) from the fastest axis on, merged where both stay linear."""
    found: list[tuple[int, int, int]] = []
    for size, *strides in zip(a.shape[::-1], a.stride()[::-1], b.stride()[::-1], strict=True):
        if size == 1:
            continue
        if found and all(
            ours == found[-1][0] * inner for ours, inner in zip(strides, found[-1][1:], strict=True)
        ):
            found[-1] = (found[-1][0] * size, *found[-1][1:])
        else:
            found.append((size, *strides))
    return found or [(1, 1, 1)]
