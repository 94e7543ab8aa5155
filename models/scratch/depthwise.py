"""Depthwise convolution: each channel by a kernel of its own."""

from __future__ import annotations

import numpy as np

from models.scratch.base import Array, Layer, array_namespace
from models.scratch.window import add_windows, crop, pad, windows


class DepthwiseConv2d(Layer):
    """y[b, c, p, q] = Σ_{i,j} weight[c, 0, i, j] · x̄[b, c, p·stride + i, q·stride + j]

    with x̄ the padded x (Howard et al., MobileNets, 2017, equation 3). Images are (B, C, H, W); the
    weight has the shape that a convolution in C groups of one channel has.
    """

    axes = {"weight": ("out", "in", "h", "w")}

    def __init__(
        self, channels: int, size: int, rng: np.random.Generator, *, stride: int, padding: int
    ) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        weight = rng.uniform(-1 / size, 1 / size, (channels, 1, size, size))
        self._add_parameter("weight", weight.astype(np.float32))

    def forward(self, x: Array) -> Array:
        weight = self.params["weight"]
        padded = pad(x, self.padding)
        self._shape = padded.shape
        self._windows = windows(padded, weight.shape[2:], self.stride)  # (B, C, kh, kw, Ho, Wo)
        return array_namespace(x).einsum("bcijpq,cij->bcpq", self._windows, weight[:, 0])

    def backward(self, dy: Array) -> Array:
        weight = self.params["weight"]
        gradient = array_namespace(dy).einsum("bcijpq,bcpq->cij", self._windows, dy)
        self.accumulate("weight", gradient[:, None])
        d = weight[:, 0, :, :, None, None] * dy[:, :, None, None]  # (B, C, kh, kw, Ho, Wo)
        return crop(add_windows(d, self._shape, self.stride), self.padding)
