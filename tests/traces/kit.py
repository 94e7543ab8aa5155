"""What the tests of traces share: nets of three layers by hand, in one style or another."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.check.kit import found as found


class Linear:
    axes = {"W": ("in", "out"), "b": ("out",)}

    def __init__(self, inputs: int, outputs: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.W = rng.normal(size=(inputs, outputs)).astype(np.float32)
        self.b = rng.normal(size=outputs).astype(np.float32)

    def forward(self, x: Any) -> Any:
        self.x = x
        return x @ self.W + self.b

    def backward(self, d: Any) -> Any:
        self.dW, self.db = self.x.T @ d, d.sum(0)
        return d @ self.W.T


class Tanh:
    factor, backward_factor = 1.0, 1.0

    def forward(self, x: Any) -> Any:
        self.y = np.tanh(x)
        return self.y * x.dtype.type(self.factor)

    def backward(self, d: Any) -> Any:
        return d * (1 - self.y**2) * d.dtype.type(self.backward_factor)


class Net:
    """6 -> 8 -> tanh -> 8 -> tanh -> 3."""

    def __init__(self, seed: int = 0) -> None:
        self.first = Linear(6, 8, seed)
        self.act1 = Tanh()
        self.second = Linear(8, 8, seed + 1)
        self.act2 = Tanh()
        self.third = Linear(8, 3, seed + 2)

    def layers(self) -> list[Any]:
        return [self.first, self.act1, self.second, self.act2, self.third]

    def forward(self, x: Any) -> Any:
        for layer in self.layers():
            x = layer.forward(x)
        return x

    def backward(self, d: Any) -> Any:
        for layer in reversed(self.layers()):
            d = layer.backward(d)
        return d


X = "float32[5,6]"
