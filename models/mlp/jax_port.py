"""The multilayer perceptron in Flax NNX."""

from __future__ import annotations

import jax
from flax import nnx


class LeakyReLU(nnx.Module):
    """max(x, slope · x)."""

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.leaky_relu(x, self.slope)


class HardSwish(nnx.Module):
    """x · min(max(x + 3, 0), 6) / 6 (Howard et al., Searching for MobileNetV3, 2019)."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.hard_swish(x)


class MLP(nnx.Module):
    """64 pixels -> 48 -> 32 -> 10 logits."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.fc1 = nnx.Linear(64, 48, rngs=rngs)
        self.norm = nnx.LayerNorm(48, epsilon=1e-5, rngs=rngs)  # Flax' default is 1e-6
        self.act1 = LeakyReLU(0.01)
        self.fc2 = nnx.Linear(48, 32, rngs=rngs)
        self.act2 = HardSwish()
        self.fc3 = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.act1(self.norm(self.fc1(x)))  # (N, 64) -> (N, 48)
        x = self.act2(self.fc2(x))  # (N, 32)
        return self.fc3(x)  # (N, 10)


def build() -> MLP:
    """An untrained model."""
    return MLP(nnx.Rngs(0))
