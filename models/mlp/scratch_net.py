"""The multilayer perceptron from scratch."""

from __future__ import annotations

import numpy as np

from models.scratch import Array, Hardswish, Layer, LayerNorm, LeakyReLU, Linear


class MLP(Layer):
    """64 pixels -> 48 -> 32 -> 10 logits."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.fc1 = Linear(64, 48, rng)
        self.norm = LayerNorm(48, eps=1e-5)
        self.act1 = LeakyReLU(0.01)
        self.fc2 = Linear(48, 32, rng)
        self.act2 = Hardswish()
        self.fc3 = Linear(32, 10, rng)

    def forward(self, x: Array) -> Array:
        for _, layer in self.children():
            x = layer.forward(x)
        return x  # (N, 10)

    def backward(self, dy: Array) -> Array:
        for _, layer in reversed(list(self.children())):
            dy = layer.backward(dy)
        return dy  # (N, 64)


def build() -> MLP:
    """An untrained net, in evaluation mode."""
    net = MLP(np.random.default_rng(0))
    net.eval()
    return net
