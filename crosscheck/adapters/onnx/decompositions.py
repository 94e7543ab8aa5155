"""Derivatives of PyTorch's that have no ONNX operator, written in terms of those that have one.

`table` is for `torch.fx.experimental.proxy_tensor.make_fx`: the core ATen decompositions, those of
batch normalization, and what PyTorch has none for: convolution, pooling, interpolation. Shapes are
(N, C, *space); convolution and pooling are for any number of spatial axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions, get_decompositions

__all__ = ["table"]

aten = torch.ops.aten


def table() -> dict[Any, Callable[..., Any]]:
    """Operator -> what is traced in its place."""
    found: dict[Any, Callable[..., Any]] = dict(core_aten_decompositions())
    found |= get_decompositions(
        [
            aten.native_batch_norm,
            aten.native_batch_norm_backward,
            aten._native_batch_norm_legit,
            aten._native_batch_norm_legit_no_training,
            aten.batch_norm_backward,
        ]
    )
    found[aten.convolution_backward.default] = convolution_backward
    for pool in (aten.max_pool2d_with_indices_backward, aten.max_pool3d_with_indices_backward):
        found[pool.default] = max_pool_backward
    for pool in (aten.avg_pool2d_backward, aten.avg_pool3d_backward):
        found[pool.default] = avg_pool_backward
    found[aten._adaptive_avg_pool2d_backward.default] = adaptive_pool_backward
    found[aten.upsample_nearest2d_backward.default] = nearest_backward
    found[aten.upsample_bilinear2d_backward.default] = bilinear_backward
    return found


# -- convolution -----------------------------------------------------------------------------------


def convolution_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of a convolution, or of a transposed one, with respect to x, weight and bias.

    A transposed convolution is the VJP of a convolution whose input is its output: so its own VJP
    is that convolution, and its weight's gradient has input and cotangent exchanged.
    """
    n = x.ndim - 2
    stride, padding, dilation = (
        list(values) * (n if len(values) == 1 else 1) for values in (stride, padding, dilation)
    )
    zeros = [0] * n
    dx = dw = db = None
    if output_mask[0] and transposed:
        dx = aten.convolution(dy, weight, None, stride, padding, dilation, False, zeros, groups)
    elif output_mask[0]:
        reached = [
            (dy.shape[i + 2] - 1) * stride[i]
            - 2 * padding[i]
            + dilation[i] * (weight.shape[i + 2] - 1)
            + 1
            for i in range(n)
        ]
        missing = [x.shape[i + 2] - reached[i] for i in range(n)]
        dx = aten.convolution(dy, weight, None, stride, padding, dilation, True, missing, groups)
    if output_mask[1]:
        pair = (dy, x) if transposed else (x, dy)
        dw = _weight_gradient(*pair, weight.shape[2:], stride, padding, dilation, groups)
    if output_mask[2]:
        db = dy.sum([0, *range(2, dy.ndim)])
    return dx, dw, db


def _weight_gradient(
    x: Tensor,
    dy: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Σₙ correlation of x (N, C, *) and dy (N, O, *), as a convolution over n in which stride and
    dilation change places -> (O, C / groups, *kernel)."""
    n, channels = x.shape[:2]
    space, axes = x.shape[2:], range(3, x.ndim + 1)
    x = x.reshape(n, groups, channels // groups, *space)
    x = x.permute(2, 1, 0, *axes).reshape(channels // groups, groups * n, *space)
    zeros = [0] * len(kernel)
    dw = aten.convolution(
        x, dy.transpose(0, 1), None, dilation, padding, stride, False, zeros, groups
    )
    for axis, size in enumerate(kernel):  # pixels that no stride reached gave further elements
        dw = dw.narrow(axis + 2, 0, size)
    found: Tensor = dw.transpose(0, 1)
    return found


# -- pooling ---------------------------------------------------------------------------------------


def max_pool_backward(
    dy: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    """Each cotangent goes to the element that was the largest."""
    batch, space = _split(x, len(kernel))
    dx = x.new_zeros(*batch, math.prod(space))
    where = indices.reshape(*batch, -1)
    return dx.scatter_add(-1, where, dy.reshape(*batch, -1)).reshape(x.shape)


def avg_pool_backward(
    dy: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """Each cotangent goes in equal parts to the elements of its window: a transposed convolution
    with ones, of which the padding is cut off."""
    n = len(kernel)
    batch, space = _split(x, n)
    stride = stride or kernel
    padding = list(padding) * (n if len(padding) == 1 else 1)
    out = dy.shape[x.ndim - n :]
    counts = [
        _counts(space[i], out[i], kernel[i], stride[i], padding[i], padded=count_include_pad)
        for i in range(n)
    ]
    for i, count in enumerate(counts):
        view = [1] * dy.ndim
        view[dy.ndim - n + i] = -1
        divisor = torch.tensor(count, dtype=dy.dtype).reshape(view)
        dy = dy / divisor if not divisor_override else dy
    if divisor_override:
        dy = dy / divisor_override
    ones = dy.new_ones(1, 1, *kernel)
    none, single = [0] * n, [1] * n
    dx = aten.convolution(
        dy.reshape(-1, 1, *out), ones, None, list(stride), none, single, True, none, 1
    )
    for i in range(n):  # to the padded input's size, then without the padding
        short = space[i] + 2 * padding[i] - dx.shape[i + 2]
        if short > 0:
            pad = [0] * (2 * (n - 1 - i)) + [0, short]
            dx = aten.constant_pad_nd(dx, pad, 0.0)
        dx = dx.narrow(i + 2, padding[i], space[i])
    found: Tensor = dx.reshape(x.shape)
    return found


def adaptive_pool_backward(dy: Tensor, x: Tensor) -> Tensor:
    """The means are products with one matrix for rows and one for columns: Rᵀ dy C."""
    rows, columns = (_means(x.shape[a], dy.shape[a], dy.dtype) for a in (-2, -1))
    return rows.T @ dy @ columns


def _means(size: int, out: int, dtype: torch.dtype) -> Tensor:
    """(out, size): row i takes the mean of the i-th window."""
    found = [[0.0] * size for _ in range(out)]  # built in Python: tensors would be traced
    for i in range(out):
        start, end = i * size // out, -(-(i + 1) * size // out)
        found[i][start:end] = [1 / (end - start)] * (end - start)
    return torch.tensor(found, dtype=dtype)


def _split(x: Tensor, n: int) -> tuple[list[int], list[int]]:
    return list(x.shape[: x.ndim - n]), list(x.shape[x.ndim - n :])


def _counts(
    size: int, out: int, kernel: int, stride: int, padding: int, *, padded: bool
) -> list[float]:
    """By how many elements along one axis each window is divided."""
    found = []
    for i in range(out):
        start = i * stride - padding
        end = min(start + kernel, size + padding)
        if not padded:
            start, end = max(start, 0), min(end, size)
        found.append(float(end - start))
    return found


# -- interpolation ---------------------------------------------------------------------------------


def nearest_backward(
    dy: Tensor,
    output_size: Sequence[int],
    input_size: Sequence[int],
    factor_h: float | None = None,
    factor_w: float | None = None,
) -> Tensor:
    """As for means: every pixel is a sum of pixels along either axis, Rᵀ dy C."""
    sizes = zip(input_size[2:], output_size, (factor_h, factor_w), strict=True)
    rows, columns = (_nearest(*size, dy.dtype) for size in sizes)
    return rows.T @ dy @ columns


def bilinear_backward(
    dy: Tensor,
    output_size: Sequence[int],
    input_size: Sequence[int],
    align_corners: bool,
    factor_h: float | None = None,
    factor_w: float | None = None,
) -> Tensor:
    """The same with two pixels along either axis."""
    sizes = zip(input_size[2:], output_size, (factor_h, factor_w), strict=True)
    rows, columns = (_linear(*size, align_corners, dy.dtype) for size in sizes)
    return rows.T @ dy @ columns


def _nearest(size: int, out: int, factor: float | None, dtype: torch.dtype) -> Tensor:
    """(out, size): which pixel each one is."""
    found = [[0.0] * size for _ in range(out)]  # built in Python: tensors would be traced
    step = 1 / factor if factor else size / out
    for i in range(out):
        found[i][min(int(i * step), size - 1)] = 1.0
    return torch.tensor(found, dtype=dtype)


def _linear(
    size: int, out: int, factor: float | None, align_corners: bool, dtype: torch.dtype
) -> Tensor:
    """(out, size): how much of each pixel there is in each one."""
    found = [[0.0] * size for _ in range(out)]  # built in Python: tensors would be traced
    step = 1 / factor if factor else size / out
    for i in range(out):
        if align_corners:
            place = i * (size - 1) / (out - 1) if out > 1 else 0.0
        else:
            place = max((i + 0.5) * step - 0.5, 0.0)
        low = min(int(place), size - 1)
        high = min(low + 1, size - 1)
        found[i][low] += 1 - (place - low)
        found[i][high] += place - low
    return torch.tensor(found, dtype=dtype)
