"""The graph convolutional network in Flax NNX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

FEATURES, HIDDEN, CLASSES = 64, 13, 10


class GraphConv(nnx.Module):
    """Y = Â X W + b: each node takes the weighted sum over its neighbours (Kipf, Welling,
    Semi-Supervised Classification with Graph Convolutional Networks, 2017), W being (in, out).
    """

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> None:
        make = nnx.initializers.glorot_uniform()
        self.kernel = nnx.Param(make(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array, adjacency: jax.Array) -> jax.Array:
        return adjacency @ (x @ self.kernel[...]) + self.bias[...]  # (N, in) -> (N, out)


class ReLU(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(x)


class GCN(nnx.Module):
    """Nodes (N, 64) and the normalised adjacency Â = D^-½ (A + I) D^-½ (N, N) -> logits (N, 10)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = GraphConv(FEATURES, HIDDEN, rngs)
        self.relu = ReLU()
        self.conv2 = GraphConv(HIDDEN, CLASSES, rngs)

    def __call__(self, x: jax.Array, adjacency: jax.Array) -> jax.Array:
        x = self.relu(self.conv1(x, adjacency))  # (N, 13)
        return self.conv2(x, adjacency)  # (N, 10)


def build() -> GCN:
    """An untrained model."""
    return GCN(nnx.Rngs(0))
