"""Transposed convolution: the adjoint of a convolution, which makes images larger."""

from __future__ import annotations

import math

import numpy as np

from models.scratch.base import Array, Layer, array_namespace
from models.scratch.window import add_windows, crop, pad, windows


class ConvTranspose2d(Layer):
    """ȳ[b, o, p·stride + i, q·stride + j] += Σ_c weight[c, o, i, j] · x[b, c, p, q], plus bias[o].

    y is ȳ without ``padding`` rows and columns on every side; ȳ has ``output_padding`` further ones
    at the bottom and on the right, without which a stride leaves open how large the convolution's
    input was (Dumoulin, Visin, A Guide to Convolution Arithmetic for Deep Learning, 2016, section
    4). Images are (B, C, H, W) -> (B, O, (H-1)·stride - 2·padding + kh + output_padding, ...).
    """

    axes = {"weight": ("in", "out", "h", "w"), "bias": ("out",)}

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: tuple[int, int],
        rng: np.random.Generator,
        *,
        stride: int = 1,
        padding: int = 0,
        output_padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.output_padding = stride, padding, output_padding
        bound = 1 / math.sqrt(inputs * size[0] * size[1])
        weight = rng.uniform(-bound, bound, (inputs, outputs, *size))
        self._add_parameter("weight", weight.astype(np.float32))
        if bias:
            self._add_parameter("bias", rng.uniform(-bound, bound, outputs).astype(np.float32))

    def forward(self, x: Array) -> Array:
        xp, weight = array_namespace(x), self.params["weight"]
        self._x = x
        d = xp.tensordot(weight, x, axes=((0,), (1,)))  # (O, kh, kw, B, H, W)
        d = xp.moveaxis(d, 3, 0)  # (B, O, kh, kw, H, W)
        y = self.trim(add_windows(d, self.full_shape(x), self.stride))
        return y + self.params["bias"][:, None, None] if "bias" in self.params else y

    def backward(self, dy: Array) -> Array:
        xp, weight = array_namespace(dy), self.params["weight"]
        if "bias" in self.params:
            self.accumulate("bias", dy.sum(axis=(0, 2, 3)))
        w = windows(self.untrim(dy), weight.shape[2:], self.stride)  # (B, O, kh, kw, H, W)
        self.accumulate("weight", xp.tensordot(self._x, w, axes=((0, 2, 3), (0, 4, 5))))
        dx = xp.tensordot(weight, w, axes=((1, 2, 3), (1, 2, 3)))  # (C, B, H, W)
        return dx.swapaxes(0, 1)

    def full_shape(self, x: Array) -> tuple[int, int, int, int]:
        """The shape of ȳ."""
        _, outputs, kh, kw = self.params["weight"].shape
        batch, _, height, width = x.shape
        height = (height - 1) * self.stride + kh + self.output_padding
        width = (width - 1) * self.stride + kw + self.output_padding
        return batch, outputs, height, width

    def trim(self, full: Array) -> Array:
        """y from ȳ."""
        return crop(full, self.padding)

    def untrim(self, dy: Array) -> Array:
        """The adjoint of `trim`."""
        return pad(dy, self.padding)
