"""The fully connected layer."""

from __future__ import annotations

import math

import numpy as np

from models.scratch.base import Array, Layer


class Linear(Layer):
    """y = x W + b, or x W without ``bias``, with W stored as (in, out).

    Uniform initialisation in ±1/√in (LeCun et al., Efficient BackProp, 1998).
    """

    axes = {"weight": ("in", "out"), "bias": ("out",)}

    def __init__(
        self, inputs: int, outputs: int, rng: np.random.Generator, *, bias: bool = True
    ) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        weight = rng.uniform(-bound, bound, (inputs, outputs))
        self._add_parameter("weight", weight.astype(np.float32))
        if bias:
            self._add_parameter("bias", rng.uniform(-bound, bound, outputs).astype(np.float32))

    def forward(self, x: Array) -> Array:
        self._x = x
        y = x @ self.params["weight"]  # (..., in) -> (..., out)
        return y + self.params["bias"] if "bias" in self.params else y

    def backward(self, dy: Array) -> Array:
        x = self._x.reshape(-1, self._x.shape[-1])  # (N, in)
        d = dy.reshape(-1, dy.shape[-1])  # (N, out)
        self.accumulate("weight", x.T @ d)
        if "bias" in self.params:
            self.accumulate("bias", d.sum(axis=0))
        return dy @ self.params["weight"].T
