"""Activations: functions without parameters."""

from __future__ import annotations

import math

from models.scratch.base import Array, Layer, array_namespace
from models.scratch.special import erf


class ReLU(Layer):
    """max(x, 0), with derivative 0 at 0 (Nair, Hinton, Rectified Linear Units, 2010)."""

    def forward(self, x: Array) -> Array:
        self._x = x
        return array_namespace(x).maximum(x, 0)

    def backward(self, dy: Array) -> Array:
        return dy * (self._x > 0)


class LeakyReLU(Layer):
    """x for x > 0, slope · x elsewhere (Maas, Hannun, Ng, Rectifier Nonlinearities, 2013)."""

    def __init__(self, slope: float = 0.01) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Array) -> Array:
        self._x = x
        return array_namespace(x).where(x > 0, x, self.slope * x)

    def backward(self, dy: Array) -> Array:
        return array_namespace(dy).where(self._x > 0, dy, self.slope * dy)


class Tanh(Layer):
    """tanh x, with derivative 1 - tanh² x."""

    def forward(self, x: Array) -> Array:
        self._y = array_namespace(x).tanh(x)
        return self._y

    def backward(self, dy: Array) -> Array:
        return dy * (1 - self._y**2)


class Hardswish(Layer):
    """x · min(max(x + 3, 0), 6) / 6 (Howard et al., Searching for MobileNetV3, 2019)."""

    def forward(self, x: Array) -> Array:
        self._x = x
        return x * array_namespace(x).clip(x + 3, 0, 6) / 6

    def backward(self, dy: Array) -> Array:
        xp, x = array_namespace(dy), self._x
        slope = xp.where(x < -3, 0.0, xp.where(x > 3, 1.0, x / 3 + 0.5))
        return dy * slope


class GELU(Layer):
    """x · Φ(x), where Φ(x) = (1 + erf(x/√2)) / 2 (Hendrycks, Gimpel, GELUs, 2016).

    The derivative is Φ(x) + x φ(x), where φ(x) = exp(-x²/2) / √2π.
    """

    def forward(self, x: Array) -> Array:
        self._x, self._cdf = x, (1 + erf(x / math.sqrt(2))) / 2
        return x * self._cdf

    def backward(self, dy: Array) -> Array:
        x = self._x
        density = array_namespace(dy).exp(-x * x / 2) / math.sqrt(2 * math.pi)
        return dy * (self._cdf + x * density)


class Softmax(Layer):
    """pᵢ = exp(xᵢ) / Σⱼ exp(xⱼ) along ``axis`` (Bridle, 1990), shifted by max x against overflow.

    ∂pᵢ/∂xⱼ = pᵢ (δᵢⱼ - pⱼ), hence dx = p · (dy - Σ dy · p).
    """

    def __init__(self, axis: int = -1) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Array) -> Array:
        e = array_namespace(x).exp(x - x.max(axis=self.axis, keepdims=True))
        self._p = e / e.sum(axis=self.axis, keepdims=True)
        return self._p

    def backward(self, dy: Array) -> Array:
        return self._p * (dy - (dy * self._p).sum(axis=self.axis, keepdims=True))


class LogSoftmax(Layer):
    """log pᵢ = xᵢ - log Σⱼ exp(xⱼ) along the last axis, shifted by max x against overflow.

    ∂ log pᵢ/∂xⱼ = δᵢⱼ - pⱼ, hence dx = dy - p · Σ dy.
    """

    def forward(self, x: Array) -> Array:
        xp = array_namespace(x)
        x = x - x.max(axis=-1, keepdims=True)
        self._y = x - xp.log(xp.exp(x).sum(axis=-1, keepdims=True))
        return self._y

    def backward(self, dy: Array) -> Array:
        return dy - array_namespace(dy).exp(self._y) * dy.sum(axis=-1, keepdims=True)
