"""Normalisation by the root mean square."""

from __future__ import annotations

import numpy as np

from models.scratch.base import Array, Layer, array_namespace


class RMSNorm(Layer):
    """y = x̂ · weight with x̂ = x / √(mean(x²) + eps), the mean over the last axis.

    (Zhang, Sennrich, Root Mean Square Layer Normalization, 2019). With d = dy · weight

        dx = (d - x̂ · mean(d · x̂)) / √(mean(x²) + eps)
    """

    axes = {"weight": ("channel",)}

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self._add_parameter("weight", np.ones(channels, np.float32))

    def forward(self, x: Array) -> Array:
        mean = (x * x).mean(axis=-1, keepdims=True)
        self._rrms = 1 / array_namespace(x).sqrt(mean + self.eps)
        self._xhat = x * self._rrms
        return self._xhat * self.params["weight"]

    def backward(self, dy: Array) -> Array:
        self.accumulate("weight", (dy * self._xhat).sum(axis=tuple(range(dy.ndim - 1))))
        d = dy * self.params["weight"]
        slope = (d * self._xhat).mean(axis=-1, keepdims=True)
        return (d - self._xhat * slope) * self._rrms
