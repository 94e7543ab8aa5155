"""Gated feed-forward layers."""

from __future__ import annotations

import numpy as np

from models.scratch.base import Array, Layer
from models.scratch.dense import Linear
from models.scratch.recurrent import sigmoid


class SiLU(Layer):
    """x · σ(x) (Elfwing et al., Sigmoid-Weighted Linear Units, 2017), with derivative
    σ(x) (1 + x (1 - σ(x))).
    """

    def forward(self, x: Array) -> Array:
        self._x, self._s = x, sigmoid(x)
        return x * self._s

    def backward(self, dy: Array) -> Array:
        return dy * self._s * (1 + self._x * (1 - self._s))


class SwiGLU(Layer):
    """(SiLU(x G) · x U) D, without biases (Shazeer, GLU Variants Improve Transformer, 2020)."""

    def __init__(self, dim: int, hidden: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.gate = Linear(dim, hidden, rng, bias=False)
        self.silu = SiLU()
        self.up = Linear(dim, hidden, rng, bias=False)
        self.down = Linear(hidden, dim, rng, bias=False)

    def forward(self, x: Array) -> Array:
        self._gate = self.silu.forward(self.gate.forward(x))  # (..., dim) -> (..., hidden)
        self._up = self.up.forward(x)
        return self.down.forward(self._gate * self._up)

    def backward(self, dy: Array) -> Array:
        d = self.down.backward(dy)  # (..., hidden)
        dx = self.up.backward(d * self._gate)
        return dx + self.gate.backward(self.silu.backward(d * self._up))
