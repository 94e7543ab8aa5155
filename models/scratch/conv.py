"""Two-dimensional convolution."""

from __future__ import annotations

import math

import numpy as np

from models.scratch.base import Array, Layer, array_namespace
from models.scratch.window import add_windows, crop, pad, windows


class Conv2d(Layer):
    """y[b, o, p, q] = bias[o] + Σ_{c,i,j} weight[o, c, i, j] · x̄[b, c, p·stride + i, q·stride + j]

    with x̄ the padded x (LeCun et al., Gradient-Based Learning Applied to Document Recognition,
    1998). Images are (B, C, H, W).
    """

    axes = {"weight": ("out", "in", "h", "w"), "bias": ("out",)}

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        rng: np.random.Generator,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        bound = 1 / math.sqrt(inputs * size * size)
        weight = rng.uniform(-bound, bound, (outputs, inputs, size, size))
        self._add_parameter("weight", weight.astype(np.float32))
        if bias:
            self._add_parameter("bias", rng.uniform(-bound, bound, outputs).astype(np.float32))

    def forward(self, x: Array) -> Array:
        xp, weight = array_namespace(x), self.params["weight"]
        padded = pad(x, self.padding)
        self._shape = padded.shape
        self._windows = windows(padded, weight.shape[2:], self.stride)  # (B, C, kh, kw, Ho, Wo)
        y = xp.tensordot(weight, self._windows, axes=((1, 2, 3), (1, 2, 3)))  # (O, B, Ho, Wo)
        y = y.swapaxes(0, 1)  # (B, O, Ho, Wo)
        return y + self.params["bias"][:, None, None] if "bias" in self.params else y

    def backward(self, dy: Array) -> Array:
        xp, weight = array_namespace(dy), self.params["weight"]
        self.accumulate("weight", xp.tensordot(dy, self._windows, axes=((0, 2, 3), (0, 4, 5))))
        if "bias" in self.params:
            self.accumulate("bias", dy.sum(axis=(0, 2, 3)))
        d = xp.tensordot(weight, dy, axes=((0,), (1,)))  # (C, kh, kw, B, Ho, Wo)
        d = xp.moveaxis(d, 3, 0)  # (B, C, kh, kw, Ho, Wo)
        return crop(add_windows(d, self._shape, self.stride), self.padding)
