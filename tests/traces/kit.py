"""What the tests of traces share: nets of three layers by hand, in one style or another."""

from __future__ import annotations

from typing import Any

import numpy as np

import tests.check.numpy_models
from tests.check.kit import found as found
from tests.check.numpy_models import Affine


class Linear(Affine):
    axes = {"W": ("in", "out"), "b": ("out",)}

    def __init__(self, inputs: int, outputs: int, seed: int) -> None:
        super().__init__(inputs, outputs, np.random.default_rng(seed))


class Tanh(tests.check.numpy_models.Tanh):
    factor, backward_factor = 1.0, 1.0

    def forward(self, x: Any) -> Any:
        return super().forward(x) * x.dtype.type(self.factor)

    def backward(self, d: Any) -> Any:
        return super().backward(d) * d.dtype.type(self.backward_factor)


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
