"""Functions with values in (0, 1), which switch what they multiply."""

from __future__ import annotations

from models.scratch.base import Array, Layer, array_namespace


class Sigmoid(Layer):
    """σ(x) = 1 / (1 + exp(-x)) = (1 + tanh(x/2)) / 2, with derivative σ (1 - σ)."""

    def forward(self, x: Array) -> Array:
        self._y = (1 + array_namespace(x).tanh(x / 2)) / 2  # exp(-x) would overflow
        return self._y

    def backward(self, dy: Array) -> Array:
        return dy * self._y * (1 - self._y)


class Hardsigmoid(Layer):
    """min(max(x + 3, 0), 6) / 6 (Howard et al., Searching for MobileNetV3, 2019)."""

    def forward(self, x: Array) -> Array:
        self._x = x
        return array_namespace(x).clip(x + 3, 0, 6) / 6

    def backward(self, dy: Array) -> Array:
        inside = (self._x > -3) & (self._x < 3)
        return array_namespace(dy).where(inside, dy / 6, 0.0)
