"""LeNet-5 in Flax NNX (LeCun et al., 1998, as in `models.lenet.reference`); (N, H, W, C)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


class Squash(nnx.Module):
    """1.7159 tanh(2x/3), which maps ±1 onto ±1."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return 1.7159 * jnp.tanh(x * (2 / 3))


class AvgPool(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.avg_pool(x, (2, 2), strides=(2, 2))


class Subsample(nnx.Module):
    """coefficient · mean over 2 x 2 + bias for each map; an odd last row or column is left out."""

    def __init__(self, channels: int) -> None:
        self.pool = AvgPool()
        self.weight = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.pool(x) * self.weight[...] + self.bias[...]


class FlattenMaps(nnx.Module):
    """(N, H, W, C) -> (N, C·H·W): map after map, the order in which C5 was trained."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x.transpose(0, 3, 1, 2).reshape(len(x), -1)


class LeNet(nnx.Module):
    """Images (N, 17, 13, 1) -> 10 logits."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.c1 = nnx.Conv(1, 6, (5, 5), padding=2, rngs=rngs)
        self.squash1 = Squash()
        self.s2 = Subsample(6)
        self.squash2 = Squash()
        self.c3 = nnx.Conv(6, 11, (3, 3), padding="VALID", rngs=rngs)
        self.squash3 = Squash()
        self.s4 = Subsample(11)
        self.squash4 = Squash()
        self.flatten = FlattenMaps()
        self.c5 = nnx.Linear(66, 20, rngs=rngs)
        self.squash5 = Squash()
        self.f6 = nnx.Linear(20, 15, rngs=rngs)
        self.squash6 = Squash()
        self.output = nnx.Linear(15, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.squash1(self.c1(x))  # (N, 17, 13, 6)
        x = self.squash2(self.s2(x))  # (N, 8, 6, 6)
        x = self.squash3(self.c3(x))  # (N, 6, 4, 11)
        x = self.squash4(self.s4(x))  # (N, 3, 2, 11)
        x = self.squash5(self.c5(self.flatten(x)))  # (N, 66) -> (N, 20)
        x = self.squash6(self.f6(x))  # (N, 15)
        return self.output(x)  # (N, 10)


def build() -> LeNet:
    """An untrained model."""
    return LeNet(nnx.Rngs(0))
